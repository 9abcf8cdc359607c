"""Power cuts while a run writes: each thing it writes is afterwards the old one or the new one."""

import filecmp
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from power_cuts import PowerCuts
from test_checkpoint import content, make_state, meta, saved

from flaxseg.files import write_text
from flaxseg.training.checkpoint import Checkpoints, _nest


def check_checkpoints(images, states):
    """Checks that each image has a good checkpoint, and that none of a later one is older."""
    known = [content(state) for state in states]
    for kind, folders in images.items():
        found = []
        for folder in folders:
            restored = Checkpoints(folder / "checkpoints").restore(states[0])
            assert restored is not None, f"{folder} has no checkpoint"
            found.append(known.index(content(restored.state)))
        assert found == sorted(found), kind
        assert (found[0], found[-1]) == (0, len(states) - 1), kind
        assert len(folders) >= {"synced": 2, "journal": 8}[kind]


def test_the_next_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints = saved(folder, (1,), keep_last=1)
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        checkpoints.save(2, make_state(2), meta())
        checkpoints.finish()
    assert checkpoints.steps() == [2]
    check_checkpoints(cuts.images, [make_state(1), make_state(2)])


def test_a_checkpoint_in_place_of_one_of_the_same_step(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoints = saved(folder, (1,), keep_last=1)
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        checkpoints.save(1, make_state(5), meta())
        checkpoints.finish()
    check_checkpoints(cuts.images, [make_state(1), make_state(5)])


def test_a_file_that_is_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    write_text(folder / "config.json", "old")
    cuts = PowerCuts(folder, tmp_path, monkeypatch)
    with cuts.everywhere():
        write_text(folder / "config.json", "new")
    for folders in cuts.images.values():
        found = [(image / "config.json").read_text() for image in folders]
        assert found == sorted(found, reverse=True)
        assert {found[0], found[-1]} == {"old", "new"}


@pytest.fixture
def disk(tmp_path):
    """A file system of its own: the file that is its block device, and where it is mounted."""
    image, place = tmp_path / "device", tmp_path / "disk"
    place.mkdir()
    try:
        with image.open("wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file as a disk")
    yield image, place
    subprocess.run(["umount", place], check=True)


def restored_step(folder: pathlib.Path) -> int:
    """The step from which a run would go on."""
    checkpoints = Checkpoints(folder)
    leaves = checkpoints._read_meta(checkpoints.steps()[-1])["leaves"]
    shapes = {
        name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"]) for name, leaf in leaves.items()
    }
    return checkpoints.restore(_nest(shapes)).step


def copy_of_one_moment(device: pathlib.Path, copy: pathlib.Path) -> pathlib.Path:
    """Copies a device that may be written to meanwhile, by the system if not by the program.

    Where two copies, one after the other, are equal, they show the moment between them.
    """
    again = copy.with_suffix(".again")
    while True:
        shutil.copyfile(device, copy)
        shutil.copyfile(device, again)
        if filecmp.cmp(copy, again, shallow=False):
            again.unlink()
            return copy


@pytest.mark.slow
def test_images_of_the_disk_under_a_run(tmp_path, repository, shapes_dir, disk):
    """The block device is copied at random moments: what a power cut at that moment leaves."""
    device, place = disk
    settings = {
        "model.name": "tiny",
        "data.dir": shapes_dir,
        "data.crop_size": "16,16",
        "batch_size": 2,
        "steps": 100_000,
        "eval.every_steps": 0,
        "checkpoint.every_steps": 20,
    }
    program = pathlib.Path(__file__).with_name("tiny_program.py")
    folder = place / "run" / "checkpoints"
    process = subprocess.Popen(
        [
            *(sys.executable, program, "--config=configs/default.py", f"--workdir={place / 'run'}"),
            *(f"--config.{name}={value}" for name, value in settings.items()),
        ],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    copies = []
    try:
        while not (folder / "40").is_dir():
            assert process.poll() is None
            time.sleep(0.01)
        moments = random.Random(3)
        for number in range(10):
            time.sleep(moments.uniform(0.1, 1))
            newest = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
            process.send_signal(signal.SIGSTOP)
            copies.append((copy_of_one_moment(device, tmp_path / f"copy_{number}"), newest))
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    for copy, newest in copies:
        seen = tmp_path / "seen"
        seen.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", copy, seen], check=True)
        try:
            # Older ones are deleted only after the newest has its name on the disk.
            assert restored_step(seen / "run" / "checkpoints") >= newest - 20
        finally:
            subprocess.run(["umount", seen], check=True)
