"""Cityscapes: the official zips, label ids to train ids and back."""

import numpy as np
import peers
import pytest
from PIL import Image
from published_archives import ids, random_image, write_unpacked, write_zip
from published_files import png

import flaxseg.data
from flaxseg.data.sets import cityscapes
from flaxseg.errors import DataError

INFO = flaxseg.data.dataset_info("cityscapes")
FRAMES = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "zurich_000121_000019"],
    "val": ["frankfurt_000000_000294", "munster_000000_000019"],
    "test": ["berlin_000000_000019"],
    "train_extra": ["augsburg_000000_000000", "troisdorf_000000_000073"],
}


def image_files(*splits) -> dict[str, bytes]:
    files = {"README": b"read me", "license.txt": b"terms"}
    for split in splits:
        for frame in FRAMES[split]:
            seed = sum(map(ord, frame))
            name = f"leftImg8bit/{split}/{frame.split('_')[0]}/{frame}_leftImg8bit.png"
            files[name] = png(random_image(seed))
    return files


def label(frame: str, kind: str) -> np.ndarray:
    seed = sum(map(ord, frame + kind))
    values = range(4) if frame.startswith("berlin") else range(34)
    return ids(seed, values)


def label_files(kind: str, *splits) -> dict[str, bytes]:
    files = {"README": b"read me", "license.txt": b"terms"}
    for split in splits:
        for frame in FRAMES[split]:
            stem = f"{kind}/{split}/{frame.split('_')[0]}/{frame}_{kind}"
            files[f"{stem}_labelIds.png"] = png(label(frame, kind))
            files[f"{stem}_instanceIds.png"] = png(label(frame, kind).astype(np.uint16) * 1000)
            files[f"{stem}_color.png"] = png(random_image(1))
            files[f"{stem}_polygons.json"] = b"{}"
    return files


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cityscapes")
    write_zip(folder / "leftImg8bit_trainvaltest.zip", image_files("train", "val", "test"))
    write_zip(folder / "gtFine_trainvaltest.zip", label_files("gtFine", "train", "val", "test"))
    write_zip(folder / "leftImg8bit_trainextra.zip", image_files("train_extra"))
    write_zip(folder / "gtCoarse.zip", label_files("gtCoarse", "train", "val", "train_extra"))
    return folder


def official(raw: np.ndarray) -> np.ndarray:
    """Train ids by the published table of cityscapesScripts, helpers/labels.py."""
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    table = {raw_id: train for train, raw_id in enumerate(evaluated)}
    return np.vectorize(lambda i: table.get(int(i), 255))(raw)


def test_the_official_zips(archives, tmp_path):
    flaxseg.data.prepare("cityscapes", tmp_path, archives, progress=False)
    coarse = {"train_coarse": FRAMES["train"], "val_coarse": FRAMES["val"]}
    assert set(INFO.splits) == {*FRAMES, *coarse}
    for split, frames in {**FRAMES, **coarse}.items():
        kind = "gtFine" if split in ("train", "val", "test") else "gtCoarse"
        records = list(flaxseg.data.open_split("cityscapes", split, tmp_path))
        assert [record["id"] for record in records] == frames
        for record, frame in zip(records, frames, strict=True):
            np.testing.assert_array_equal(record["label"], official(label(frame, kind)))
            np.testing.assert_array_equal(record["image"], random_image(sum(map(ord, frame))))
    blank = flaxseg.data.open_split("cityscapes", "test", tmp_path)[0]["label"]
    assert (blank == 255).all()


def test_unpacked_folders_without_the_optional_archives(tmp_path, capsys):
    files = {**image_files("train", "val"), **label_files("gtFine", "train", "val")}
    write_unpacked(tmp_path / "raw", files)
    flaxseg.data.prepare("cityscapes", tmp_path / "data", tmp_path / "raw")
    shown = capsys.readouterr().err
    assert "without test, for which leftImg8bit/test and gtFine/test" in shown
    assert "without train_extra, for which leftImg8bit_trainextra.zip and gtCoarse.zip" in shown
    assert "without train_coarse, val_coarse, for which gtCoarse.zip" in shown
    manifest = flaxseg.data.read_manifest("cityscapes", tmp_path / "data")
    assert manifest.splits == {"train": 3, "val": 2}


def test_what_is_wrong_is_named(tmp_path):
    images, labels = image_files("train", "val"), label_files("gtFine", "train", "val")
    strange = label(FRAMES["val"][0], "gtFine")
    strange[2, :4] = 34
    labels["gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png"] = png(strange)
    del labels["gtFine/train/zurich/zurich_000121_000019_gtFine_labelIds.png"]
    del images["leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"]
    write_zip(tmp_path / "leftImg8bit_trainvaltest.zip", images)
    write_zip(tmp_path / "gtFine_trainvaltest.zip", labels)
    with pytest.raises(DataError) as caught:
        flaxseg.data.prepare("cityscapes", tmp_path / "data", tmp_path, progress=False)
    for words in (
        "3 problems",
        f"{tmp_path}/gtFine_trainvaltest.zip/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_"
        "labelIds.png: label ids outside the map: 34 (4 pixels); known ids are 0..33",
        "zurich_000121_000019_gtFine_labelIds.png: the label of 'zurich_000121_000019' is missing",
        "aachen_000001_000019_leftImg8bit.png: the image of 'aachen_000001_000019' is missing",
    ):
        assert words in str(caught.value), words


def test_it_is_not_downloaded_and_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"(?s)with an account: get leftImg8bit_.*--manual_dir"):
        flaxseg.data.prepare("cityscapes", tmp_path, progress=False)
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"(?s)it holds nothing.*leftImg8bit_trainvaltest.zip"):
        flaxseg.data.prepare("cityscapes", tmp_path, tmp_path / "raw", progress=False)


def test_train_ids_back_to_label_ids():
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    back = flaxseg.data.cityscapes_label_ids(official(raw))
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, np.where(official(raw) == 255, 0, raw))
    np.testing.assert_array_equal(flaxseg.data.cityscapes_label_ids([[18, 255]]), [[33, 0]])
    with pytest.raises(
        ValueError, match=r"train ids 19 \(2 pixels\), 200 \(1 pixels\); .*0..18, 2"
    ):
        flaxseg.data.cityscapes_label_ids(np.array([19, 200, 19, 3]))
    with pytest.raises(ValueError, match=r"-1 \(1 pixels\)"):
        flaxseg.data.cityscapes_label_ids(np.array([-1]))
    with pytest.raises(ValueError, match="float32; they must be integers"):
        flaxseg.data.cityscapes_label_ids(np.zeros(3, np.float32))


@pytest.mark.peer
def test_the_table_is_that_of_torchvision():
    """Whose list is the published one; license plates, -1, are in no label file."""
    classes = peers.import_torchvision().datasets.Cityscapes.classes
    assert INFO.label_map == {
        c.id: 255 if c.train_id in (-1, 255) else c.train_id for c in classes if c.id >= 0
    }
    evaluated = sorted((c.train_id, c) for c in classes if 0 <= c.train_id < 255)
    assert [c.name for _, c in evaluated] == list(INFO.class_names)
    assert [c.color for _, c in evaluated] == list(INFO.class_colors)


def test_images_of_labels_have_the_published_colors():
    """Road is purple, cars are dark blue."""
    colors = np.array(INFO.class_colors, np.uint8)[cityscapes.to_label_ids(np.array([0])) * 0]
    assert Image.fromarray(colors[None]).getpixel((0, 0)) == (128, 64, 128)
    assert INFO.class_colors[INFO.class_names.index("car")] == (0, 0, 142)
