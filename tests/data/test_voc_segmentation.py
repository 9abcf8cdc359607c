"""VOC 2012 and SBD: the published archives, the lists of the splits, and real files."""

import io

import numpy as np
import pytest
from PIL import Image
from published_archives import (
    VOC_IDS,
    ids,
    palette_png,
    sbd_files,
    sbd_mat,
    voc_files,
    write_tar,
    write_unpacked,
)

import flaxseg.data
from flaxseg.data.sets import voc_segmentation
from flaxseg.data.sets.voc_seg11valid import SEG11VALID
from flaxseg.errors import ConfigError, DataError

INFO = flaxseg.data.dataset_info("voc_segmentation")
TRAIN = ["2007_000032", "2008_000008", "2009_000100"]
VAL = ["2007_000033", "2008_000051", "2011_003271"]
OTHERS = ["2008_000015", "2010_000042"]
# As in the published lists, SBD has images of VOC's train and val in both of its own.
SBD_TRAIN = [OTHERS[0], TRAIN[1], VAL[1]]
SBD_VAL = [OTHERS[1], VAL[0], TRAIN[0]]


def prepare(folder, data_dir, **options):
    return flaxseg.data.prepare(
        "voc_segmentation", data_dir, folder, **{"progress": False, **options}
    )


def names(split, data_dir):
    return [r["id"] for r in flaxseg.data.open_split("voc_segmentation", split, data_dir)]


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    write_tar(folder / "VOCtrainval_11-May-2012.tar", voc_files(TRAIN, VAL, OTHERS))
    write_tar(folder / "benchmark.tgz", sbd_files(SBD_TRAIN, SBD_VAL))
    return folder


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare(archives, data_dir)
    return data_dir


def test_the_splits_are_those_of_the_lists(prepared):
    wanted = {
        "train": TRAIN,
        "val": VAL,
        "trainval": TRAIN + VAL,
        "sbd": OTHERS,
        "train_aug": TRAIN + OTHERS,
        "seg11valid": [VAL[0], VAL[2]],
    }
    assert set(INFO.splits) == set(wanted)
    for split, ids_of_split in wanted.items():
        assert names(split, prepared) == ids_of_split, split
    flaxseg.data.verify_prepared("voc_segmentation", prepared)


def test_each_label_is_of_its_own_source(prepared):
    """VOC's with void borders, also where SBD labels the image too; SBD's elsewhere."""
    voc = [ids(i, VOC_IDS) for i in range(6)]
    sbd = [ids(1000 + i, range(21)) for i in (0, 3)]
    records = flaxseg.data.open_split("voc_segmentation", "train_aug", prepared)
    for record, wanted in zip(records, [*voc[:3], *sbd], strict=True):
        np.testing.assert_array_equal(record["label"], wanted)
        assert record["image"].shape == (16, 20, 3)
    for record, i in zip(
        flaxseg.data.open_split("voc_segmentation", "seg11valid", prepared), (3, 5), strict=True
    ):
        np.testing.assert_array_equal(record["label"], voc[i])
    assert (voc[0] == 255).any()


def test_parts_of_combined_splits(prepared):
    together = TRAIN + OTHERS
    assert names("train_aug[1:4]", prepared) == together[1:4]
    assert names("train_aug[3:]+val[:1]", prepared) == together[3:] + VAL[:1]
    assert names("train_aug[40%:]", prepared) == together[2:]
    assert names("train_aug[-1:]", prepared) == together[-1:]
    assert names("val+trainval[:2]", prepared) == VAL + TRAIN[:2]
    records = flaxseg.data.open_split("voc_segmentation", "train_aug[1:4]", prepared)
    assert len(records) == 3
    assert records[-1]["id"] == together[3]
    for wrong in ("train_aug[9:]", "train_aug[3:3]", "train_aug[x:]"):
        with pytest.raises(ConfigError, match=r"no part of a split: .*train \(3 rec"):
            names(wrong, prepared)


def test_unpacked_folders_and_labels_handed_on_as_png(tmp_path, prepared):
    """The same records, whoever unpacked the files and converted SBD's labels."""
    files = voc_files(TRAIN, VAL, OTHERS)
    write_unpacked(tmp_path / "a", {**files, **sbd_files(SBD_TRAIN, SBD_VAL)})
    converted = {
        f"VOCdevkit/VOC2012/SegmentationClassAug/{name}.png": palette_png(ids(seed, range(21)))
        for name, seed in ((OTHERS[0], 1000), (TRAIN[1], 1), (OTHERS[1], 1003))
    }
    write_unpacked(tmp_path / "b", {**files, **converted})
    (tmp_path / "b" / "VOCdevkit" / "VOC2012").rename(tmp_path / "b" / "VOC2012")
    for folder in (tmp_path / "a", tmp_path / "b" / "VOC2012"):
        pairs, problems = voc_segmentation.find_pairs(folder)
        assert not problems
        assert {split: [pair.id for pair in pairs[split]] for split in pairs} == {
            split: names(split, prepared) for split in ("train", "val", "sbd", "seg11valid")
        }
        for pair, seed in zip(pairs["sbd"], (1000, 1003), strict=True):
            np.testing.assert_array_equal(pair.decode(pair.label_bytes()), ids(seed, range(21)))


def test_without_sbd_what_needs_it_is_left_out_and_named(tmp_path, capsys):
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", voc_files(TRAIN, VAL))
    prepare(tmp_path, tmp_path / "data", progress=True)
    shown = capsys.readouterr().err
    assert "without train_aug, sbd, for which SBD's benchmark.tgz" in shown
    assert "train has 3 images of 1464, val has 3 images of 1449" in shown
    assert names("trainval", tmp_path / "data") == TRAIN + VAL
    with pytest.raises(DataError, match=r"'train_aug' .*left out .*SBD's benchmark.tgz.*delete"):
        names("train_aug[:2]", tmp_path / "data")


def test_what_is_wrong_is_named_with_archive_and_file(tmp_path):
    strange = ids(0, range(21))
    strange[0, :7] = 40
    bad_sbd = ids(1, range(21))
    bad_sbd[1, :3] = 255
    files = voc_files(TRAIN, VAL, OTHERS, labels={TRAIN[0]: strange})
    del files[f"VOCdevkit/VOC2012/JPEGImages/{VAL[2]}.jpg"]
    files["VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"] += b"../../etc/passwd\n"
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", files)
    sbd = sbd_files(SBD_TRAIN, SBD_VAL, labels={OTHERS[1]: bad_sbd + 30})
    sbd[f"benchmark_RELEASE/dataset/cls/{OTHERS[0]}.mat"] = sbd_mat(ids(2, range(21)))[:-9]
    write_tar(tmp_path / "benchmark.tgz", sbd)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, tmp_path / "data")
    message = str(caught.value)
    voc, cls = tmp_path / "VOCtrainval_11-May-2012.tar", "benchmark.tgz/benchmark_RELEASE/dataset"
    for words in (
        f"{voc}/VOCdevkit/VOC2012/SegmentationClass/{TRAIN[0]}.png: label ids outside the map: "
        "40 (7 pixels); known ids are 0..20, 255",
        f"{voc}/VOCdevkit/VOC2012/JPEGImages/{VAL[2]}.jpg: the image of '{VAL[2]}' is missing",
        "val.txt, line 4: wanted an id, got '../../etc/passwd'",
        f"{cls}/cls/{OTHERS[0]}.mat: the MAT-file ends early",
        f"{cls}/cls/{OTHERS[1]}.mat: label ids outside the map: 29 (3 pixels)",
    ):
        assert words in message, words
    assert not flaxseg.data.is_prepared("voc_segmentation", tmp_path / "data")


def test_lists_that_are_none(tmp_path):
    """Images, nothing, and a file without end."""
    for content, words in (
        (b"\x89PNG\xff", "val.txt: the list cannot be read: not text in UTF-8"),
        (b"\n\n", "val.txt: the list names no image"),
        (b"a\n" * (1 << 23) + b"b", "val.txt: the list cannot be read: more than 16777216 bytes"),
    ):
        files = voc_files(TRAIN, VAL)
        files["VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"] = content
        write_unpacked(tmp_path, files)
        _, problems = voc_segmentation.find_pairs(tmp_path)
        assert len(problems) == 1
        assert words in problems[0]


def test_a_image_with_notes_of_turning_is_read_as_its_label_was_drawn(tmp_path):
    """Upright as stored; as another program turns it, it would not fit its label."""
    files = voc_files(TRAIN, VAL)
    name = f"VOCdevkit/VOC2012/JPEGImages/{TRAIN[1]}.jpg"
    image = Image.open(io.BytesIO(files[name]))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    image.save(turned, "JPEG", exif=exif, quality=95)
    files[name] = turned.getvalue()
    write_tar(tmp_path / "VOCtrainval_11-May-2012.tar", files)
    prepare(tmp_path, tmp_path / "data")
    record = flaxseg.data.open_split("voc_segmentation", "train", tmp_path / "data")[1]
    np.testing.assert_array_equal(record["image"], np.array(Image.open(turned)))


def test_a_folder_without_voc_says_what_is_wanted(tmp_path):
    (tmp_path / "VOC2007").mkdir()
    with pytest.raises(DataError, match=r"(?s)it holds VOC2007.*VOCtrainval_11-May-2012.tar"):
        prepare(tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match="is not a folder"):
        prepare(tmp_path / "nowhere", tmp_path / "data")


def full_lists(shared_dir):
    folder = shared_dir / "data" / "voc2012_sample" / "lists_full"
    return {path.stem: path.read_text().split() for path in folder.iterdir()}


def test_the_official_lists_give_the_numbers_of_the_papers(tmp_path, shared_dir):
    """SBD's own lists are made here of what it must hold, divided at random, with images of
    VOC's train and val in both, as many as the real lists have (1,134 and 1,103)."""
    lists = full_lists(shared_dir)
    only_sbd = sorted(set(lists["train_aug"]) - set(lists["train"]))
    listed = np.array([*only_sbd, *lists["train"][:1134], *lists["val"][:1103]])
    assert len(listed) == 8498 + 2857
    np.random.default_rng(0).shuffle(listed)
    voc = tmp_path / "VOC2012" / "ImageSets" / "Segmentation"
    voc.mkdir(parents=True)
    for split in ("train", "val", "trainval"):
        (voc / f"{split}.txt").write_text("\n".join(lists[split]))
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    (sbd / "train.txt").write_text("\n".join(listed[:8498]))
    (sbd / "val.txt").write_text("\n".join(listed[8498:]))
    pairs, problems = voc_segmentation.find_pairs(tmp_path)
    assert not problems
    stored = {split: [pair.id for pair in of_split] for split, of_split in pairs.items()}
    for split, number in INFO.split_sizes.items():
        found = [i for part in INFO.combined.get(split, (split,)) for i in stored[part]]
        assert len(found) == len(set(found)) == number, split
        if split in lists:
            assert set(found) == set(lists[split])
    assert not set(stored["seg11valid"]) & set(lists["train_aug"])


def test_seg11valid_is_the_published_list(shared_dir):
    """8,832 characters with ends of lines is the size of data/pascal/seg11valid.txt of
    BVLC/caffe."""
    assert sum(len(name) + 1 for name in SEG11VALID) == 8832
    assert set(full_lists(shared_dir)["val"]) > SEG11VALID


def test_real_images(tmp_path, shared_dir):
    """Four pairs of VOC, as the README beside them describes them."""
    real = shared_dir / "data" / "voc2012_sample" / "VOCdevkit" / "VOC2012"
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part in ("JPEGImages", "SegmentationClass"):
        (folder / part).symlink_to(real / part)
    all_ids = (real / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    (lists / "train.txt").write_text(all_ids[0])
    (lists / "val.txt").write_text("\n".join(all_ids[1:]))
    prepare(tmp_path, tmp_path / "data")
    wanted = {
        "2007_004189": {"background", "dog"},
        "2007_006449": {"background", "bicycle"},
        "2008_002536": {"background", "dog", "sheep"},
        "2010_005582": {"background", "bottle", "person"},
    }
    for record in flaxseg.data.open_split("voc_segmentation", "trainval", tmp_path / "data"):
        found = {INFO.class_names[i] for i in np.unique(record["label"]) if i != 255}
        assert found == wanted.pop(record["id"])
        assert 0.03 < (record["label"] == 255).mean() < 0.12
    assert not wanted
    assert names("seg11valid", tmp_path / "data") == ["2007_006449"]
    palette = Image.open(real / "SegmentationClass" / "2007_004189.png").getpalette()
    assert [c for color in flaxseg.classes.voc_colors(256) for c in color] == palette
    assert [c for color in INFO.class_colors for c in color] == palette[:63]
