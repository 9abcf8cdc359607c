"""Random access to prepared records."""

import concurrent.futures
import pickle

import numpy as np
import pytest
from PIL import Image

import flaxseg.data
from flaxseg.errors import ConfigError, DataError


def test_records_are_the_published_files_in_order(camvid_dir):
    records = flaxseg.data.open_split("camvid", "train", camvid_dir)
    folder = camvid_dir.parent / "published"
    names = [line.split()[0].rsplit("/", 1)[1] for line in (folder / "train.txt").open()]
    assert [record["id"] for record in records] == [name.removesuffix(".jpg") for name in names]
    assert len(records) == 7
    for name, record in zip(names, records, strict=True):
        raw = np.array(Image.open(folder / "trainannot" / name.replace("jpg", "png")))
        assert (raw == 11).any() or name != names[0]
        np.testing.assert_array_equal(record["label"], np.where(raw == 11, 255, raw))
        np.testing.assert_array_equal(
            record["image"], np.array(Image.open(folder / "train" / name))
        )
        assert isinstance(record["id"], str)


def test_indices_and_slices(camvid_dir):
    records = flaxseg.data.open_split("camvid", "train", camvid_dir)
    assert records[-1]["id"] == records[6]["id"] == records[np.int64(6)]["id"] == "train_006"
    assert [r["id"] for r in records[5:]] == ["train_005", "train_006"]
    for index in (7, -8):
        with pytest.raises(IndexError, match=f"record {index} of 7 in camvid/train"):
            records[index]


def test_parts_of_splits(camvid_dir):
    def names(split):
        return [record["id"] for record in flaxseg.data.open_split("camvid", split, camvid_dir)]

    train, val = names("train"), names("val")
    assert names("train[:2]") == train[:2]
    assert names("train[5:]+val") == train[5:] + val
    assert len(flaxseg.data.open_split("camvid", "train[:50%]", camvid_dir)) in (3, 4)
    with pytest.raises(ConfigError, match="no split 'trai'; its splits: train, val, test"):
        names("train+trai[:2]")
    for wrong in ("train[:2", "train[:8]", "train[3:3]", "train[a:]"):
        with pytest.raises(ConfigError, match=r"no part of a split: .*train\[:100\]'.*n \(7 rec"):
            names(wrong)


def test_records_travel_to_other_processes_and_threads(camvid_dir):
    records = flaxseg.data.open_split("camvid", "val", camvid_dir)
    wanted = [r["image"] for r in records]
    copied = pickle.loads(pickle.dumps(records))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for a, b in zip(pool.map(lambda i: copied[i]["image"], range(3)), wanted, strict=True):
                np.testing.assert_array_equal(a, b)


def test_unknown_names_are_explained(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean 'camvid'\? Data sets: ade20k, camvid"):
        flaxseg.data.open_split("camvidd", "test", tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean 'voc_segmentation'\?"):
        flaxseg.data.dataset_info("voc")
    with pytest.raises(ConfigError, match=r"camvid, .*, folder \(your own images"):
        flaxseg.data.dataset_info("")
    with pytest.raises(DataError, match=r"prepare-data camvid --data_dir=.*--manual_dir"):
        flaxseg.data.open_split("camvid", "test", tmp_path)


CLASSES = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 19,
    "pascal_context": 59,
    "pascal_context_60": 60,
    "shapes": 9,
    "voc_segmentation": 21,
}


def test_facts_of_the_data_sets():
    assert flaxseg.data.list_datasets() == list(CLASSES)
    for name, number in CLASSES.items():
        info = flaxseg.data.dataset_info(name)
        assert info.name == name
        assert info.num_classes == number == len(set(info.class_names))
        # Two classes of ADE20K are published with one colour.
        assert len(set(info.class_colors)) == number - (name == "ade20k")
        assert all(0 <= channel < 256 for color in info.class_colors for channel in color)
        assert info.splits[0] == "train"
        assert set(info.split_sizes) == set(info.splits)
        assert info.citation
        assert info.license
        assert info.homepage or name == "shapes"
    camvid = flaxseg.data.dataset_info("camvid")
    assert camvid.label_map[11] == 255
    assert camvid.class_names[8] == "Car"


def test_real_camvid_labels_fit_the_class_names(tmp_path, shared_dir):
    """Four real images: sky is at the top, road at the bottom, void becomes 255."""
    real = shared_dir / "data" / "camvid"
    folder = tmp_path / "some"
    for split, number in (("train", 4), ("val", 2), ("test", 2)):
        lines = (real / f"{split}.txt").read_text().splitlines()[:number]
        for line in lines:
            for word in line.split():
                sub, name = word.split("/")[-2:]
                (folder / sub).mkdir(parents=True, exist_ok=True)
                (folder / sub / name).symlink_to(real / sub / name)
        (folder / f"{split}.txt").write_text("\n".join(lines))
    flaxseg.data.prepare("camvid", tmp_path / "data", folder, progress=False)
    info = flaxseg.data.dataset_info("camvid")
    labels = [r["label"] for r in flaxseg.data.open_split("camvid", "train", tmp_path / "data")]
    names = np.array(info.class_names)
    for label in labels:
        assert label.shape == (360, 480)
        assert label[label != 255].max() < info.num_classes
        top, bottom = label[:60], label[-60:]
        assert names[np.bincount(top[top < 255]).argmax()] in ("Sky", "Building", "Tree")
        assert names[np.bincount(bottom[bottom < 255]).argmax()] == "Road"
    assert any((label == 255).any() for label in labels)


@pytest.mark.slow
def test_the_whole_of_real_camvid(tmp_path, shared_dir):
    real = shared_dir / "data" / "camvid"
    flaxseg.data.prepare("camvid", tmp_path, real, progress=False)
    info = flaxseg.data.dataset_info("camvid")
    counts = np.zeros(256, np.int64)
    for split in info.splits:
        records = flaxseg.data.open_split("camvid", split, tmp_path)
        assert len(records) == info.split_sizes[split]
        if split == "test":
            for record in records:
                counts += np.bincount(record["label"].ravel(), minlength=256)
    share = counts / counts.sum()  # against the published table of the test split
    assert share[[0, 3, 10, 255]] == pytest.approx([0.17066, 0.25807, 0.00189, 0.03833], abs=1e-5)
    flaxseg.data.verify_prepared("camvid", tmp_path)
