"""Preparation: all that is wrong is listed, and nothing incomplete is ever taken for complete."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from power_cuts import PowerCuts
from published_files import jpeg, png, write_camvid

import flaxseg.data
from flaxseg.data import prepare as prepare_function
from flaxseg.data.prepared import preparation
from flaxseg.errors import DataError


def prepare(folder, data_dir):
    return prepare_function("camvid", data_dir, folder, progress=False)


def refused(folder, data_dir) -> str:
    """Returns the message of the refusal, after checking that nothing was left."""
    with pytest.raises(DataError) as caught:
        prepare(folder, data_dir)
    assert not flaxseg.data.is_prepared("camvid", data_dir)
    if data_dir.is_dir():
        assert [p.name for p in data_dir.iterdir() if p.name != ".camvid.lock"] == []
    return str(caught.value)


def test_all_problems_are_listed_at_once(camvid_folder, tmp_path):
    train, annot = camvid_folder / "train", camvid_folder / "trainannot"
    whole = (train / "train_000.jpg").read_bytes()
    (train / "train_000.jpg").write_bytes(whole[:-100])
    (annot / "train_001.png").unlink()
    (train / "train_002.jpg").write_bytes(jpeg(np.zeros((20, 30, 3), np.uint8)))
    strange = np.zeros((40, 56), np.uint8)
    strange[0, :5] = 200
    strange[1, :2] = 12
    (annot / "train_003.png").write_bytes(png(strange))
    (annot / "train_004.png").write_bytes(jpeg(np.zeros((40, 56, 3), np.uint8)))
    (train / "train_005.jpg").write_text("not an image")
    (annot / "train_006.png").write_bytes(b"")
    (camvid_folder / "val" / "stray.jpg").write_bytes(whole)
    (camvid_folder / "test" / "test_001.jpg").write_bytes(
        (camvid_folder / "val" / "val_000.jpg").read_bytes()
    )
    message = refused(camvid_folder, tmp_path / "data")
    for words in (
        "9 problems",
        f"{train}/train_000.jpg: damaged image: image file is truncated",
        f"{annot}/train_001.png: the label of 'train_001' is missing",
        "train_002.jpg: the image has 20 x 30 pixels (H x W) but its label",
        "train_002.png has 40 x 56",
        "train_003.png: label ids outside the map: 12 (2 pixels), 200 (5 pixels); "
        "known ids are 0..11",
        "train_004.png: the label is a JPEG",
        "train_005.jpg: not an image of a known format",
        "train_006.png: the file is empty",
        "stray.jpg: not in val.txt",
        f"test_001.jpg: the same image is in val: {camvid_folder}/val/val_000.jpg",
        "Correct or replace these files",
    ):
        assert words in message, words


def test_many_problems_are_counted_not_all_printed(tmp_path):
    write_camvid(tmp_path / "published", {"train": 60, "val": 1, "test": 1})
    for path in (tmp_path / "published" / "trainannot").iterdir():
        path.write_bytes(b"")
    message = refused(tmp_path / "published", tmp_path / "data")
    assert "60 problems" in message
    assert "and 10 more" in message


def test_folders_and_lists_that_are_not_camvid(camvid_folder, tmp_path):
    assert "is not a folder" in refused(tmp_path / "nowhere", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    assert "it holds nothing" in refused(tmp_path / "empty", tmp_path / "data")
    (camvid_folder / "val.txt").unlink()
    assert "val.txt: the list of split 'val' cannot be read" in refused(
        camvid_folder, tmp_path / "data"
    )
    (camvid_folder / "val.txt").write_text("\n")
    assert "names no image" in refused(camvid_folder, tmp_path / "data")
    (camvid_folder / "val.txt").write_text("/a/../val_000.jpg x\n")
    assert "val.txt, line 1: wanted 'IMAGE LABEL'" in refused(camvid_folder, tmp_path / "data")


def test_the_folder_around_the_published_one_will_do(camvid_folder, tmp_path):
    camvid_folder.rename(tmp_path / "CamVid")
    prepare(tmp_path, tmp_path / "data")
    assert len(flaxseg.data.open_split("camvid", "train", tmp_path / "data")) == 7


def test_preparing_twice_does_nothing_more(camvid_folder, tmp_path):
    folder = prepare(camvid_folder, tmp_path / "data")
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare(tmp_path / "not even there", tmp_path / "data") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert flaxseg.data.is_prepared("camvid", tmp_path / "data")


def test_no_temporary_files_are_left(camvid_folder, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    prepare(camvid_folder, tmp_path / "data")
    assert list(temporary.iterdir()) == []


def test_the_fingerprint_is_that_of_the_content(camvid_folder, camvid_dir, tmp_path):
    first = flaxseg.data.read_manifest("camvid", camvid_dir)
    assert first.splits == {"train": 7, "val": 3, "test": 2}
    assert first.fingerprint == flaxseg.data.open_split("camvid", "val", camvid_dir).fingerprint
    prepare(camvid_folder, tmp_path / "moved")
    moved = flaxseg.data.read_manifest("camvid", tmp_path / "moved")
    assert moved.fingerprint == first.fingerprint, "it depends on where the files lie"
    image = camvid_folder / "train" / "train_000.jpg"
    image.write_bytes(jpeg(np.full((40, 56, 3), 9, np.uint8)))
    prepare(camvid_folder, tmp_path / "changed")
    changed = flaxseg.data.read_manifest("camvid", tmp_path / "changed")
    assert changed.fingerprint != first.fingerprint


def test_damaged_prepared_files_are_found(camvid_folder, tmp_path):
    data_dir = tmp_path / "data"
    folder = prepare(camvid_folder, data_dir)
    flaxseg.data.verify_prepared("camvid", data_dir)
    (records,) = folder.glob("*train*array_record*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 1
    records.write_bytes(content)
    with pytest.raises(DataError, match=r"array_record.*its content changed"):
        flaxseg.data.verify_prepared("camvid", data_dir)
    records.write_bytes(content[:-10])
    assert not flaxseg.data.is_prepared("camvid", data_dir)
    with pytest.raises(DataError, match=r"array_record.* has \d+ bytes instead of \d+"):
        flaxseg.data.open_split("camvid", "train", data_dir)
    prepare(camvid_folder, data_dir)  # replaces the damaged copy
    flaxseg.data.verify_prepared("camvid", data_dir)
    assert len(list(flaxseg.data.open_split("camvid", "train", data_dir))) == 7


def test_files_of_others_are_not_overwritten(camvid_folder, tmp_path):
    other = tmp_path / "data" / "camvid" / "1.0.0"
    other.mkdir(parents=True)
    (other / "precious.txt").write_text("keep me")
    with pytest.raises(DataError, match="holds files that flaxseg did not write"):
        prepare(camvid_folder, tmp_path / "data")
    assert (other / "precious.txt").read_text() == "keep me"


PROGRAM = """
import sys, time
import flaxseg.data
module = flaxseg.data.prepared.preparation
stop_after, data_dir, folder = sys.argv[1:]
original = getattr(module, stop_after)

def stop(*args, **options):
    original(*args, **options)
    print("here", flush=True)
    time.sleep(60)

setattr(module, stop_after, stop)
flaxseg.data.prepare("camvid", data_dir, folder, progress=False)
"""


@pytest.mark.parametrize("stop_after", ["_find_examples", "_write", "write_manifest"])
def test_killed_midway_leaves_nothing_that_looks_complete(camvid_folder, tmp_path, stop_after):
    data_dir = tmp_path / "data"
    command = [sys.executable, "-c", PROGRAM, stop_after, str(data_dir), str(camvid_folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(data_dir.glob(".preparing-camvid-*"))
    assert not flaxseg.data.is_prepared("camvid", data_dir)
    with pytest.raises(DataError, match="is not prepared"):
        flaxseg.data.open_split("camvid", "train", data_dir)
    prepare(camvid_folder, data_dir)
    assert flaxseg.data.is_prepared("camvid", data_dir)
    assert not list(data_dir.glob(".preparing-camvid-*"))


def test_two_processes_prepare_once(camvid_folder, tmp_path):
    program = (
        "import sys, flaxseg.data\n"
        "flaxseg.data.prepare('camvid', sys.argv[1], sys.argv[2], progress=False)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data"), str(camvid_folder)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    flaxseg.data.verify_prepared("camvid", tmp_path / "data")


def test_a_place_that_cannot_be_written_to_is_named(camvid_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"could not be written below .*file/data.*--data_dir"):
        prepare(camvid_folder, tmp_path / "file" / "data")
    if os.geteuid() != 0:  # nothing is forbidden to root
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(DataError, match=r"Permission denied"):
            prepare(camvid_folder, tmp_path / "closed" / "data")


def test_a_full_disk_is_named_and_leaves_nothing(camvid_folder, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", str(tmp_path / "data" / "x.array_record"))

    monkeypatch.setattr(preparation, "_write", full)
    message = refused(camvid_folder, tmp_path / "data")
    assert "No space left on device" in message
    assert "MiB are free there" in message


def test_a_really_full_disk(camvid_folder, tmp_path):
    """A limit on the size of files is as near to a full disk as one comes without being root."""
    program = (
        "import resource, signal, sys, flaxseg.data\n"
        "from flaxseg.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n"
        "    flaxseg.data.prepare('camvid', sys.argv[1], sys.argv[2], progress=False)\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    data_dir = tmp_path / "data"
    command = [sys.executable, "-c", program, str(data_dir), str(camvid_folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "could not be written below" in found.stdout, found.stderr
    assert not flaxseg.data.is_prepared("camvid", data_dir)


def test_default_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("FLAXSEG_DATA", str(tmp_path))
    assert flaxseg.data.default_data_dir() == tmp_path
    monkeypatch.delenv("FLAXSEG_DATA")
    assert str(flaxseg.data.default_data_dir()) == "data"


def test_progress_is_plain_lines_without_a_terminal(camvid_folder, tmp_path, capsys):
    start = time.monotonic()
    prepare_function("camvid", tmp_path / "data", camvid_folder)
    shown = capsys.readouterr()
    assert "checking camvid: 12 of 12 images" in shown.err
    assert "writing camvid: 12 of 12 images" in shown.err
    assert len(shown.err.splitlines()) <= 12
    assert shown.out == ""
    assert time.monotonic() - start < 30


def test_a_power_cut_leaves_no_data_that_only_looks_prepared(camvid_folder, tmp_path, monkeypatch):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    cuts = PowerCuts(data_dir, tmp_path, monkeypatch)
    with cuts.everywhere():
        prepare(camvid_folder, data_dir)
    for images in cuts.images.values():
        found = [flaxseg.data.is_prepared("camvid", image) for image in images]
        assert found == sorted(found)
        assert (found[0], found[-1]) == (False, True)
        for image, is_prepared in zip(images, found, strict=True):
            if is_prepared:
                flaxseg.data.verify_prepared("camvid", image)
