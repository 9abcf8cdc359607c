"""Which mask belongs to which image in one's own folder: never a wrong one, in silence."""

import doctest
import os

import numpy as np
import pytest
from own_folder import TOML, encoded, image_of, label_of, write_folder

import flaxseg.data
from flaxseg.data.raw import verification
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.sets import folder_pairs
from flaxseg.errors import ConfigError, DataError


def verify(folder):
    return flaxseg.data.verify_data(f"folder:{folder}", progress=False)


def labels(folder, data_dir, split="train"):
    """Prepares a folder; returns the labels of a split by the last part of their ids."""
    flaxseg.data.prepare("folder", data_dir, folder, progress=False)
    records = flaxseg.data.open_split(f"folder:{folder}", split, data_dir)
    return {record["id"].rpartition("/")[2]: record["label"] for record in records}


def messages(folder):
    return "\n".join(f"{problem.kind}: {problem}" for problem in verify(folder).errors)


def with_list(folder, *lines, keys=""):
    (folder / "list.txt").write_text("\n".join(lines))
    (folder / "dataset.toml").write_text(f'{keys}\n{TOML}\n[splits]\ntrain = "list.txt"\n')


@pytest.mark.parametrize("line", ["train/{:03d}.png", "train/{:03d}"])
def test_with_a_suffix_only_the_suffixed_mask_counts_in_lists(tmp_path, line):
    folder = write_folder(tmp_path / "toy", {"train": 3})
    for number in range(3):
        (folder / "images" / "train" / f"{number:03d}.jpg").unlink()
        (folder / "images" / "train" / f"{number:03d}.png").write_bytes(encoded(image_of(number)))
        (folder / "masks" / "train" / f"{number:03d}.png").write_bytes(encoded(label_of(9)))
    lines = [line.format(number) for number in range(3)]
    with_list(folder, *lines, keys='mask_suffix = "_checked"')
    assert messages(folder).count("_checked.png: the label of") == 3
    for number in range(3):
        checked = folder / "masks" / "train" / f"{number:03d}_checked.png"
        checked.write_bytes(encoded(label_of(number)))
    found = labels(folder, tmp_path / "data")
    for number in range(3):
        np.testing.assert_array_equal(found[f"{number:03d}"], label_of(number))
    # A line that names an unchecked mask contradicts the suffix.
    pair = "images/train/000.png masks/train/000.png"
    with_list(folder, pair, keys='mask_suffix = "_checked"')
    assert "000.png does not end in '_checked', as mask_suffix says" in messages(folder)
    with_list(folder, pair)  # what the message recommends
    np.testing.assert_array_equal(labels(folder, tmp_path / "data")["000"], label_of(9))


def test_with_a_suffix_only_the_suffixed_mask_counts_in_folders(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2}, toml='mask_suffix = "_checked"\n' + TOML)
    masks = folder / "masks" / "train"
    (masks / "000_checked.png").write_bytes(encoded(label_of(5)))
    found = messages(folder)
    assert "001.jpg: the image has no mask (looked for " + str(masks / "001_checked.png") in found
    assert found.count("the name of the mask does not end in '_checked'") == 2


def test_a_list_of_whole_file_names_may_have_the_suffix_of_images(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2}, mask_suffix="_gt")
    for path in list((folder / "images" / "train").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_img"))
    keys = 'image_suffix = "_img"\nmask_suffix = "_gt"'
    for lines in (["train/000", "train/001"], ["train/000_img.jpg", "train/001_img"]):
        with_list(folder, *lines, keys=keys)
        found = list(labels(folder, tmp_path / "data").values())
        for number in range(2):
            np.testing.assert_array_equal(found[number], label_of(number))


def one_folder(root, splits=("train", "train", "valid", "test")):
    """The export of a labelling service: `a.jpg` beside `a_mask.png`."""
    for number, split in enumerate(splits):
        (root / split).mkdir(parents=True, exist_ok=True)
        name = root / split / f"{number}_jpg.rf.0{number}"
        name.with_name(f"{name.name}.jpg").write_bytes(encoded(image_of(number), "JPEG"))
        name.with_name(f"{name.name}_mask.png").write_bytes(encoded(label_of(number)))
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n0, ground\n")
    return root


def test_images_and_masks_may_be_side_by_side_in_one_folder(tmp_path):
    folder = one_folder(tmp_path / "robo")
    with pytest.raises(DataError) as caught:
        flaxseg.data.dataset_info(f"folder:{folder}")
    (folder / "dataset.toml").write_text(str(caught.value).partition("\n\n")[2])  # the draft
    info = flaxseg.data.dataset_info(f"folder:{folder}")
    assert (info.splits, info.eval_split) == (("train", "valid", "test"), "valid")
    assert not verify(folder).errors
    for split, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        found = labels(folder, tmp_path / "data", split)
        for number in numbers:
            np.testing.assert_array_equal(found[f"{number}_jpg.rf.0{number}"], label_of(number))
    (folder / "train" / "0_jpg.rf.00_mask.png").unlink()
    (folder / "train" / "1_jpg.rf.01.jpg").unlink()
    (folder / "train" / "5.jpg").write_bytes(encoded(image_of(5), "JPEG"))
    (folder / "train" / "5_mask.png").write_bytes(encoded(label_of(5)))
    found = messages(folder)
    assert "0_jpg.rf.00.jpg: the image has no mask" in found
    assert "1_jpg.rf.01_mask.png: the mask has no image" in found


def test_one_folder_without_splits_and_with_two_endings(tmp_path):
    folder = one_folder(tmp_path / "robo", ("",) * 4)
    for path in list(folder.glob("*.jpg")):
        path.rename(path.with_stem(f"{path.stem}_mask_image"))
    keys = 'images = "."\nmasks = "."\nmask_suffix = "_mask"\nimage_suffix = "_mask_image"\n'
    (folder / "dataset.toml").write_text(f"{keys}val_share = 0.25\n{TOML}")
    assert not verify(folder).errors
    assert verify(folder).num_pairs == {"train": 3, "val": 1}


def test_an_image_is_never_its_own_mask(tmp_path):
    folder = tmp_path / "toy"
    (folder / "train").mkdir(parents=True)
    for number in range(2):  # grey images, whose values are all ids of classes
        (folder / "train" / f"{number}.png").write_bytes(encoded(label_of(number)))
    one = 'images = "."\nmasks = "."\n'
    (folder / "dataset.toml").write_text(one + TOML)
    with pytest.raises(DataError, match="every image would be its own mask; set mask_suffix to"):
        verify(folder)
    with_list(folder, "train/0", "train/1.png train/1.png", keys=one)
    assert messages(folder).count("would be its own mask; keep masks in a folder of their own") == 2
    # The advice holds the ending that is there.
    (folder / "train" / "0_gt.png").write_bytes(encoded(label_of(0)))
    (folder / "train" / "1_gt.png").write_bytes(encoded(label_of(1)))
    (folder / "dataset.toml").write_text(one + TOML)
    with pytest.raises(DataError, match='set mask_suffix = "_gt"'):
        verify(folder)
    # Through a link, and as a copy.
    (folder / "masks").symlink_to(folder / "train")
    (folder / "dataset.toml").write_text('images = "train"\n' + TOML)
    with pytest.raises(DataError, match="every image would be its own mask"):
        verify(folder)
    folder = write_folder(tmp_path / "copied")
    (folder / "images" / "train" / "000.jpg").unlink()
    (folder / "images" / "train" / "000.png").write_bytes(encoded(label_of(0)))
    assert messages(folder).startswith("image_as_label: ")
    assert "000.png: the file of the label is that of the image" in messages(folder)


def test_two_files_of_one_name_are_not_chosen_between(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 4})
    (folder / "images" / "train" / "000.PNG").write_bytes(encoded(image_of(7)))
    (folder / "masks" / "train" / "001.jpg").write_bytes(encoded(image_of(7), "JPEG"))
    found = messages(folder)
    assert found.count("duplicate_id: ") == 2 == len(found.splitlines())
    with_list(folder, *(f"train/{number:03d}" for number in range(4)))
    found = messages(folder)
    assert "list.txt, line 1: this can mean " in found
    assert "masks/train/001.jpg or " in found
    assert len(found.splitlines()) == 2
    # What is in doubt is left out where problems are allowed.
    for with_folders in (False, True):
        if with_folders:
            (folder / "dataset.toml").write_text(TOML)
        data_dir = tmp_path / f"data {with_folders}"
        flaxseg.data.prepare("folder", data_dir, folder, progress=False, allow_problems="all")
        assert list(labels(folder, data_dir)) == ["002", "003"]
    with_list(folder, "train/000.jpg", "train/001.png")
    np.testing.assert_array_equal(labels(folder, tmp_path / "data")["001"], label_of(1))


def test_names_in_subfolders_do_not_mix(tmp_path):
    folder = tmp_path / "toy"
    for number, place in enumerate(("train/a", "train/b", "train")):
        for kind in ("images", "masks"):
            (folder / kind / place).mkdir(parents=True, exist_ok=True)
        (folder / "images" / place / "0.jpg").write_bytes(encoded(image_of(number), "JPEG"))
        (folder / "masks" / place / "0.png").write_bytes(encoded(label_of(number)))
    (folder / "dataset.toml").write_text(TOML)
    (folder / "masks" / "train" / "b" / "0.png").unlink()
    assert "images/train/b/0.jpg: the image has no mask" in messages(folder)
    assert "1 of" not in messages(folder)
    with_list(folder, "train/a/0", "train/b/0", "train/0")
    assert "masks/train/b/0.png: the label of" in messages(folder)


def test_a_mask_of_two_images_is_a_warning(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2})
    with_list(
        folder,
        "images/train/000.jpg masks/train/000.png",
        "images/train/001.jpg masks/train/000.png",
    )
    report = verify(folder)
    assert not report.errors
    assert "000.png: this is the mask of " in str(report.warnings[0])


def test_suffixes_match_whatever_their_case(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 4})
    for path in list(folder.glob("*/train/*")):
        path.rename(path.with_suffix(path.suffix.upper()))
    with_list(
        folder,
        "train/000",
        "train/001.jpg",
        "train/002.JPG",
        "images/train/003.jpg masks/train/003.png",
    )
    found = labels(folder, tmp_path / "data")
    for number in range(4):
        np.testing.assert_array_equal(found[f"{number:03d}"], label_of(number))
    (folder / "dataset.toml").write_text(TOML)
    assert not verify(folder).errors


def test_lists_that_are_no_plain_text(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2})
    with_list(folder)
    (folder / "list.txt").write_bytes("train/000\ntrain/001\n".encode("utf-16"))
    assert "list.txt: the list of split 'train' cannot be read: not text in UTF-8" in messages(
        folder
    )
    (folder / "list.txt").write_bytes(b"train/000\0train/001\0")
    assert "list.txt, line 1: wanted 'IMAGE MASK' or 'NAME'" in messages(folder)
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbftrain/000\r\ntrain/001\r\n")
    assert not verify(folder).errors
    (folder / "list.txt").write_text("x" * 5000)
    assert "the image of" in messages(folder)


def test_file_names_that_are_not_utf_8_are_named(tmp_path):
    folder = write_folder(tmp_path / "toy")
    for kind, suffix in (("images", b".jpg"), ("masks", b".png")):
        path = os.fsencode(folder / kind / "train")
        os.rename(path + b"/000" + suffix, path + b"/caf\xe9" + suffix)
    found = messages(folder)
    assert found.count("file_name: ") == 2
    assert r"images/train/caf\xe9.jpg: the name is not UTF-8; rename the file" in found
    with pytest.raises(DataError, match=r"caf\\xe9\.jpg.*\n.*caf\\xe9\.png"):
        labels(folder, tmp_path / "data")
    for kind, suffix in (("images", b".jpg"), ("masks", b".png")):
        path = os.fsencode(folder / kind / "train")
        os.rename(path + b"/caf\xe9" + suffix, path + "/café".encode() + suffix)
    np.testing.assert_array_equal(labels(folder, tmp_path / "data")["café"], label_of(0))


def test_published_files_whose_names_are_not_utf_8_are_named(camvid_folder, tmp_path):
    strange = tmp_path / os.fsdecode(b"caf\xe9.png")
    strange.write_bytes(encoded(label_of(0)))
    (camvid_folder / "val" / os.fsdecode(b"na\xefve.jpg")).write_bytes(b"")
    info = flaxseg.data.dataset_info("camvid")
    pairs = {"train": [Pair("a", strange, tmp_path / "none.png")]}
    report = verification.examine(pairs, info)
    assert report.unusable["train"] == {0}
    assert rf"{tmp_path}/caf\xe9.png: the name is not UTF-8; rename the file" in report.text()
    report = flaxseg.data.verify_data("camvid", camvid_folder, progress=False)
    assert r"na\xefve.jpg: not in val.txt" in report.text()
    report.text().encode()


def test_folders_whose_path_is_not_utf_8_are_named(tmp_path):
    strange = tmp_path / os.fsdecode(b"jos\xe9")
    folder = write_folder(strange / "toy")
    for use in (verify, lambda folder: labels(folder, tmp_path / "data")):
        with pytest.raises(ConfigError, match=r"jos\\xe9/toy is not UTF-8; rename the folder"):
            use(folder)
    (tmp_path / "link").symlink_to(folder)  # what the message recommends
    report = verify(tmp_path / "link")
    report.text().encode()
    assert not report.errors
    np.testing.assert_array_equal(labels(tmp_path / "link", tmp_path / "data")["000"], label_of(0))
    with pytest.raises(ConfigError, match="path that is not UTF-8; give another with --data_dir"):
        labels(tmp_path / "link", strange / "data")


@pytest.mark.parametrize(
    ("images", "masks", "keys"),
    [
        ("{}", "{}_mask", 'mask_suffix = "_mask"'),
        ("{}_rgb", "{}", 'image_suffix = "_rgb"'),
        ("{}_img", "{}_gt", 'image_suffix = "_img" and mask_suffix = "_gt"'),
    ],
)
def test_the_endings_that_are_recommended_work(tmp_path, images, masks, keys):
    """Numbers without zeros before them: one name begins as another does."""
    folder = write_folder(tmp_path / "toy", {"train": 12, "val": 3})
    for path in list(folder.glob("*/*/*")):
        form = images if path.parts[-3] == "images" else masks
        path.rename(path.with_stem(form.format(int(path.stem))))
    found = messages(folder)
    assert found.count(f"; set {keys}\n") + found.endswith(f"; set {keys}") == 2, found
    (folder / "dataset.toml").write_text(keys.replace(" and ", "\n") + "\n" + TOML)
    assert not verify(folder).errors
    draft = folder / "dataset.toml"
    draft.unlink()
    with pytest.raises(DataError) as caught:
        verify(folder)
    draft.write_text(str(caught.value).partition("\n\n")[2])
    assert not verify(folder).errors


def test_names_that_no_ending_makes_equal_can_be_paired_by_lists(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 3})
    for path in list(folder.glob("*/train/*")):
        path.rename(path.with_name(f"{path.parts[-3]}_{path.name}"))
    assert "lists with a line 'IMAGE MASK' for each pair" in messages(folder)
    pairs = [f"images/train/images_00{n}.jpg masks/train/masks_00{n}.png" for n in range(3)]
    with_list(folder, *pairs)
    assert not verify(folder).errors


def test_the_examples_of_the_module_run():
    assert doctest.testmod(folder_pairs).failed == 0
