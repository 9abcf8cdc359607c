"""PASCAL-Context: both forms of its labels, with and without background as a class."""

import numpy as np
import pytest
from published_archives import ids, mat, voc_files, write_tar, write_unpacked
from published_files import png

import flaxseg.data
from flaxseg.data.sets import pascal_context
from flaxseg.errors import DataError

TRAIN, VAL = ["2008_000002", "2008_000003"], ["2008_000004"]
INFO = flaxseg.data.dataset_info("pascal_context")
# Some of the published list of 459 names.
PUBLISHED = {2: "aeroplane", 59: "car", 284: "person", 308: "potted plant", 458: "wood", 1: "other"}


def published_labels() -> dict[str, bytes]:
    """All ids, in MAT-files."""
    return {
        f"trainval/{name}.mat": mat(LabelMap=raw_ids(i)) for i, name in enumerate([*TRAIN, *VAL])
    }


def raw_ids(seed: int) -> np.ndarray:
    label = ids(seed, range(1, 460))
    label[0, : len(PUBLISHED)] = list(PUBLISHED)
    return label


def wanted(seed: int) -> np.ndarray:
    """Class i of the 59 is 1 + i, all other ids are 0; by the published list's ids of names."""
    table = np.zeros(460, int)
    table[[2, 59, 284, 308, 458]] = [
        1 + INFO.class_names.index(name)
        for name in ("aeroplane", "car", "person", "pottedplant", "wood")
    ]
    found = table[raw_ids(seed)]
    return np.where(np.isin(raw_ids(seed), list(PUBLISHED)), found, -1)


@pytest.mark.parametrize("packed", [True, False])
def test_published_labels(tmp_path, packed):
    files = voc_files(TRAIN, VAL, year=2010)
    folder = tmp_path / "raw"
    folder.mkdir()
    if packed:
        write_tar(folder / "VOCtrainval_03-May-2010.tar", files)
        write_tar(folder / "trainval.tar.gz", published_labels())
    else:
        write_unpacked(folder, {**files, **published_labels()})
    for name in ("pascal_context", "pascal_context_60"):
        flaxseg.data.prepare(name, tmp_path / "data", folder, progress=False)
        for split, seeds, all_ids in (("train", (0, 1), TRAIN), ("val", (2,), VAL)):
            records = list(flaxseg.data.open_split(name, split, tmp_path / "data"))
            assert [record["id"] for record in records] == all_ids
            for record, seed in zip(records, seeds, strict=True):
                known = wanted(seed) >= 0
                expected = wanted(seed)[known]
                if name == "pascal_context":
                    expected = np.where(expected == 0, 255, expected - 1)
                np.testing.assert_array_equal(record["label"][known], expected)


def test_labels_converted_to_png(tmp_path):
    """As MMSegmentation's converter writes them: 0 for background, its own lists."""
    files = voc_files(TRAIN, VAL, year=2010)
    root = "VOCdevkit/VOC2010"
    for i, name in enumerate([*TRAIN, *VAL]):
        files[f"{root}/SegmentationClassContext/{name}.png"] = png(ids(i, range(60)))
    files[f"{root}/ImageSets/SegmentationContext/train.txt"] = f"{TRAIN[1]}\n".encode()
    files[f"{root}/ImageSets/SegmentationContext/val.txt"] = f"{VAL[0]}\n".encode()
    write_unpacked(tmp_path / "raw", files)
    for name, offset in (("pascal_context", 1), ("pascal_context_60", 0)):
        flaxseg.data.prepare(name, tmp_path / "data", tmp_path / "raw", progress=False)
        (record,) = flaxseg.data.open_split(name, "train", tmp_path / "data")
        assert record["id"] == TRAIN[1]
        raw = ids(1, range(60)).astype(int)
        np.testing.assert_array_equal(
            record["label"], np.where((raw == 0) & (offset == 1), 255, raw - offset)
        )


def test_ids_and_names_that_nobody_knows(tmp_path):
    strange = raw_ids(0)
    strange[3, :4] = 460
    labels = {**published_labels(), f"trainval/{TRAIN[0]}.mat": mat(LabelMap=strange)}
    labels["labels.txt"] = "".join(f"{i}: {name}\n" for i, name in PUBLISHED.items()).encode()
    write_unpacked(tmp_path / "raw", {**voc_files(TRAIN, VAL, year=2010), **labels})
    with pytest.raises(DataError) as caught:
        flaxseg.data.prepare("pascal_context", tmp_path / "data", tmp_path / "raw", progress=False)
    message = str(caught.value)
    assert f"trainval/{TRAIN[0]}.mat: label ids outside the map: 460 (4 pixels); known" in message
    # One of ours is written in two words there.
    assert "labels.txt: 54 names are not as expected: id 9 is None, wanted 'bag'" in message


def test_names_and_ids_are_in_the_order_of_the_alphabet():
    """As the published list is, so a slip in either column would show."""
    raw, names = zip(*pascal_context._CLASSES, strict=True)
    assert list(raw) == sorted(set(raw))
    assert list(names) == sorted(set(names))
    assert len(names) == 59
    # MMSegmentation's converter has the same 59 ids; their sum is a check on slips.
    assert sum(raw) == 12378


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"(?s)no lasting address.*--manual_dir"):
        flaxseg.data.prepare("pascal_context", tmp_path, progress=False)
    write_unpacked(tmp_path / "raw", voc_files(TRAIN, VAL, year=2010))
    with pytest.raises(DataError, match=r"labels\. .*trainval\.tar\.gz"):
        flaxseg.data.prepare("pascal_context", tmp_path, tmp_path / "raw", progress=False)
