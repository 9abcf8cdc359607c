"""`folder`: one's own images and masks, described by a small file."""

import doctest
import json
import os
import shutil

import numpy as np
import pytest
from image_bytes import png_bytes, png_chunk, tiff_bytes
from own_folder import (
    CLASSES,
    COLORS,
    IGNORED_COLOR,
    SIZE,
    TOML,
    color_png,
    encoded,
    image_of,
    in_colors,
    label_of,
    palette_png,
    write_folder,
)
from PIL import Image
from published_files import jpeg, png

import flaxseg.data
from flaxseg.data.raw import problems
from flaxseg.data.sets import catalog
from flaxseg.errors import ConfigError, DataError
from flaxseg.image_files import read_image

WITH_COLORS = f'mask_values = "colors"\nignore_colors = [{list(IGNORED_COLOR)}]\n{TOML}'


def prepared(folder, data_dir, **options):
    """Prepares a folder; returns a function that opens its splits."""
    flaxseg.data.prepare("folder", data_dir, folder, progress=False, **options)
    return lambda split: flaxseg.data.open_split(f"folder:{folder}", split, data_dir)


def problem_of(folder) -> str:
    with pytest.raises(DataError) as caught:
        flaxseg.data.dataset_info(f"folder:{folder}")
    return str(caught.value)


@pytest.mark.parametrize(
    ("encode_mask", "toml"),
    [
        (png, TOML),
        (palette_png, TOML),
        (color_png, WITH_COLORS),
        # Ids with gaps, two for one class, and 16 bits a pixel.
        (
            lambda label: png(np.array([7, 300, 9, 40], np.uint16)[np.minimum(label, 3)]),
            TOML.replace('"ground"', '"ground"\nids = [7]')
            .replace('"road"', '"road"\nids = [300, 301]')
            .replace('"car"', '"car"\nids = [9]')
            .replace("[[", "ignore_ids = [40]\n[[", 1),
        ),
    ],
    ids=["index", "palette", "colors", "ids"],
)
def test_masks_of_every_kind_give_exactly_the_labels(tmp_path, encode_mask, toml):
    folder = write_folder(tmp_path / "toy", toml=toml, encode_mask=encode_mask)
    open_split = prepared(folder, tmp_path / "data")
    info = flaxseg.data.dataset_info(f"folder:{folder}")
    assert (info.name, info.splits, info.eval_split) == ("toy", ("train", "val"), "val")
    assert (info.class_names, info.class_colors) == (CLASSES, COLORS)
    records = [*open_split("train"), *open_split("val")]
    assert [record["id"] for record in records] == [
        *(f"train/{n:03d}" for n in range(4)),
        *("val/004", "val/005"),
    ]
    for number, record in enumerate(records):
        np.testing.assert_array_equal(record["label"], label_of(number))
        assert abs(record["image"].astype(int) - image_of(number)).mean() < 4  # it is a JPEG


def test_records_have_the_pixels_that_prediction_reads(tmp_path):
    """With transparency, of 16 bits, in other formats and under other suffixes; masks likewise."""
    folder = write_folder(tmp_path / "toy", {"train": 0, "val": 1})
    rng, ids = np.random.default_rng(0), np.minimum(label_of(0), 3)
    deep, rgba = rng.integers(0, 65536, SIZE), rng.integers(0, 256, (*SIZE, 4)).astype(np.uint8)
    some_clear = png_chunk(b"tRNS", bytes([0, 128]))
    colors = png_chunk(b"PLTE", bytes(range(90, 102)))
    images = {
        "0.PNG": png(rgba),
        "1.png": png_bytes(ids[..., None], 2, "palette", colors, some_clear),
        "2.Png": png_bytes(deep[..., None], 16, "grey"),
        "3.tif": tiff_bytes(rgba[..., :3], 8, 2),
        "4.TIFF": tiff_bytes(rgba, 8, 2, extra=(2,)),
        "5.jfif": jpeg(rgba[..., :3].copy()),
        "6.WebP": encoded(rgba, "WEBP"),
        "7.JPE": jpeg(rgba[..., 0].copy()),
    }
    ids[ids == 3] = 0
    masks = [png_bytes(ids[..., None], 2, "grey"), tiff_bytes(ids[..., None], 4, 1), png(ids)]
    for number, (name, content) in enumerate(images.items()):
        (folder / "images" / "train" / name).write_bytes(content)
        stem, suffix = name.split(".")[0], ".TIF" if number % 3 == 1 else ".PNG"
        (folder / "masks" / "train" / f"{stem}{suffix}").write_bytes(masks[number % 3])
    records = prepared(folder, tmp_path / "data")("train")
    assert len(records) == len(images)
    for record, name in zip(records, images, strict=True):
        wanted = read_image(folder / "images" / "train" / name)
        np.testing.assert_array_equal(record["image"], wanted, err_msg=name)
        np.testing.assert_array_equal(record["label"], ids, err_msg=name)


def test_a_palette_mask_can_be_read_by_its_colors(tmp_path):
    def encode(label):
        image = Image.fromarray(in_colors(label)).quantize(4, dither=Image.Dither.NONE)
        path = tmp_path / "palette.png"
        image.save(path)
        assert Image.open(path).mode == "P"
        return path.read_bytes()

    folder = write_folder(tmp_path / "toy", toml=WITH_COLORS, encode_mask=encode)
    record = prepared(folder, tmp_path / "data")("val")[1]
    np.testing.assert_array_equal(record["label"], label_of(5))


def test_a_color_that_nobody_explained_is_named_with_its_pixels(tmp_path):
    folder = write_folder(tmp_path / "toy", toml=WITH_COLORS, encode_mask=color_png)
    strange = in_colors(label_of(1))
    strange[2, :7] = (1, 2, 3)
    strange[5, 5] = (200, 0, 201)
    (folder / "masks" / "train" / "001.png").write_bytes(png(strange))
    report = flaxseg.data.verify_data(f"folder:{folder}", progress=False)
    (problem,) = report.errors
    assert problem.kind == "unknown_colors"
    assert problem.details["colors"] == {"#010203": 7, "#c800c9": 1}
    assert "#010203 (7 pixels), #c800c9 (1 pixels)" in problem.message
    # Smoothed edges are many colours; not all of them fill the line.
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    (folder / "masks" / "train" / "001.png").write_bytes(png(smooth))
    (folder / "images" / "train" / "001.jpg").write_bytes(jpeg(smooth))
    (problem,) = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    assert "without anti-aliasing" in problem.message
    assert len(problem.message) < 600
    assert problem.details["pixels"] == 2000


def test_transparent_and_deep_masks_of_colors_are_refused(tmp_path):
    folder = write_folder(tmp_path / "toy", toml=WITH_COLORS, encode_mask=color_png)
    opaque = np.dstack([in_colors(label_of(0)), np.full(label_of(0).shape, 255, np.uint8)])
    (folder / "masks" / "train" / "000.png").write_bytes(png(opaque))
    assert not flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    opaque[3, 3, 3] = 0
    (folder / "masks" / "train" / "000.png").write_bytes(png(opaque))
    (problem,) = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    assert "transparent in places" in problem.message
    deep = png_bytes(in_colors(label_of(0)).astype(int) * 257, 16, "RGB")
    (folder / "masks" / "train" / "000.png").write_bytes(deep)
    (problem,) = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    assert "RGB values of more than 8 bits, not colours" in problem.message


def test_list_files_in_all_their_forms(tmp_path):
    folder = write_folder(
        tmp_path / "toy",
        {"a b": 2, "": 3},
        toml='mask_suffix = "_m"\n' + TOML + '[splits]\ntrain = "train.txt"\nval = "val.txt"\n',
        mask_suffix="_m",
    )
    (folder / "train.txt").write_text("\ufeff002\n\n003.jpg\n", encoding="utf-8")
    (folder / "val.txt").write_text(
        "images/a b/000.jpg\tmasks/a b/000_m.png\nimages/004.jpg masks/004_m.png\n"
    )
    open_split = prepared(folder, tmp_path / "data")
    for split, ids in (("train", [2, 3]), ("val", [0, 4])):
        for record, number in zip(open_split(split), ids, strict=True):
            np.testing.assert_array_equal(record["label"], label_of(number))
    (folder / "train.txt").write_text("002\n002.jpg\nx.jpg y z\nnothing\n")
    (folder / "val.txt").unlink()
    errors = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    text = "\n".join(map(str, errors))
    for words in (
        "train.txt, line 2: '002.jpg' is in the list twice",
        "train.txt, line 3: wanted 'IMAGE MASK' or 'NAME'",
        "nothing.png: the image of 'train/nothing' is missing",
        "nothing_m.png: the label of 'train/nothing' is missing",
        "val.txt: the list of split 'val' cannot be read",
    ):
        assert words in text, (words, text)
    assert len([e for e in errors if e.kind != "absent_class"]) == 5


def test_names_in_lists_find_suffixes_in_any_case(tmp_path):
    folder = write_folder(
        tmp_path / "toy", {"": 4}, toml=TOML + '[splits]\ntrain = "a.txt"\nval = "b.txt"\n'
    )
    for number, suffix in enumerate(("JPG", "Jpeg", "JFIF", "jpe")):
        for kind, old, new in (("images", "jpg", suffix), ("masks", "png", "PNG")):
            (folder / kind / f"00{number}.{old}").rename(folder / kind / f"00{number}.{new}")
    (folder / "a.txt").write_text("000\n001.jpg\n002.JPG\n")
    (folder / "b.txt").write_text("003\n")
    report = flaxseg.data.verify_data(f"folder:{folder}", progress=False)
    assert (report.num_pairs, report.errors) == ({"train": 3, "val": 1}, ())


def test_a_share_is_held_out_where_nothing_makes_splits(tmp_path):
    folder = write_folder(tmp_path / "toy", {"": 9, "more": 3}, toml="val_share = 0.25\n" + TOML)
    open_split = prepared(folder, tmp_path / "data")
    ids = {split: {record["id"] for record in open_split(split)} for split in ("train", "val")}
    names = {
        split: {name.partition("/")[2] for name in of_split} for split, of_split in ids.items()
    }
    assert (len(names["train"]), len(names["val"])) == (9, 3)
    assert names["train"] | names["val"] == {*(f"{n:03d}" for n in range(9)), "more/009",
                                             "more/010", "more/011"}  # fmt: skip
    # One more image moves at most one other.
    (folder / "images" / "x.jpg").write_bytes(jpeg(image_of(20)))
    (folder / "masks" / "x.png").write_bytes(png(label_of(20)))
    again = {
        record["id"].partition("/")[2] for record in prepared(folder, tmp_path / "data")("val")
    }
    assert len(names["val"] - again) <= 1
    # Without a share the folder would be the only split, and the other images be forgotten.
    (folder / "dataset.toml").write_text(TOML)
    assert "holds images, such as 000.jpg, beside the folders more" in problem_of(folder)
    shutil.rmtree(folder / "images" / "more")
    assert flaxseg.data.dataset_info(f"folder:{folder}").splits == ("train",)


def test_partners_that_do_not_find_each_other(tmp_path):
    folder = write_folder(tmp_path / "toy", mask_suffix="_mask")
    errors = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    assert len(errors) == 2, "one for each split, not one for each file"
    assert 'set mask_suffix = "_mask"' in str(errors[0])
    folder = write_folder(tmp_path / "other")
    (folder / "masks" / "train" / "001.png").rename(folder / "masks" / "train" / "one.png")
    (folder / "images" / "train" / "000.png").write_bytes(png(image_of(0)))
    (folder / "images" / "train" / "b.heic").write_bytes(b"ftypheic")
    (folder / "images" / "train" / "._000.jpg").write_bytes(b"what a Mac leaves")
    (folder / "images" / "train" / "Thumbs.db").write_bytes(b"what Windows leaves")
    found = flaxseg.data.verify_data(f"folder:{folder}", progress=False).errors
    assert sorted(problem.kind for problem in found) == [
        "duplicate_id",
        "missing_file",
        "orphan",
        "undecodable",
    ]
    text = "\n".join(map(str, found))
    assert f"001.jpg: the image has no mask (looked for {folder}/masks/train/001.png)" in text
    assert "one.png: the mask has no image" in text
    assert "b.heic: .heic files are not read; convert it" in text


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path):
    folder = write_folder(tmp_path / "toy", {"": 3}, toml="val_share = 0.4\n" + TOML)
    (folder / "images" / "round").symlink_to(folder / "images")
    report = flaxseg.data.verify_data(f"folder:{folder}", progress=False)
    assert (report.num_pairs, report.errors) == ({"train": 2, "val": 1}, ())


def test_every_mistake_in_the_file_is_named(tmp_path):
    toml = """
    nam = "x"
    name = "bad name"
    val_share = 1.5
    mask_values = "colours"
    [[classes]]
    name = "a"
    ids = [1]
    ignore_ids = [3]
    [[classes]]
    name = "a"
    ids = [1]
    color = [1, 2, 300]
    [splits]
    all = "x.txt"
    """
    message = problem_of(write_folder(tmp_path / "toy", toml=toml))
    for words in (
        "8 problems",
        "no key 'nam'. Did you mean 'name'?",
        "'bad name'; it must begin with a letter",
        "val_share is 1.5",
        'mask_values is \'colours\'; it must be "ids" or "colors"',
        "class 'a': there is no key 'ignore_ids'. It belongs above the first [[classes]]",
        "there are 2 classes named 'a'",
        "the colour is [1, 2, 300]",
        "'all' cannot name a split",
    ):
        assert words in message, (words, message)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[[classes]]\nname = "only"', "there are 1 classes; wanted 2 to 255"),
        ("", "there are 0 classes"),
        ('name = "camvid"\n' + TOML.partition("\n")[2], "is the name of another data set"),
        ("name = toy", "not TOML: Invalid value (at line 1"),
        (TOML.replace('"car"', '"car"\nids = [1]'), "id 1 stands for 'road' and for 'car'"),
        (TOML.replace('"car"', '"car"\nids = [255]'), ""),  # 255 is ignored where no class has it
        ("ignore_ids = [70000]\n" + TOML, "ignore_ids is [70000]"),
        ("ignore_ids = [2]\n" + TOML, "id 2 stands for 'car' and for ignore"),
        ("ignore_colors = []\n" + TOML, 'ignore_colors has a meaning with mask_values = "colors"'),
        ('mask_values = "colors"\nignore_ids = [3]\n' + TOML, "ignore_ids has a meaning with"),
        (WITH_COLORS.replace('"#00c800"', "[10, 20, 30]"), "mask colour (10, 20, 30) stands for"),
        ('images = "pics"\n' + TOML, "there is no folder"),
        ('eval_split = "test"\n' + TOML, "eval_split is 'test'; the splits are train, val"),
        (TOML.replace("color = [10, 20, 30]", ""), "no color is given for 'ground'"),
        (TOML.replace("[200, 0, 200]", "[0, 200, 0]"), "'road' and 'car' have one color, [0, 200"),
        (
            TOML.replace('"car"', r'"c\nr"'),
            "the class name 'c\\nr' holds the control character '\\n'",
        ),
        (TOML.replace('"car"', r'"c\u001b[31mr"'), "control character '\\x1b'"),
        (TOML.replace('"car"', '" "'), "a class name is ' '"),
        (TOML.replace('"car"', "3"), "a class name is 3"),
    ],
)
def test_single_mistakes(tmp_path, toml, words):
    folder = write_folder(tmp_path / "toy", toml=toml)
    if words:
        assert words in problem_of(folder)
    else:
        assert flaxseg.data.dataset_info(f"folder:{folder}").label_map == {0: 0, 1: 1, 255: 2}


@pytest.mark.parametrize(
    ("encode_mask", "wanted"),
    [
        (png, {0: 0, 1: 1, 2: 2, 255: 255}),
        (color_png, None),
        (lambda label: png((label == 1).astype(np.uint8) * 255), {0: 0, 255: 1}),
    ],
)
def test_without_the_file_a_draft_is_offered_that_works(tmp_path, encode_mask, wanted):
    folder = write_folder(tmp_path / "toy", {"": 4}, encode_mask=encode_mask)
    (folder / "dataset.toml").unlink()
    (folder / "masks" / "003.png").write_bytes(b"broken")
    draft = problem_of(folder).partition("\n\n")[2]
    (folder / "dataset.toml").write_text(draft)
    (folder / "masks" / "003.png").write_bytes(encode_mask(label_of(3)))
    info = flaxseg.data.dataset_info(f"folder:{folder}")
    assert info.splits == ("train", "val")
    if wanted is not None:
        assert info.label_map == wanted
    report = flaxseg.data.verify_data(f"folder:{folder}", progress=False)
    assert not [error for error in report.errors if error.kind != "absent_class"]


def test_the_file_may_begin_with_a_byte_order_mark_and_must_be_utf_8(tmp_path):
    folder = write_folder(tmp_path / "toy")
    (folder / "dataset.toml").write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert flaxseg.data.dataset_info(f"folder:{folder}").class_names == CLASSES
    (folder / "dataset.toml").write_bytes(TOML.encode("utf-16"))
    assert "dataset.toml: not UTF-8: " in problem_of(folder)


def test_changed_files_are_prepared_anew_and_others_are_not(tmp_path):
    folder, data_dir = write_folder(tmp_path / "toy"), tmp_path / "data"
    name = f"folder:{folder}"
    prepared(folder, data_dir)
    first = flaxseg.data.read_manifest(name, data_dir)
    place = data_dir / "toy" / "1.0.0"
    written = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    prepared(folder, data_dir)
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == written
    mask = folder / "masks" / "train" / "002.png"
    before = mask.stat()
    mask.write_bytes(png(label_of(2)[::-1].copy()))
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    assert not flaxseg.data.is_prepared(name, data_dir)
    record = prepared(folder, data_dir)("train")[2]
    np.testing.assert_array_equal(record["label"], label_of(2)[::-1])
    changed = flaxseg.data.read_manifest(name, data_dir)
    assert changed.fingerprint != first.fingerprint
    # A change that breaks the data leaves what was prepared where it is.
    mask.write_bytes(b"")
    with pytest.raises(DataError, match=r"002\.png: the file is empty"):
        prepared(folder, data_dir)
    assert flaxseg.data.read_manifest(name, data_dir) == changed


def test_classes_that_changed_are_not_read_with_the_old_records(tmp_path):
    folder, data_dir = write_folder(tmp_path / "toy"), tmp_path / "data"
    prepared(folder, data_dir)
    (folder / "dataset.toml").write_text(TOML.replace('"car"', '"bus"'))
    with pytest.raises(DataError, match=r"classes or splits in .* have changed since"):
        flaxseg.data.open_split(f"folder:{folder}", "val", data_dir)
    assert prepared(folder, data_dir)("val").info.class_names[2] == "bus"


def test_two_folders_of_one_name_do_not_take_each_other_for_themselves(tmp_path):
    one, two = (
        write_folder(tmp_path / "one"),
        write_folder(tmp_path / "two", {"train": 1, "val": 1}),
    )
    data_dir = tmp_path / "data"
    prepared(one, data_dir)
    for read in (
        lambda: prepared(two, data_dir),
        lambda: flaxseg.data.open_split(f"folder:{two}", "val", data_dir),
    ):
        with pytest.raises(DataError, match=r"was prepared from .*one, which has the name 'toy'"):
            read()
    # A folder that was moved is the same data set.
    shutil.rmtree(two)
    one.rename(two)
    fingerprint = flaxseg.data.read_manifest(f"folder:{two}", data_dir).fingerprint
    assert flaxseg.data.is_prepared(f"folder:{two}", data_dir)
    assert len(prepared(two, data_dir)("val")) == 2
    prepared(two, tmp_path / "again")
    again = flaxseg.data.read_manifest(f"folder:{two}", tmp_path / "again")
    assert again.fingerprint == fingerprint


def test_the_prepared_folder_alone_will_do(tmp_path):
    folder, data_dir = write_folder(tmp_path / "toy"), tmp_path / "data"
    prepared(folder, data_dir)
    wanted = flaxseg.data.dataset_info(f"folder:{folder}").to_json()
    shutil.rmtree(folder)
    place = tmp_path / "elsewhere"
    (data_dir / "toy" / "1.0.0").rename(place)
    name = f"folder:{place}"
    assert flaxseg.data.dataset_info(name).to_json() == wanted
    assert flaxseg.data.prepare(name, tmp_path / "other", progress=False) == place
    record = flaxseg.data.open_split(name, "val", tmp_path / "other")[1]
    np.testing.assert_array_equal(record["label"], label_of(5))
    assert flaxseg.data.verify_data(name, progress=False).errors == ()
    camvid = tmp_path / "camvid"
    camvid.mkdir()
    (camvid / "flaxseg.json").write_text('{"info": null}')
    with pytest.raises(DataError, match="does not say what the classes are"):
        flaxseg.data.dataset_info(f"folder:{camvid}")
    facts = {**wanted, "class_names": ["ground", "ro\nad", "car"]}
    (camvid / "flaxseg.json").write_text(json.dumps({"info": facts}))
    with pytest.raises(DataError, match="holds the control character"):
        flaxseg.data.dataset_info(f"folder:{camvid}")


def test_problems_stop_the_preparation_unless_they_are_allowed(tmp_path):
    folder, data_dir = write_folder(tmp_path / "toy", {"train": 5, "val": 2}), tmp_path / "data"
    (folder / "masks" / "train" / "001.png").write_bytes(jpeg(image_of(1)))
    (folder / "images" / "train" / "003.jpg").write_bytes(b"text")
    (folder / "masks" / "val" / "extra.png").write_bytes(png(label_of(9)))
    with pytest.raises(DataError, match="3 problems") as caught:
        prepared(folder, data_dir)
    assert "--allow_problems=orphan,jpeg_label,undecodable" in str(caught.value)
    with pytest.raises(DataError, match=r"1 problem:\n.*003\.jpg"):
        prepared(folder, data_dir, allow_problems="jpeg_label, orphan")
    with pytest.raises(ConfigError, match="Did you mean 'jpeg_label'"):
        prepared(folder, data_dir, allow_problems="jpg_label")
    open_split = prepared(folder, data_dir, allow_problems="all")
    assert [record["id"] for record in open_split("train")] == [
        "train/000",
        "train/002",
        "train/004",
    ]
    assert flaxseg.data.read_manifest(f"folder:{folder}", data_dir).left_out == 2
    for number in (5, 6):
        (folder / "images" / "val" / f"{number:03d}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="nothing in val can be used"):
        prepared(folder, data_dir, allow_problems="all")


def test_where_the_images_are_must_be_said_once(tmp_path):
    full_name = flaxseg.data.full_name
    assert full_name("folder", tmp_path) == full_name(f"folder:{tmp_path}") == f"folder:{tmp_path}"
    assert full_name("folder:a", "a") == "folder:a"
    assert full_name("camvid", "a") == "camvid"
    for name, manual_dir in (("folder", None), ("folder:", ""), ("folder:a", "b")):
        with pytest.raises(ConfigError, match=r"dataset\.toml|give one of them"):
            full_name(name, manual_dir)
    with pytest.raises(DataError, match="there is no folder"):
        flaxseg.data.dataset_info(f"folder:{tmp_path / 'nowhere'}")
    assert "folder" not in flaxseg.data.list_datasets()
    for module in (catalog, problems):
        assert doctest.testmod(module).failed == 0
