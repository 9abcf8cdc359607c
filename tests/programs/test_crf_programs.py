"""`--crf` of evaluate and predict, and the search for its parameters."""

import doctest
import json

import numpy as np
import pytest
from PIL import Image
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli, data
from flaxseg.crf import PRESETS, crf_preset, dense_crf, unary_from_probabilities
from flaxseg.crf import options as crf_options
from flaxseg.crf.options import format_crf, parse_crf
from flaxseg.data import DatasetInfo
from flaxseg.errors import ConfigError, DataError
from flaxseg.evaluation import ConfusionMatrix
from flaxseg.inference import Protocol, Segmenter
from flaxseg.layers import normalize
from flaxseg.programs.tune_crf import tune_crf

NAMES, COLORS = ("ground", "tree", "car"), ((10, 20, 30), (0, 200, 0), (200, 0, 200))
CRF = (
    "deeplab_v2_vgg16(w1=3, sigma_alpha=8, sigma_beta=40, w2=1, sigma_gamma=1, iterations=3, "
    "normalization='symmetric')"
)


def record(seed, size=(12, 14)):
    """Two halves of noise, with the labels 0 and 2 and some that are ignored."""
    rng = np.random.default_rng(seed)
    side = np.arange(size[1])[None] > 5 + seed
    image = np.where(side[..., None], 190, 70) + rng.normal(scale=30, size=(*size, 3))
    label = np.broadcast_to(np.where(side, 2, 0), size).astype(np.uint8).copy()
    label[0] = 255
    return {"image": image.clip(0, 255).astype(np.uint8), "label": label, "id": f"scene {seed}"}


RECORDS = [record(seed) for seed in range(3)]


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)
    info = DatasetInfo(
        name="tiny",
        version="1",
        description="",
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
    monkeypatch.setattr(data, "dataset_info", lambda name: info)
    monkeypatch.setattr(data, "open_split", lambda name, split, data_dir=None: RECORDS)
    flaxseg.save_model(
        tmp_path / "model",
        init(create_tiny("tiny", 3)),
        name="tiny",
        num_classes=3,
        class_names=NAMES,
        class_colors=COLORS,
    )
    return tmp_path / "model"


def refined(model_dir, image, crf):
    """The classes by the parts: the model's logits, then the CRF."""
    model, variables = flaxseg.load_model(model_dir)
    logits = model.apply(variables, normalize(image[None], model.normalization)).logits[0]
    pred = logits if crf is None else dense_crf(-logits, image, crf)
    return np.argmax(pred, -1)


def test_evaluate_measures_the_refined_predictions(tmp_path, model_dir, capsys):
    common = ["evaluate", str(model_dir), "--data=tiny"]
    assert cli.main([*common, f"--crf={CRF}", "--out", str(tmp_path / "out")]) == 0
    assert f"CRF: {CRF}" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["crf"] == CRF
    plain, matrix = ConfusionMatrix(3), ConfusionMatrix(3)
    for entry in RECORDS:
        plain.update(entry["label"], refined(model_dir, entry["image"], None))
        matrix.update(entry["label"], refined(model_dir, entry["image"], parse_crf(CRF)))
    assert report["confusion_matrix"] == matrix.matrix.tolist()
    assert (matrix.matrix != plain.matrix).any()


def test_predict_writes_the_refined_mask(tmp_path, model_dir):
    Image.fromarray(RECORDS[0]["image"]).save(tmp_path / "scene.png")
    arguments = ["predict", tmp_path / "scene.png", "--model", model_dir, "--out", tmp_path / "out"]
    assert cli.main([*map(str, arguments), f"--crf={CRF}"]) == 0
    mask = np.asarray(Image.open(tmp_path / "out/scene_mask.png"))
    np.testing.assert_array_equal(mask, refined(model_dir, RECORDS[0]["image"], parse_crf(CRF)))
    assert (mask != np.asarray(refined(model_dir, RECORDS[0]["image"], None))).any()


def test_tune_crf_finds_the_best_and_prints_it(tmp_path, model_dir, capsys):
    arguments = ["tune-crf", str(model_dir), "--data=tiny", f"--crf={CRF}"]
    arguments += ["--w1", "0.5", "6", "--sigma_alpha=8", "--sigma_beta", "20", "60"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    report = json.loads((tmp_path / "out/crf.json").read_text())
    # Four of the grid, and around the best all at half the distance; there is none below
    # w1 = 0.5 nor below sigma_beta = 20.
    assert len(report["tried"]) in {4 + 3, 4 + 5, 4 + 8}
    assert report["images"] == 3
    scores = [entry["miou"] for entry in report["tried"]]
    assert scores == sorted(scores, reverse=True)
    assert report["crf"] in captured.out
    assert "without CRF" in captured.out
    assert "coarse search: 12 of 12" in captured.err
    for entry in (report["tried"][0], report["tried"][-1]):
        crf = crf_options.make_crf(**{name: entry[name] for name in crf_options.PARAMETERS})
        matrix = ConfusionMatrix(3)
        for scene in RECORDS:
            matrix.update(scene["label"], refined(model_dir, scene["image"], crf))
        assert matrix.metrics().miou == pytest.approx(entry["miou"])
    plain = ConfusionMatrix(3)
    for scene in RECORDS:
        plain.update(scene["label"], refined(model_dir, scene["image"], None))
    assert report["without"]["miou"] == plain.metrics().miou


def test_tune_crf_takes_a_limited_number_of_images(model_dir, capsys):
    arguments = ["tune-crf", str(model_dir), "--data=tiny", f"--crf={CRF}"]
    arguments += ["--w1=3", "--sigma_alpha=8", "--sigma_beta=40", "--limit=2"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "2 images" in out
    assert f'best: --crf="{CRF}"' in out, "values that stand alone are not refined"


def test_texts_of_crfs():
    for name in PRESETS:
        assert parse_crf(name) == crf_preset(name)
        assert parse_crf(format_crf(crf_preset(name))) == crf_preset(name)
    changed = parse_crf("crfasrnn(w2=1, iterations=2, normalization='none')")
    assert changed.iterations == 2
    assert changed.kernels[0].compat == 1
    assert changed.kernels[1].sigma_xy == 160
    assert changed.kernels[1].normalization == "none"
    assert not doctest.testmod(crf_options).failed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deeplab", "no CRF preset 'deeplab'; there are deeplab_v1_largefov"),
        ("crfasrnn(sigma=3)", "'crfasrnn' has no argument 'sigma'; it has w1, sigma_alpha"),
        ("crfasrnn(sigma_alpha=0)", "sigma_alpha is 0; it must be above 0"),
        ("crfasrnn(w1=1e999)", "w1 is inf; it must be 0 or more"),
        ("crfasrnn(w1=-1)", "w1 is -1; it must be 0 or more"),
        ("crfasrnn(w1='four')", "w1 is 'four'; give a number"),
        ("crfasrnn(w1=nan)", "w1 is nan, not a literal value"),
        ("crfasrnn(iterations=2.5)", "iterations is 2.5; give a whole number"),
        ("crfasrnn(normalization='row')", "normalization is 'row'; it must be one of symmetric"),
        ("w1=4", "the CRF 'w1=4' is not understood"),
    ],
)
def test_texts_that_are_no_crf(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_crf(text)


def test_a_canvas_for_batches_and_a_crf_exclude_each_other(model_dir, capsys):
    common = [str(model_dir), "--crf=crfasrnn"]
    assert cli.main(["evaluate", "--data=tiny", "--pad_to", "16", "16", *common]) == 2
    assert "--crf cannot be combined with --pad_to" in capsys.readouterr().err


def test_searches_that_cannot_be_made(model_dir):
    segmenter = Segmenter(*flaxseg.load_model(model_dir))
    grid = {"w1": [3.0], "sigma_alpha": [8.0], "sigma_beta": [4.0]}
    with pytest.raises(DataError, match="no images"):
        tune_crf(segmenter, [], 3, parse_crf(CRF), grid)
    with pytest.raises(ConfigError, match=r"sigma_beta is \[-4.0\]; give numbers above 0"):
        tune_crf(segmenter, RECORDS, 3, parse_crf(CRF), grid | {"sigma_beta": [-4.0]})


def test_the_border_of_a_protocol_is_cut_off_before_the_crf(tmp_path, model_dir):
    image = RECORDS[0]["image"][:13, :11]
    Image.fromarray(image).save(tmp_path / "scene.png")
    flags = ["--model", str(model_dir), "--out", str(tmp_path / "out"), f"--crf={CRF}"]
    code = cli.main(["predict", str(tmp_path / "scene.png"), *flags, "--pad_multiple=8"])
    assert code == 0
    with Image.open(tmp_path / "out/scene_mask.png") as mask:
        found = np.asarray(mask)
    segmenter = Segmenter(*flaxseg.load_model(model_dir), Protocol(pad_multiple=8))
    unary = unary_from_probabilities(segmenter.run(image).probabilities)
    wanted = np.asarray(dense_crf(unary, image, parse_crf(CRF))).argmax(-1)
    np.testing.assert_array_equal(found, wanted)
