"""The command line, run as a user does: what it writes, what it prints, and how it fails."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from own_folder import CLASSES, encoded, write_folder
from PIL import Image
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli, data
from flaxseg.classes import voc_colors
from flaxseg.data import DatasetInfo
from flaxseg.errors import ConfigError, DataError
from flaxseg.evaluation import BoundaryMetrics, ConfusionMatrix
from flaxseg.inference import Segmenter, parse_protocol, predict, read_image
from flaxseg.paths import file_name
from flaxseg.programs import COMMANDS
from flaxseg.programs.prediction import prediction_files

NAMES = ("ground", "tree", "car")
COLORS = ((10, 20, 30), (0, 200, 0), (200, 0, 200))


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)
    flaxseg.save_model(
        tmp_path / "model",
        init(create_tiny("tiny", 3, blur=True)),
        name="tiny",
        num_classes=3,
        options={"blur": True},
        class_names=NAMES,
        class_colors=COLORS,
    )
    return tmp_path / "model"


def image_file(path, height=12, width=17, seed=0, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def run(capsys, *arguments):
    """(exit code, stdout, stderr)."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def indices(path):
    with Image.open(path) as mask:
        assert mask.mode == "P"
        return np.asarray(mask)


def test_without_a_command_all_are_listed(capsys):
    code, stdout, stderr = run(capsys)
    assert code == 2
    assert all(f"    {command.NAME}" in stdout for command in COMMANDS)
    assert "no command is given" in stderr


# predict


def test_predict_writes_the_mask_of_the_model_and_an_overlay(tmp_path, model_dir, capsys):
    source = image_file(tmp_path / "street.jpg", 31, 44)
    out = tmp_path / "out"
    code, stdout, stderr = run(capsys, "predict", source, "--model", model_dir, "--out", out)
    assert code == 0
    model, variables = flaxseg.load_model(model_dir)
    mask = indices(out / "street_mask.png")
    np.testing.assert_array_equal(mask, predict(model, variables, read_image(source)))
    assert len(np.unique(mask)) > 1
    with Image.open(out / "street_mask.png") as png:
        assert tuple(png.getpalette()[3:6]) == COLORS[1]
    with Image.open(out / "street_overlay.png") as overlay:
        assert overlay.mode == "RGB"
        assert overlay.width >= 360, "too small to be looked at"
    assert str(out / "street_mask.png") in stdout
    assert str(out / "street_overlay.png") in stdout
    assert "compiling for 31 x 44" in stderr
    written = sorted(p.name for p in out.iterdir())
    assert written == ["predictions.jsonl", "street_mask.png", "street_overlay.png"]


def test_predict_folders_patterns_and_all_kinds_of_images(tmp_path, model_dir, capsys):
    folder = tmp_path / "photos"
    image_file(folder / "a.png", 1, 1)
    image_file(folder / "sub" / "a.png", 5, 8)
    (folder / "notes.txt").write_text("not an image")
    Image.new("CMYK", (6, 4)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (6, 4), (9, 9, 9, 0)).save(folder / "alpha.png")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image_file(folder / "turned.jpg", 10, 20, exif=exif)
    out = tmp_path / "out"
    code, stdout, _ = run(
        capsys, "predict", folder, f"{folder}/**/a.*", "--model", model_dir, "--out", out
    )
    assert code == 0
    masks = {str(p.relative_to(out)) for p in out.rglob("*_mask.png")}
    stems = ("a", "sub/a", "cmyk", "alpha", "deep", "turned")
    assert masks == {f"{stem}_mask.png" for stem in stems}
    assert indices(out / "a_mask.png").shape == (1, 1)
    assert indices(out / "turned_mask.png").shape == (20, 10), "the mask is not upright"
    assert "EXIF orientation 6" in stdout
    assert "6 of 6 images done" in stdout


def test_predict_goes_on_after_a_bad_file_and_names_it(tmp_path, model_dir, capsys):
    good = [image_file(tmp_path / "in" / f"{name}.jpg", 40, 40) for name in "ac"]
    broken = tmp_path / "in" / "b.jpg"
    broken.write_bytes(good[0].read_bytes()[:-100])
    out = tmp_path / "out"
    code, stdout, stderr = run(
        capsys, "predict", tmp_path / "in", "--model", model_dir, "--out", out
    )
    assert code == 1
    assert "1 of 3 images failed" in stderr
    assert str(broken) in stderr
    assert "truncated" in stderr
    assert "2 of 3 images done" in stdout
    assert sorted(p.name for p in out.glob("*_mask.png")) == ["a_mask.png", "c_mask.png"]
    assert not list(out.glob("*b*"))
    assert not list(out.glob(".*"))


def test_predict_never_writes_over_its_inputs(tmp_path, model_dir, capsys):
    first = image_file(tmp_path / "in" / "a.png")
    second = image_file(tmp_path / "in" / "a_mask.png", seed=1)
    before = second.read_bytes()
    flags = ("--model", model_dir, "--out", tmp_path / "in")
    code, _, stderr = run(capsys, "predict", first, second, *flags)
    assert code == 2
    assert "a_mask.png exists, and no predictions.jsonl says" in stderr
    code, _, stderr = run(capsys, "predict", tmp_path / "in", *flags)
    assert code == 2
    assert "choose another --out" in stderr
    assert second.read_bytes() == before
    inside = tmp_path / "in" / "masks"
    for _ in range(2):
        assert run(capsys, "predict", tmp_path / "in", *flags[:3], inside)[0] == 0
    assert len(list(inside.glob("*.png"))) == 4, "results were taken as input"


def test_predict_padded_to_multiples_compiles_few_sizes(tmp_path, model_dir, capsys):
    for size in range(9, 17):
        image_file(tmp_path / "in" / f"{size}.png", size, size)
    out = tmp_path / "out"
    flags = ("--model", model_dir, "--out", out)
    code, _, stderr = run(capsys, "predict", tmp_path / "in", *flags, "--pad_multiple", 16)
    assert code == 0
    assert stderr.count("compiling") == 1
    model, variables = flaxseg.load_model(model_dir)
    for size in range(9, 17):
        mask = indices(out / f"{size}_mask.png")
        native = predict(model, variables, read_image(tmp_path / "in" / f"{size}.png"))
        assert mask.shape == native.shape
        np.testing.assert_array_equal(mask[:-1, :-1], native[:-1, :-1])  # 3x3 sees one pixel far


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "does not exist"),
        ("*.png", "no image matches"),
        ("empty", "has no images in it"),
    ],
)
def test_predict_without_images_says_so(tmp_path, model_dir, capsys, name, words):
    (tmp_path / "empty").mkdir()
    code, _, stderr = run(
        capsys, "predict", tmp_path / name, "--model", model_dir, "--out", tmp_path / "out"
    )
    assert code == 1
    assert stderr.startswith("error: ")
    assert words in stderr
    assert not (tmp_path / "out").exists()


def test_predict_into_a_place_that_cannot_be_written(tmp_path, model_dir, capsys):
    source = image_file(tmp_path / "a.png")
    (tmp_path / "file").write_text("x")
    code, _, stderr = run(
        capsys, "predict", source, "--model", model_dir, "--out", tmp_path / "file" / "out"
    )
    assert code == 1
    assert "cannot write to the output folder" in stderr


def test_predict_stops_where_nothing_can_be_written(tmp_path, model_dir, capsys, monkeypatch):
    written = []

    def full(path, *_):
        written.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flaxseg.programs.prediction.prediction_files.save_image", full)
    sources = [image_file(tmp_path / f"{name}.png") for name in "abc"]
    out = tmp_path / "out"
    code, stdout, stderr = run(capsys, "predict", *sources, "--model", model_dir, "--out", out)
    assert code == 1
    assert len(written) == 1
    assert "0 of 3 images done" in stdout
    assert stderr.splitlines()[-1] == f"error: cannot write {out}: No space left on device."
    monkeypatch.undo()


def test_predict_stops_where_its_folder_has_gone(tmp_path, model_dir, capsys, monkeypatch):
    sources = [image_file(tmp_path / f"{name}.png") for name in "abc"]
    out = tmp_path / "out"
    flags = ("--model", model_dir, "--out", out)
    save = prediction_files.save_image

    def gone(path, image):
        save(path, image)
        shutil.rmtree(out)

    monkeypatch.setattr("flaxseg.programs.prediction.prediction_files.save_image", gone)
    code, _, stderr = run(capsys, "predict", *sources, *flags)
    assert code == 1
    assert stderr.splitlines()[-1] == f"error: cannot write {out}: No such file or directory."
    assert not out.exists(), "an empty folder takes its place"


@pytest.mark.slow
def test_predict_real_images_with_real_weights(tmp_path, shared_dir, capsys):
    """On DeepLab's canvas at least 99 % of the pixels are those of the published TFLite network."""
    weights = shared_dir / "data/weights"
    source = str(weights / "deeplabv3_mobilenet_v2_voc21.safetensors")
    assert cli.main(["import", source, "--out", str(tmp_path / "model")]) == 0
    assert "deeplabv3 with 21 classes" in capsys.readouterr().out
    reference = np.load(weights / "reference_outputs.npz")
    images = shared_dir / "data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages"
    flags = ("--model", tmp_path / "model", "--out", tmp_path / "out", "--pad_multiple", 513)
    assert run(capsys, "predict", images, *flags)[0] == 0
    for name, (height, width), argmax in zip(
        reference["ids"],
        reference["deeplab_valid_hw"],
        reference["deeplab_uint8_original_argmax"],
        strict=True,
    ):
        mask = indices(tmp_path / "out" / f"{name}_mask.png")
        assert mask.shape == (height, width)
        assert np.mean(mask == argmax[:height, :width]) >= 0.99


# evaluate


@pytest.fixture
def dataset(monkeypatch):
    """A data set 'toy' of six images with the classes of the model."""
    info = DatasetInfo(
        name="toy",
        version="1",
        description="toy",
        class_names=NAMES,
        class_colors=COLORS,
        label_map={0: 0, 1: 1, 2: 2},
        splits=("train", "val"),
        split_sizes={},
        eval_split="val",
        license="",
        citation="",
        homepage="",
    )
    rng = np.random.default_rng(0)
    records = []
    for number in range(6):
        shape = (8, 10) if number % 2 else (9, 7)
        label = rng.integers(0, 3, shape).astype(np.uint8)
        label[0] = 255
        image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
        records.append({"image": image, "label": label, "id": f"seq/{number} x"})

    def open_split(name, split, data_dir=None):
        if data_dir == "nowhere":
            raise DataError("toy is not prepared in nowhere; run prepare-data toy")
        return records

    monkeypatch.setattr(data, "dataset_info", lambda name: info)
    monkeypatch.setattr(data, "open_split", open_split)
    return info, records


def direct_metrics(model_dir, records):
    model, variables = flaxseg.load_model(model_dir)
    matrix = ConfusionMatrix(3)
    scores = []
    for record in records:
        pred = predict(model, variables, record["image"])
        matrix.update(record["label"], pred)
        own = ConfusionMatrix(3)
        own.update(record["label"], pred)
        scores.append(own.metrics().miou)
    return matrix.metrics(), scores


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_evaluate_prints_and_writes_the_metrics(tmp_path, model_dir, dataset, capsys, batch_size):
    flags = () if batch_size is None else ("--batch_size", batch_size)
    out = tmp_path / "report"
    code, stdout, _ = run(
        capsys,
        *("evaluate", model_dir, "--data", "toy", "--out", out, "--num_images", 2),
        *flags,
    )
    assert code == 0
    wanted, scores = direct_metrics(model_dir, dataset[1])
    assert wanted.table(NAMES) in stdout
    report = json.loads((out / "metrics.json").read_text())
    assert report["confusion_matrix"] == wanted.matrix.tolist()
    with open(out / "confusion_matrix.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[1:] == [row[0] for row in rows] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == wanted.matrix.tolist()
    assert report["miou"] == wanted.miou
    card = flaxseg.read_model_card(model_dir)
    assert report["parameters"] == card["weights"]["parameters"]
    assert report["backbone"] == card["options"].get("backbone")
    assert report["step"] is None
    assert report["split"] == "val"
    assert report["classes"][1]["name"] == "tree"
    worst = np.argsort(scores, kind="stable")[:2]
    assert sorted(p.name for p in out.glob("*.png")) == [
        *(f"first_{i:03d}_{file_name(f'seq/{i} x')}.png" for i in range(2)),
        *(f"worst_{rank:03d}_{file_name(f'seq/{i} x')}.png" for rank, i in enumerate(worst)),
    ]


def test_a_second_evaluation_removes_its_own_panels_alone(tmp_path, model_dir, dataset, capsys):
    out = tmp_path / "report"
    image_file(out / "first_day.png")
    flags = ("evaluate", model_dir, "--data", "toy", "--out", out, "--num_images")
    assert run(capsys, *flags, 3)[0] == 0
    assert run(capsys, *flags, 1)[0] == 0
    panels = json.loads((out / "metrics.json").read_text())["panels"]
    assert len(panels) == 2
    assert sorted(path.name for path in out.glob("*.png")) == sorted([*panels, "first_day.png"])


def test_evaluate_without_out_writes_nothing(tmp_path, model_dir, dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, stdout, _ = run(capsys, "evaluate", model_dir, "--data", "toy")
    assert code == 0
    assert "--out" in stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_the_models_own_protocol_is_used_and_said(tmp_path, model_dir, dataset, capsys):
    own = parse_protocol("whole(scales=(0.5,))")
    variables = flaxseg.load_model(model_dir)[1]
    options = {"blur": True, "protocol": own.describe()}
    common = {"name": "tiny", "num_classes": 3, "class_names": NAMES}
    model_dir = flaxseg.save_model(tmp_path / "own", variables, options=options, **common)
    said = "protocol: whole(scales=(0.5,)) (the model's own; --protocol=whole runs"

    def matrix(*flags):
        code, stdout, _ = run(capsys, "evaluate", model_dir, "--data=toy", *flags)
        assert code == 0
        assert (said in stdout) == (not flags)
        return stdout.partition("class ")[2].partition(" counted")[0]

    measured = ConfusionMatrix(3)
    for record in dataset[1]:
        pred = Segmenter(*flaxseg.load_model(model_dir), own).run(record["image"]).classes
        measured.update(record["label"], pred)
    wanted = measured.table(NAMES).partition("class ")[2].partition(" counted")[0]
    assert wanted == matrix()
    assert wanted == matrix("--protocol", own.describe())
    assert wanted != matrix("--protocol=whole") == matrix("--pad_to", 16, 20)

    source = image_file(tmp_path / "small.png")
    masks = []
    for name, flags in {"own": (), "whole": ("--protocol=whole",)}.items():
        flags = ("--model", model_dir, "--out", tmp_path / name, *flags)
        code, stdout, _ = run(capsys, "predict", source, *flags)
        assert (code, said in stdout) == (0, name == "own")
        masks.append(indices(tmp_path / name / "small_mask.png"))
    image = read_image(source)
    np.testing.assert_array_equal(masks[0], predict(*flaxseg.load_model(model_dir), image))
    assert (masks[0] != masks[1]).any()


def test_evaluate_by_a_protocol_and_near_boundaries(tmp_path, model_dir, dataset, capsys):
    protocol = "windows(window=6, window_stride=3, scales=(0.8, 1.3), flip=True)"
    flags = (model_dir, "--data", "toy", "--protocol", protocol, "--boundary")
    code, stdout, _ = run(capsys, "evaluate", *flags, "--out", tmp_path / "out")
    assert code == 0
    segmenter = Segmenter(*flaxseg.load_model(model_dir), parse_protocol(protocol))
    matrix, boundary = ConfusionMatrix(3), BoundaryMetrics(3)
    for record in dataset[1]:
        pred = segmenter.run(record["image"]).classes
        matrix.update(record["label"], pred)
        boundary.update(record["label"], pred)
    assert matrix.table(NAMES) in stdout
    assert boundary.scores().table() in stdout
    assert segmenter.protocol.describe() in stdout
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["boundary"] == boundary.scores().to_dict()
    assert parse_protocol(report["protocol"]) == segmenter.protocol
    assert [r["id"] for r in report["records"]] == [r["id"] for r in dataset[1]]
    code, _, stderr = run(capsys, "evaluate", *flags, "--instances", tmp_path)
    assert code == 2
    assert "--instances is for the classes of Cityscapes" in stderr
    code, _, stderr = run(capsys, "evaluate", *flags, "--pad_to", 20, 20)
    assert code == 2
    assert "--pad_to cannot be combined with --protocol" in stderr
    assert "pad_to=(20, 20)" in stderr


def test_predict_by_a_protocol(tmp_path, model_dir, capsys):
    source = image_file(tmp_path / "street.png", 31, 44)
    flags = ("--model", model_dir, "--out", tmp_path / "out", "--protocol", "windows(window=16)")
    code, _, stderr = run(capsys, "predict", source, *flags)
    assert code == 0
    assert "compiling for 16 x 16" in stderr
    segmenter = Segmenter(*flaxseg.load_model(model_dir), parse_protocol("windows(window=16)"))
    mask = indices(tmp_path / "out" / "street_mask.png")
    np.testing.assert_array_equal(mask, segmenter.run(read_image(source)).classes)
    code, _, stderr = run(capsys, "predict", source, *flags[:-1], "window")
    assert code == 2
    assert "Did you mean 'windows'?" in stderr


def test_report_is_a_page_of_the_evaluation(tmp_path, model_dir, dataset, capsys):
    (model_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 5, "loss": 0.75}\n')
    code, stdout, _ = run(capsys, "report", model_dir, "--data", "toy", "--num_images", 1)
    assert code == 0
    assert str(model_dir / "report.html") in stdout
    page = (model_dir / "report.html").read_text()
    wanted, scores = direct_metrics(model_dir, dataset[1])
    assert f"{100 * wanted.miou:.2f} %" in page
    assert "step 5: 0.75" in page
    for place in (np.argmin(scores), np.argmax(scores)):
        assert f"<b>{dataset[1][place]['id']}</b> mIoU {100 * scores[place]:.2f} %" in page
    code, _, stderr = run(capsys, "report", model_dir)
    assert code == 2
    assert "give --data=NAME" in stderr
    assert run(capsys, "report", tmp_path / "none")[0] == 1
    assert not (tmp_path / "none").exists()


def test_report_finds_a_data_set_of_ones_own(tmp_path, model_dir, capsys):
    folder, data_dir = write_folder(tmp_path / "toy"), tmp_path / "data"
    data.prepare("folder", data_dir, folder, progress=False)
    own = {"name": "folder", "manual_dir": str(folder), "dir": str(data_dir)}
    flaxseg.save_model(
        tmp_path / "own",
        init(create_tiny("tiny", 3)),
        name="tiny",
        num_classes=3,
        class_names=CLASSES,
        extra={"data": "toy/val", "config": {"data": own}},
    )
    assert run(capsys, "report", tmp_path / "own")[0] == 0
    page = (tmp_path / "own" / "report.html").read_text()
    assert "tiny on toy val" in page
    code, stdout, _ = run(capsys, "evaluate", tmp_path / "own")
    assert code == 0
    assert "on toy val" in stdout
    moved = folder.rename(tmp_path / "elsewhere")
    code, _, stderr = run(capsys, "evaluate", tmp_path / "own")
    assert code == 1
    assert f"your own images in {folder}, and there is no such folder" in stderr
    assert run(capsys, "evaluate", tmp_path / "own", "--manual_dir", moved)[0] == 0


def test_evaluate_takes_a_folder_with_a_test_set_alone(tmp_path, model_dir, capsys):
    folder = write_folder(
        tmp_path / "toy", {"test": 2}, encode_mask=lambda label: encoded(np.minimum(label, 1))
    )
    own = init(create_tiny("tiny", 3))
    flaxseg.save_model(tmp_path / "own", own, name="tiny", num_classes=3, class_names=CLASSES)
    flags = ("--data=folder", "--manual_dir", folder, "--data_dir", tmp_path / "data")
    code, stdout, stderr = run(capsys, "evaluate", tmp_path / "own", *flags)
    assert code == 0, stderr
    assert "on toy test: 2 images" in stdout


def test_evaluate_on_a_canvas(model_dir, dataset, capsys):
    flags = (model_dir, "--data", "toy", "--pad_to")
    code, stdout, _ = run(capsys, "evaluate", *flags, 9, 10)
    assert code == 0
    counted = sum(int((r["label"] != 255).sum()) for r in dataset[1])
    assert f"pixels: {counted:,} counted" in stdout
    code, _, stderr = run(capsys, "evaluate", *flags, 8, 10)
    assert code == 1
    assert "does not fit on the canvas" in stderr


def test_evaluate_refuses_other_classes(tmp_path, model_dir, dataset, capsys, monkeypatch):
    info, _ = dataset
    changed = DatasetInfo(**{**vars(info), "class_names": ("ground", "car", "tree")})
    monkeypatch.setattr(data, "dataset_info", lambda name: changed)
    flags = ("evaluate", model_dir, "--data", "toy")
    code, _, stderr = run(capsys, *flags)
    assert code == 2
    assert "1 ('tree' in the model, 'car' in the data)" in stderr
    fewer = DatasetInfo(
        **{
            **vars(info),
            "class_names": NAMES[:2],
            "class_colors": voc_colors(2),
            "label_map": {0: 0, 1: 1},
        }
    )
    monkeypatch.setattr(data, "dataset_info", lambda name: fewer)
    code, _, stderr = run(capsys, *flags)
    assert code == 2
    assert "3 classes and data set 'toy' has 2" in stderr


def test_evaluate_errors_are_one_clear_line(tmp_path, model_dir, dataset, capsys):
    code, _, stderr = run(capsys, "evaluate", model_dir, "--data", "toy", "--data_dir", "nowhere")
    assert (code, stderr) == (1, "error: toy is not prepared in nowhere; run prepare-data toy\n")
    code, _, stderr = run(capsys, "evaluate", tmp_path / "no", "--data", "toy")
    assert code == 1
    assert "there is no folder" in stderr


# The program as a whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "MODEL", "--data=camvit"], "Did you mean 'camvid'?"),
        (["evaluate", "MODEL", "--data=voc"], "Did you mean 'voc_segmentation'?"),
        (["report", "MODEL", "--data=foldr"], "Did you mean 'folder'?"),
        (["tune-crf", "MODEL", "--data=camvit"], "Did you mean 'camvid'?"),
        (["prepare-data", "camvit"], "Did you mean 'camvid'?"),
        (["verify-data", "camvit"], "Did you mean 'camvid'?"),
        (["show-data", "camvit"], "Did you mean 'camvid'?"),
        (["show-data", "shapes", "--config=nowhere.py"], "nowhere.py cannot be read"),
        (["learn-basis", "camvit", "--out=OUT"], "Did you mean 'camvid'?"),
        (["learn-basis", "camvid", "--split=trai", "--out=OUT"], "Did you mean 'train'?"),
        (["predict", "a.png", "--model=MODEL", "--out=OUT", "--protocol=hole"], "'whole'?"),
        (["predict", "a.png", "--model=MODEL", "--out=OUT", "--crf=crfasrnm"], "'crfasrnn'?"),
        (["predict", "a.png", "--model=MODEL", "--out=OUT", "--save=masks"], "'mask'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_exits_with_2_wherever_it_is_given(
    tmp_path, model_dir, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(model_dir), "OUT": str(tmp_path / "out")}
    for name, path in places.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    code, _, stderr = run(capsys, *arguments)
    assert code == 2
    assert stderr.startswith("error: ")
    assert words in stderr


def test_a_wrong_split_exits_with_2(tmp_path, model_dir, dataset, capsys, monkeypatch):
    def open_split(name, split, data_dir=None):
        raise ConfigError(f"data set {name!r} has no split {split!r}")

    monkeypatch.setattr(data, "open_split", open_split)
    for command in ("evaluate", "report", "tune-crf"):
        code, _, stderr = run(capsys, command, model_dir, "--data=toy", "--split=vol")
        assert (code, "no split 'vol'" in stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predit"], "Did you mean 'predict'?"),
        (["predict", "a.png", "--modell=x", "--model=y", "--out=z"], "Did you mean '--model'?"),
        (["export", "x", "--out=y"], "required: --size"),
        (["evaluate", "x", "--data=y", "--batch_size=0"], "at least 1, got 0"),
        (["predict", "--model=x", "--out=y"], "IMAGE|FOLDER|GLOB|-"),
    ],
)
def test_wrong_flags_exit_with_2_and_a_hint(capsys, arguments, words):
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 2
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert words in stderr
    assert "--help" in stderr


@pytest.mark.parametrize(
    "command",
    [
        [],
        *([n] for n in ("evaluate", "results", "predict", "export", "prune", "learn-basis")),
        ["prepare-data"],
    ],
)
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  python -m flaxseg" in text
    assert max(map(len, text.splitlines())) <= 110


def test_models_lists_what_can_be_built(capsys):
    code, stdout, _ = run(capsys, "models")
    assert code == 0
    listed = stdout.split()
    for name in (*flaxseg.list_models(), "efficientnet_lite0", *data.list_datasets()):
        assert name in listed


def test_prepare_data(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(data, "is_prepared", lambda name, data_dir: bool(calls))
    monkeypatch.setattr(
        data,
        "prepare",
        lambda *arguments, **options: calls.append((arguments, options)) or tmp_path,
    )
    manifest = type("Manifest", (), {"splits": {"train": 3, "test": 1}, "left_out": 0})
    monkeypatch.setattr(data, "read_manifest", lambda name, data_dir: manifest)
    flags = ("prepare-data", "toy", "--data_dir=d", "--manual_dir=m", "--allow_problems=orphan")
    code, stdout, _ = run(capsys, *flags)
    assert code == 0
    assert calls == [(("toy", "d", "m"), {"allow_problems": "orphan"})]
    assert stdout == f"toy is ready in {tmp_path}: train 3, test 1\n"
    assert "was ready already" in run(capsys, *flags)[1]


@pytest.mark.parametrize(("given", "used"), [(None, "3"), ("0", "0")])
def test_lines_of_xla_are_hidden_unless_they_are_asked_for(monkeypatch, capsys, given, used):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given or "")
    if given is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    assert run(capsys, "recipes")[0] == 0
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == used


def test_an_interrupt_is_no_traceback(monkeypatch, capsys, model_dir, dataset):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "open_split", interrupt)
    code, _, stderr = run(capsys, "evaluate", model_dir, "--data", "toy")
    assert (code, stderr) == (130, "interrupted\n")


def test_as_a_module_in_a_process_of_its_own(repository, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "flaxseg"]
    version = subprocess.run(
        [*command, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert version.stdout == f"flaxseg {flaxseg.__version__}\n"
    failed = subprocess.run(
        [*command, "predict", "a.png", "--model=none", "--out=out"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no folder")
    assert "Traceback" not in failed.stderr
