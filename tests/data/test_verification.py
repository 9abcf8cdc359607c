"""verify_data: everything that is wrong is found at once, and what is counted is counted right."""

import collections
import json
import os
import shutil
import threading
import time

import cv2
import numpy as np
import pytest
from image_bytes import png_bytes
from own_folder import SIZE, TOML, color_png, image_of, label_of, write_folder
from PIL import Image
from published_files import jpeg, png, write_camvid

import flaxseg.data
from flaxseg.data.raw import verification
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.findings import Statistics
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import KINDS
from flaxseg.errors import DataError, NotPreparedError


def verify(folder, **options):
    return flaxseg.data.verify_data(f"folder:{folder}", progress=False, **options)


def kinds(problems):
    return collections.Counter(problem.kind for problem in problems)


def test_everything_that_is_wrong_is_found_at_once(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 14, "val": 3})
    images, masks = folder / "images" / "train", folder / "masks" / "train"
    whole = (images / "000.jpg").read_bytes()
    (images / "000.jpg").write_bytes(whole[:-20])
    (images / "001.jpg").write_bytes(b"")
    (images / "002.jpg").write_text("no image at all")
    (masks / "003.png").unlink()
    (images / "004.jpg").unlink()
    turned = Image.Exif()
    turned[0x0112] = 8
    Image.fromarray(image_of(5)).save(images / "005.jpg", exif=turned)
    (images / "006.jpg").write_bytes(jpeg(image_of(6, (10, 28))))
    strange = label_of(7)
    strange[0, :5], strange[1, 3] = 99, 7
    (masks / "007.png").write_bytes(png(strange))
    (masks / "008.png").write_bytes(jpeg(image_of(8)))
    (masks / "009.png").write_bytes(color_png(label_of(9)))
    (masks / "010.png").write_bytes(png(label_of(10).astype(np.uint16)))
    # The same image, stored in another way and under another name.
    (images / "011.jpg").unlink()
    (images / "011.png").write_bytes(png(image_of(11)))
    Image.fromarray(image_of(11)).save(folder / "images" / "val" / "900.png")
    (folder / "masks" / "val" / "900.png").write_bytes(png(label_of(11)))
    (images / "012.jpg").unlink()
    (images / "012.png").write_bytes(png(image_of(11)))
    (masks / "013.png").write_bytes(png(np.full(SIZE, 255, np.uint8)))

    report = verify(folder)
    assert kinds(report.errors) == {
        "undecodable": 3,
        "missing_file": 1,
        "orphan": 1,
        "exif_rotation": 1,
        "size_mismatch": 1,
        "unknown_ids": 1,
        "jpeg_label": 1,
        "color_label": 1,
        "duplicate_across_splits": 1,
    }
    assert kinds(report.warnings) == {
        "deep_label": 1,
        "duplicate_in_split": 1,
        "nothing_labelled": 1,
    }
    text = report.text()
    for words in (
        "11 problems:",
        "3 warnings:",
        f"{images}/000.jpg: damaged image: image file is truncated",
        "001.jpg: the file is empty (0 bytes)",
        "002.jpg: not an image of a known format (it starts with b'no image')",
        "003.jpg: the image has no mask",
        "004.png: the mask has no image",
        "005.jpg: EXIF orientation 8",
        "006.jpg: the image has 10 x 28 pixels (H x W) but its label",
        "006.png has 20 x 28",
        "007.png: label ids outside the map: 7 (1 pixels), 99 (5 pixels); known ids are 0..2, 255",
        "008.png: the label is a JPEG",
        "009.png: the label holds colours (RGB)",
        "010.png: a label of 16 bits a pixel",
        f"900.png: the same image is in train: {images}/011.png",
        "012.png: the same image is in train twice",
        "013.png: every pixel is ignored",
        "train 12 (8 unusable), val 4",
    ):
        assert words in text, (words, text)
    # The order of the text and of the threads is that of the files.
    assert verify(folder, num_threads=1).text() == text == verify(folder, num_threads=7).text()

    found = json.loads(json.dumps(report.to_dict()))
    assert (found["ok"], found["num_errors"], found["num_warnings"]) == (False, 11, 3)
    by_kind = {problem["kind"]: problem for problem in found["problems"]}
    assert by_kind["unknown_ids"]["details"] == {"ids": {"7": 1, "99": 5}}
    assert by_kind["unknown_ids"]["files"] == [str(masks / "007.png")]
    assert by_kind["unknown_ids"]["id"] == "train/007"
    assert by_kind["size_mismatch"]["details"] == {"image": [10, 28], "label": [20, 28]}
    assert by_kind["exif_rotation"]["details"] == {"orientation": 8}
    assert by_kind["duplicate_across_splits"]["details"] == {"other_split": "train"}
    assert by_kind["deep_label"]["severity"] == "warning"
    assert found["splits"]["train"]["pairs"] == 12
    assert found["splits"]["train"]["unusable"] == 8
    assert {problem["kind"] for problem in found["problems"]} <= set(KINDS)


def test_images_that_are_changed_when_they_are_read_are_warned_of(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 5, "val": 1})
    images = folder / "images" / "train"
    deep = np.random.default_rng(0).integers(0, 65536, (*SIZE, 3))
    deep[0, 0], clear = 65535, np.dstack([image_of(2), np.zeros(SIZE, np.uint8)])
    contents = [png_bytes(deep >> 4, 16, "RGB"), png_bytes(deep, 16, "RGB"), png(clear)]
    contents.append(png_bytes(deep[..., :1] >> 4, 16, "grey"))
    for number, content in enumerate(contents):
        (images / f"00{number}.jpg").write_bytes(content)
    report = verify(folder)
    assert not report.errors
    assert [(str(w), w.kind) for w in report.warnings] == [
        (f"{images}/00{number}.jpg: {words}", "converted_image")
        for number, words in enumerate(
            (
                "reduced 16 bits to 8, of which little is left: only 12 bits are used, so the "
                "values are 0..15; scale the samples to all 16 bits",
                "reduced 16 bits to 8",
                "laid its transparent pixels over white",
                "reduced 16 bits to 8, of which little is left: only 12 bits are used, so the "
                "values are 0..15; scale the samples to all 16 bits",
            )
        )
    ]


def test_counts_are_those_of_a_loop_over_pixels(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 3, "val": 2})
    for number in (1, 3):  # two sizes, and a class that some images lack
        split = "train" if number < 3 else "val"
        label = label_of(number, (6, 9))
        label[label == 2] = 0
        (folder / "masks" / split / f"{number:03d}.png").write_bytes(png(label))
        (folder / "images" / split / f"{number:03d}.jpg").write_bytes(
            jpeg(image_of(number, (6, 9)))
        )
    report = verify(folder)
    labels = {
        split: [
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            for path in sorted((folder / "masks" / split).iterdir())
        ]
        for split in ("train", "val")
    }
    for split, of_split in labels.items():
        counted = report.statistics[split]
        for index in range(3):
            with_class = [label for label in of_split if (label == index).any()]
            assert counted.pixels[index] == sum((label == index).sum() for label in of_split)
            assert counted.class_images[index] == len(with_class)
            assert counted.pixels_beside[index] == sum((label != 255).sum() for label in with_class)
        assert counted.ignored == sum((label == 255).sum() for label in of_split)
    assert report.total.sizes == {SIZE: 3, (6, 9): 2}
    assert report.to_dict()["sizes"] == [
        {"height": 6, "width": 9, "images": 2},
        {"height": SIZE[0], "width": SIZE[1], "images": 3},
    ]
    # Weights from the training split alone, by the formula.
    frequency = []
    for index in range(3):
        with_class = [label for label in labels["train"] if (label == index).any()]
        pixels = sum((label == index).sum() for label in with_class)
        frequency.append(pixels / sum((label != 255).sum() for label in with_class))
    wanted = sorted(frequency)[1] / np.array(frequency)
    np.testing.assert_allclose(report.class_weights(), wanted, rtol=1e-12)
    line = '--config.loss.class_weights="(' + ", ".join(f"{weight:.3g}" for weight in wanted) + ')"'
    assert line in report.text()


def test_weights_by_hand():
    counted = Statistics.zero(4)
    # 10 and 90 of class 0 and 1; then 50 and 50 of class 0 and 2; nothing of class 3.
    counted.add((10, 12), np.array([10, 90, 0, 0] + [0] * 251 + [20]))
    counted.add((10, 10), np.array([50, 0, 50, 0] + [0] * 251 + [0]))
    # frequencies 60/200, 90/100, 50/100; their median is 0.5
    wanted = [0.5 / 0.3, 0.5 / 0.9, 1.0, 1.0]
    np.testing.assert_allclose(counted.median_frequency_weights(), wanted)


def test_an_absent_class_fails_in_training_and_is_a_warning_elsewhere(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2, "val": 2})
    for path in (folder / "masks" / "val").iterdir():
        path.write_bytes(png(np.zeros(SIZE, np.uint8)))
    report = verify(folder)
    assert not report.errors
    (warning,) = report.warnings
    assert warning.details == {"classes": ["road", "car"]}
    assert warning.message.startswith("val: no pixel of 2 classes 'road', 'car'")
    (folder / "dataset.toml").write_text(TOML + '[[classes]]\nname = "bus"\ncolor = [1, 1, 1]\n')
    report = verify(folder)
    assert kinds(report.errors) == {"absent_class": 1}
    assert "train: no pixel of class 'bus'" in report.errors[0].message


def test_splits_may_repeat_each_other_by_design(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(png(image_of(number)))
        (tmp_path / f"{number}_label.png").write_bytes(png(label_of(number)))
    pairs = [Pair(str(n), tmp_path / f"{n}.png", tmp_path / f"{n}_label.png") for n in range(2)]
    facts = {
        "name": "x",
        "version": "1.0.0",
        "description": "",
        "class_names": ("a", "b", "c"),
        "class_colors": ((0, 0, 0),) * 3,
        "label_map": {0: 0, 1: 1, 2: 2, 255: 255},
        "splits": ("train", "more"),
        "split_sizes": {},
        "eval_split": "more",
        "license": "",
        "citation": "",
        "homepage": "",
    }
    found = {"train": pairs[:1], "more": pairs}
    report = verification.examine(found, DatasetInfo(**facts))
    assert kinds(report.errors) == {"duplicate_id": 1, "duplicate_across_splits": 1}
    report = verification.examine(found, DatasetInfo(**facts, repeated={"more": "train"}))
    assert not report.problems


def test_published_files_and_prepared_records_are_checked_too(camvid_folder, tmp_path):
    report = flaxseg.data.verify_data("camvid", camvid_folder, progress=False)
    assert report.num_pairs == {"train": 7, "val": 3, "test": 2}
    assert not report.errors
    data_dir = tmp_path / "data"
    flaxseg.data.prepare("camvid", data_dir, camvid_folder, progress=False)
    stored = flaxseg.data.verify_data("camvid", data_dir=data_dir, progress=False)
    for split in report.num_pairs:
        np.testing.assert_array_equal(
            stored.statistics[split].pixels, report.statistics[split].pixels
        )
    # Damage: first inside of a record, then of the list and files.
    (records,) = (data_dir / "camvid" / "1.0.0").glob("*val*array_record*")
    content = bytearray(records.read_bytes())
    start = content.find(b"\x89PNG") + 60
    content[start : start + 30] = bytes(30)
    records.write_bytes(content)
    problems = flaxseg.data.verify_data("camvid", data_dir=data_dir, progress=False).errors
    assert "its content changed" in str(problems[0])
    assert any("record" in str(problem) for problem in problems[1:]), problems
    (camvid_folder / "train" / "stray.jpg").write_bytes(b"")
    (camvid_folder / "val.txt").write_text("one two three\n")
    report = flaxseg.data.verify_data("camvid", camvid_folder, progress=False)
    assert kinds(report.errors)["orphan"] == 1 + 6
    assert {f"{camvid_folder}/val.txt"} <= {file for p in report.errors for file in p.files}
    with pytest.raises(
        NotPreparedError, match=r"is not prepared[^$]*Or check its files: --manual_dir"
    ):
        flaxseg.data.verify_data("camvid", data_dir=tmp_path / "none", progress=False)
    with pytest.raises(DataError, match="not made of files"):
        flaxseg.data.verify_data("shapes", camvid_folder, progress=False)


def test_generated_records_are_checked(shapes_dir):
    report = flaxseg.data.verify_data("shapes", data_dir=shapes_dir, progress=False)
    assert not report.problems
    assert report.total.num_images == 700
    assert report.total.sizes == {(96, 128): 700}


def test_files_that_would_never_end_or_fill_the_memory(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 6, "val": 2})
    images, masks = folder / "images" / "train", folder / "masks" / "train"
    (images / "000.jpg").unlink()
    os.mkfifo(images / "000.jpg")
    (images / "001.jpg").unlink()
    (images / "001.jpg").symlink_to("/dev/zero")
    with (images / "002.jpg").open("ab") as file:  # a hole in the file system, of 4 GiB
        file.truncate(4 << 30)
    (masks / "003.png").unlink()
    (masks / "003.png").symlink_to(masks / "003.png")
    shutil.copy(masks / "004.png", tmp_path / "linked.png")
    (masks / "004.png").unlink()
    (masks / "004.png").symlink_to(tmp_path / "linked.png")  # links to files are common and fine
    start = time.monotonic()
    report = verify(folder)
    assert time.monotonic() - start < 30
    text = "\n".join(map(str, report.errors))
    assert kinds(report.errors) == {"undecodable": 2, "too_large": 1, "unreadable": 1}, text
    assert "000.jpg: not an ordinary file" in text
    assert "001.jpg: not an ordinary file" in text
    assert f"002.jpg: the file has {4 << 30} bytes, more than the limit" in text
    assert "003.png: the label of 'train/003' cannot be read: Too many levels" in text


def test_an_interruption_ends_soon(tmp_path, monkeypatch):
    write_camvid(tmp_path / "published", {"train": 60, "val": 1, "test": 1})
    started = []
    release = threading.Event()

    def slow(pair, label_map):
        started.append(pair)
        if len(started) > 1:
            release.wait(60)
        return verification._Examined([], None, (1, 1), np.zeros(256, np.int64))

    monkeypatch.setattr(verification, "_examine_pair", slow)
    entry = flaxseg.data.sets.catalog.find_source("camvid")
    pairs, _ = entry.find_pairs(tmp_path / "published", False)

    def interrupt():
        release.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verification.examine(pairs, entry.info, advance=interrupt, num_threads=2)
    assert len(started) <= 10, "what waited was still worked on"


def test_images_are_decoded_at_the_same_time_and_large_ones_one_by_one(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "toy", {"train": 10, "val": 2})  # three times four
    decode, running, most = verification.decode_image, [], []
    meeting = threading.Barrier(4)

    def watched(encoded, *limit, **how):
        running.append(1)
        most.append(len(running))
        try:
            if meeting is not None:
                meeting.wait(60)  # until four are here
            else:
                time.sleep(0.02)
            return decode(encoded, *limit, **how)
        finally:
            running.pop()

    monkeypatch.setattr(verification, "decode_image", watched)
    assert not verify(folder, num_threads=4).errors
    assert max(most) == 4
    meeting = None
    most.clear()
    monkeypatch.setattr(verification, "_LARGE", 10)
    small_first = watched

    def only_large(encoded, *limit, **how):
        return decode(encoded, *limit, **how) if limit else small_first(encoded, **how)

    monkeypatch.setattr(verification, "decode_image", only_large)
    report = verify(folder, num_threads=4)
    assert not report.errors
    assert report.total.sizes == {SIZE: 12}
    assert most == [1] * 12


def test_real_camvid_has_no_problem(shared_dir):
    report = flaxseg.data.verify_data("camvid", shared_dir / "data" / "camvid", progress=False)
    assert report.num_pairs == {"train": 367, "val": 101, "test": 233}
    assert not report.errors
    assert report.total.sizes == {(360, 480): 701}


def test_very_many_sizes_are_counted_in_ranges():
    report = flaxseg.data.Report(
        name="x",
        source="y",
        class_names=("a", "b"),
        class_colors=((0, 0, 0), (9, 9, 9)),
        num_pairs={"train": 400},
        problems=(),
        statistics={"train": Statistics.zero(2)},
        unusable={"train": frozenset()},
    )
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers((331, 9), (640, 21), (400, 2))]
    for size in sizes:
        report.statistics["train"].add(size, np.eye(256, dtype=np.int64)[0])
    table = report.text().partition("height")[2].splitlines()[1:]
    lines = table[: table.index("")]
    heights = dict(line.split()[:2] for line in lines if ".." in line)
    assert list(heights) == [f"{low}..{low + 49}" for low in range(300, 650, 50)]
    for low in range(300, 650, 50):
        wanted = sum(low <= height < low + 50 for height, _ in sizes)
        assert int(heights[f"{low}..{low + 49}"]) == wanted
    widths = dict(line.split()[-2:] for line in lines)
    assert {int(width): int(n) for width, n in widths.items()} == collections.Counter(
        width for _, width in sizes
    )


def test_the_columns_of_the_table_stand_under_their_names(tmp_path):
    folder = write_folder(tmp_path / "toy", {"train": 2, "a_very_long_name": 1})
    lines = verify(folder).text().splitlines()
    start = next(n for n, line in enumerate(lines) if "class  " in line)
    head, rows = lines[start], lines[start + 2 : start + 5]
    assert "a_very_long_name %" in head
    for row in rows:
        assert len(row) == len(head)
        end = head.index("a_very_long_name %") + len("a_very_long_name %")
        assert row[end - 5 : end].replace(".", "").strip().isdigit()
        assert row[end] == " "
