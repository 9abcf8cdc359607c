"""Decoded records on disk: the same pixels, decoded once, and nothing wrong is ever read."""

import os
import pickle

import numpy as np
import pytest

import flaxseg.data
from flaxseg.data import Augmentation, CachedRecords, train_batches
from flaxseg.data.prepared import records
from flaxseg.errors import DataError


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for every image that is decoded."""
    calls: list[int] = []
    decode = records.decode_image

    def count(encoded, **how):
        calls.append(len(encoded))
        return decode(encoded, **how)

    monkeypatch.setattr(records, "decode_image", count)
    return calls


def assert_records_equal(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a["id"] == b["id"]
        assert isinstance(a["id"], str)
        for key in ("image", "label"):
            assert a[key].dtype == np.uint8
            np.testing.assert_array_equal(a[key], b[key])


def test_records_are_the_same_and_decoded_once(camvid_dir, tmp_path, decoded):
    plain = flaxseg.data.open_split("camvid", "val", camvid_dir)
    wanted = plain[:]
    cached = CachedRecords(plain, tmp_path)
    decoded.clear()
    assert_records_equal(cached[:], wanted)
    assert len(decoded) == 3
    again = CachedRecords(flaxseg.data.open_split("camvid", "val", camvid_dir), tmp_path)
    for one in (cached, again, pickle.loads(pickle.dumps(cached))):
        assert_records_equal(list(one), wanted)
        assert_records_equal([one[-1], one[np.int64(0)]], [wanted[2], wanted[0]])
    assert len(decoded) == 3
    with pytest.raises(IndexError, match="record 3 of 3"):
        cached[3]
    other = CachedRecords(flaxseg.data.open_split("camvid", "val[1:]", camvid_dir), tmp_path)
    assert_records_equal(other[:], wanted[1:])


def test_the_stream_is_the_same(camvid_dir, tmp_path, decoded):
    chosen = Augmentation(scale=(0.3, 2.0), rotate=20.0, photometric=0.5)
    options = {"batch_size": 3, "crop_size": (30, 40), "augmentation": chosen, "seed": 1}

    def take(**more):
        stream = train_batches("camvid", "train", data_dir=camvid_dir, **options, **more)
        batches = [next(stream) for _ in range(7)]
        stream.close()
        return batches

    plain = take(num_threads=0)
    for threads in (0, 2):
        decoded.clear()
        for a, b in zip(plain, take(num_threads=threads, cache_dir=tmp_path), strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
        assert len(decoded) == (7 if threads == 0 else 0)  # three epochs of seven records


@pytest.mark.parametrize("harm", ["cut", "changed", "empty", "foreign"])
def test_a_damaged_file_is_decoded_and_written_again(camvid_dir, tmp_path, caplog, harm):
    plain = flaxseg.data.open_split("camvid", "val", camvid_dir)
    first = CachedRecords(plain, tmp_path)
    wanted = [first[i] for i in range(3)]
    path = sorted(first.folder.iterdir())[1]
    content = bytearray(path.read_bytes())
    if harm == "changed":
        content[len(content) // 2] ^= 1
    path.unlink()  # what is mapped stays as it was
    path.write_bytes({"cut": content[:-5], "empty": b"", "foreign": b"x" * 99}.get(harm, content))
    for reader in (CachedRecords(plain, tmp_path), CachedRecords(plain, tmp_path)):
        assert_records_equal(reader[:], [plain[i] for i in range(3)])
        assert_records_equal(reader[:], wanted)
    assert sum("is damaged" in message for message in caplog.messages) == (harm != "empty")
    assert len(list(first.folder.iterdir())) == 3


def test_other_data_and_other_splits_have_other_folders(camvid_dir, shapes_dir, tmp_path):
    folders = {
        CachedRecords(flaxseg.data.open_split(name, split, data_dir), tmp_path).folder
        for name, split, data_dir in [
            ("camvid", "val", camvid_dir),
            ("camvid", "train", camvid_dir),
            ("camvid", "train[:2]", camvid_dir),
            ("shapes", "val", shapes_dir),
        ]
    }
    assert len(folders) == 4
    changed = flaxseg.data.open_split("camvid", "val", camvid_dir)
    changed.fingerprint = "0" * 64
    assert CachedRecords(changed, tmp_path).folder not in folders


def test_without_room_records_are_decoded_with_one_warning(
    camvid_dir, tmp_path, caplog, monkeypatch, decoded
):
    plain = flaxseg.data.open_split("camvid", "val", camvid_dir)
    cached = CachedRecords(plain, tmp_path)
    cached[0]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    decoded.clear()
    assert_records_equal(cached[:], [plain[i] for i in range(3)])
    assert_records_equal(cached[:], [plain[i] for i in range(3)])
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.messages[0]
    assert [path.name for path in cached.folder.iterdir()] == ["00000000.pixels"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made: Not a directory"):
        CachedRecords(plain, tmp_path / "file")


def test_what_a_killed_process_left_is_cleared(camvid_dir, tmp_path):
    plain = flaxseg.data.open_split("camvid", "val", camvid_dir)
    folder = CachedRecords(plain, tmp_path).folder
    (folder / ".old.part").write_bytes(b"half")
    (folder / ".new.part").write_bytes(b"half")
    os.utime(folder / ".old.part", (0, 0))
    CachedRecords(plain, tmp_path)
    assert [path.name for path in folder.iterdir()] == [".new.part"]
