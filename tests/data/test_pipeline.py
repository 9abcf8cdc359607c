"""The training stream: one function of the seed, whatever reads it, and exactly resumable."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

import flaxseg.data
from flaxseg.data import Augmentation, train_batches
from flaxseg.errors import CheckpointError, ConfigError, DataError

EVERYTHING = Augmentation(rotate=10.0, blur=0.5, photometric=0.5)


def open_stream(data_dir, **options) -> flaxseg.data.TrainBatches:
    settings = {"batch_size": 4, "crop_size": (24, 20), "augmentation": EVERYTHING, "seed": 3}
    settings = {**settings, "num_threads": 1, **options}
    return train_batches("camvid", "train", data_dir=data_dir, **settings)


def take(stream, number: int) -> list[dict[str, np.ndarray]]:
    batches = [next(stream) for _ in range(number)]
    stream.close()
    return batches


def assert_equal(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert sorted(a) == sorted(b) == ["id", "image", "label"]
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def reference(camvid_dir) -> list[dict[str, np.ndarray]]:
    return take(open_stream(camvid_dir, num_threads=0), 6)


def test_a_batch_has_the_promised_form(reference):
    batch = reference[0]
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 24, 20, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((4, 24, 20), np.uint8)
    assert batch["id"].shape == (4,)
    assert batch["id"].dtype.kind == "U"
    assert set(np.unique(batch["label"])) <= {*range(11), 255}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_the_stream(camvid_dir, reference, threads):
    assert_equal(take(open_stream(camvid_dir, num_threads=threads), 6), reference)


@pytest.mark.slow
def test_workers_do_not_change_the_stream_nor_where_it_continues(camvid_dir, reference):
    for workers in (1, 2):
        assert_equal(take(open_stream(camvid_dir, num_workers=workers), 6), reference)
    stream = open_stream(camvid_dir, num_workers=2)
    stream.set_state({"batches_taken": 3})
    assert_equal(take(stream, 3), reference[3:])


def test_the_seed_changes_order_and_views(camvid_dir, reference):
    other = take(open_stream(camvid_dir, seed=4), 6)
    assert [list(b["id"]) for b in other] != [list(b["id"]) for b in reference]
    assert any((a["image"] != b["image"]).any() for a, b in zip(other, reference, strict=True))


def test_a_stream_continues_exactly_where_its_state_says(camvid_dir, reference):
    stream = open_stream(camvid_dir, num_threads=2)
    take(stream, 2)
    state = json.loads(json.dumps(stream.get_state()))
    for threads in (0, 3):
        again = open_stream(camvid_dir, num_threads=threads)
        again.set_state(state)
        assert again.get_state() == state
        assert_equal(take(again, 4), reference[2:])
    assert_equal(take(stream, 4), reference[2:])  # closing does not lose the place
    stream.set_state({"batches_taken": 0})
    assert_equal(take(stream, 6), reference)
    with pytest.raises(CheckpointError, match="next_index"):
        stream.set_state({"next_index": 5})


def test_orbax_keeps_the_state(camvid_dir, reference, tmp_path):
    from grain import checkpoint

    stream = open_stream(camvid_dir)
    take(stream, 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=checkpoint.CheckpointSave(stream)))
    fresh = open_stream(camvid_dir)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.restore(3, args=ocp.args.Composite(data=checkpoint.CheckpointRestore(fresh)))
    assert_equal(take(fresh, 3), reference[3:])


def test_each_epoch_has_every_record_once_in_a_new_order(camvid_dir):
    records = flaxseg.data.open_split("camvid", "train", camvid_dir)
    ids = sorted(record["id"] for record in records)
    batches = take(open_stream(camvid_dir, batch_size=1), 4 * len(ids))
    order = [str(b["id"][0]) for b in batches]
    epochs = [order[i : i + len(ids)] for i in range(0, len(order), len(ids))]
    assert all(sorted(epoch) == ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    first, second = (
        next(b for b, name in zip(batches[i:], order[i:], strict=True) if name == ids[0])
        for i in (0, len(ids))
    )
    assert (first["image"] != second["image"]).any()  # another view in another epoch


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(camvid_dir, reference, count):
    """Over all processes a step has the same records in the same views as with one process."""
    parts = [
        take(open_stream(camvid_dir, process_index=i, process_count=count), 6) for i in range(count)
    ]
    for step, whole in enumerate(reference):
        for key in whole:
            joined = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(joined, whole[key])


def test_processes_see_every_record_once_per_epoch(camvid_dir):
    """Also where neither a batch nor a process's share of it divides the 7 records."""
    ids = sorted(record["id"] for record in flaxseg.data.open_split("camvid", "train", camvid_dir))
    options = {"batch_size": 6, "crop_size": (8, 8), "process_count": 3}
    parts = [take(open_stream(camvid_dir, process_index=i, **options), 14) for i in range(3)]
    order = [str(name) for step in zip(*parts, strict=True) for part in step for name in part["id"]]
    epochs = [sorted(order[i : i + 7]) for i in range(0, 6 * 14, 7)]
    assert epochs == [ids] * 12


def test_impossible_numbers_are_named(camvid_dir):
    with pytest.raises(ConfigError, match=r"batch_size is 4; .* 3 processes"):
        open_stream(camvid_dir, process_count=3)
    with pytest.raises(
        ConfigError, match="process_index is 2; it must be at least 0 and less than 2"
    ):
        open_stream(camvid_dir, process_index=2, process_count=2)
    with pytest.raises(ConfigError, match=r"crop_size is \(0, 5\)"):
        open_stream(camvid_dir, crop_size=(0, 5))
    with pytest.raises(ConfigError, match="no split 'trainval'; its splits: train, val, test"):
        train_batches("camvid", "trainval", data_dir=camvid_dir, batch_size=1, crop_size=(8, 8))


def test_a_bad_record_stops_the_stream_with_its_name(camvid_dir, monkeypatch):
    """What a reader thread raises reaches the caller with its words."""
    from flaxseg.data.prepared import records as module

    def refuse(encoded, **how):
        raise module.UndecodableError("damaged image: broken data stream")

    monkeypatch.setattr(module, "decode_image", refuse)
    with pytest.raises(DataError, match=r"camvid/train: the image of record 'train_00\d'.*jpg"):
        next(open_stream(camvid_dir, num_threads=2))


@pytest.fixture
def broken(monkeypatch) -> set[str]:
    """Names of records that cannot be decoded, to be filled by a test."""
    names: set[str] = set()
    decode = flaxseg.data.Records._decode

    def refuse(records, encoded):
        name = encoded["id"].decode()
        if name in names:
            raise records._bad(name, encoded["image_file"], "image", "broken data stream")
        return decode(records, encoded)

    monkeypatch.setattr(flaxseg.data.Records, "_decode", refuse)
    return names


def test_broken_records_are_replaced_and_named_where_that_is_allowed(
    camvid_dir, reference, broken, caplog
):
    broken |= {"train_002", "train_005"}
    stream = open_stream(camvid_dir, num_threads=0, skip_broken=2)
    batches = take(stream, 6)
    replaced = 0
    for found, whole in zip(batches, reference, strict=True):
        assert sorted(found) == ["id", "image", "label"]
        for row, name in enumerate(whole["id"]):
            if name in broken:
                assert found["id"][row] not in broken
                replaced += 1
            else:
                for key in found:
                    np.testing.assert_array_equal(found[key][row], whole[key][row])
    assert replaced >= 6  # 24 places, two of seven records
    assert len(caplog.messages) == 2  # each is named once, not in every epoch
    assert all("broken record left out" in message for message in caplog.messages)
    assert "record 'train_002' (made from" in "".join(caplog.messages)
    assert "record 'train_005' (made from" in "".join(caplog.messages)
    assert "2 of at most 2" in caplog.messages[1]

    state = json.loads(json.dumps(stream.get_state()))
    again = open_stream(camvid_dir, num_threads=3, skip_broken=2)
    assert_equal(take(again, 6), batches)
    caplog.clear()
    again.set_state({**state, "batches_taken": 2})
    assert_equal(take(again, 4), batches[2:])
    assert again.get_state() == state
    assert caplog.messages == []  # they were counted before


def test_more_broken_records_than_allowed_end_the_stream(camvid_dir, broken):
    broken.add("train_001")
    stream = open_stream(camvid_dir, batch_size=1, num_threads=0, skip_broken=1)
    assert len([next(stream) for _ in range(14)]) == 14  # one record, though in both epochs
    broken.clear()
    broken.add("train_004")
    with pytest.raises(DataError, match=r"2 records are broken, and skip_broken=1 .*'train_004'"):
        take(stream, 7)
    stream = open_stream(camvid_dir, batch_size=1, skip_broken=0)
    with pytest.raises(DataError, match=r"camvid/train: the image of record 'train_00\d' \(made"):
        take(stream, 7)
    broken |= {f"train_00{i}" for i in range(7)}
    with pytest.raises(DataError, match="7 records are broken, and skip_broken=50"):
        next(open_stream(camvid_dir, skip_broken=50))


@pytest.mark.slow
def test_a_worker_that_dies_is_reported(camvid_dir):
    stream = open_stream(camvid_dir, num_workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"camvid/train: a worker .* died by signal 9 .*memory"):
        take(stream, 20)
    stream.close()


WITH_WORKERS = """
import multiprocessing, sys
from flaxseg.data import train_batches
if __name__ == "__main__":
    options = {"batch_size": 2, "crop_size": (8, 8), "num_threads": 1, "num_workers": 2}
    stream = train_batches("camvid", "train", data_dir=sys.argv[1], **options)
    next(stream)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for line in sys.stdin:
        for _ in range(20):  # more than were read ahead
            next(stream)
        print("read", flush=True)
"""


def test_workers_outlive_a_signal_but_not_the_process_that_started_them(
    camvid_dir, tmp_path, repository
):
    program = tmp_path / "program.py"
    program.write_text(WITH_WORKERS)
    parent = subprocess.Popen(
        [sys.executable, program, camvid_dir],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        # A terminal and a cluster send theirs to all processes of a program.
        for number in (signal.SIGINT, signal.SIGTERM):
            for pid in workers:
                os.kill(pid, number)
        parent.stdin.write("go on\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "read\n"
    finally:
        parent.kill()
    parent.communicate(timeout=10)  # stdout ends when the last process that has it is gone


def test_tensorflow_is_never_imported(camvid_folder, tmp_path):
    program = "\n".join(
        [
            "import sys",
            "import flaxseg.data as data",
            f"folder = {str(tmp_path / 'data')!r}",
            f"data.prepare('camvid', folder, {str(camvid_folder)!r}, progress=False)",
            "data.open_split('camvid', 'val', folder)[0]",
            "options = {'batch_size': 2, 'crop_size': (8, 8)}",
            "stream = data.train_batches('camvid', 'train', data_dir=folder, **options)",
            "next(stream)",
            "stream.close()",
            "assert 'tensorflow' not in sys.modules",
        ]
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.slow
def test_killed_ten_times_the_stream_is_the_undisturbed_one(camvid_dir, tmp_path, repository):
    program = repository / "tests" / "data" / "killed_stream.py"
    done = subprocess.run(
        [sys.executable, program, camvid_dir, tmp_path],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 10
    whole, killed = ((tmp_path / name).read_text().splitlines() for name in ("whole", "killed"))
    assert [line.split()[0] for line in whole] == [str(number) for number in range(100)]
    # Each line that was written after a kill is one of the undisturbed stream, and none is missing.
    assert set(killed) == set(whole)
    assert len(killed) > len(whole)  # batches after the last saved state came again
