"""IoU of categories and of instances, against Cityscapes' own script."""

import copy
import io
import json
import math
import zipfile

import numpy as np
import peers
import pytest
import scipy.ndimage
from PIL import Image
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli, data
from flaxseg.data.sets.cityscapes import CATEGORIES, INFO, find_instances, read_instances
from flaxseg.errors import DataError
from flaxseg.evaluation import ConfusionMatrix, SegmentationMetrics
from flaxseg.evaluation.cityscapes_scores import InstanceCounts, cityscapes_scores
from flaxseg.inference import predict

# Published ids of what has instances: caravans (29) and trailers (30) too, which do not count.
THINGS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
NAMES = ("frankfurt_000000_000294", "frankfurt_000001_000019", "munster_000000_000019")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def blobs(seed, values, size=(48, 64)):
    """A map of regions of these values."""
    noise = np.random.default_rng(seed).normal(size=(len(values), *size))
    return np.asarray(values)[scipy.ndimage.gaussian_filter(noise, (0, 2, 2)).argmax(0)]


def instances_of(label):
    """uint16 ids as published: each connected region is an instance, every fifth one a group."""
    result = label.astype(np.uint16)
    for thing in THINGS:
        regions, count = scipy.ndimage.label(label == thing)
        for number in range(count):
            if number % 5 != 4:
                result[regions == number + 1] = 1000 * thing + number
    return result


def official(peer, folder, labels, preds):
    """The scores by the script, of files as it wants them."""
    folder.mkdir()
    truth_files, pred_files = [], []
    for name, label, pred in zip(NAMES, labels, preds, strict=True):
        truth_files.append(str(folder / f"{name}_gtFine_labelIds.png"))
        pred_files.append(str(folder / f"{name}_pred.png"))
        Image.fromarray(label.astype(np.uint8)).save(truth_files[-1])
        Image.fromarray(instances_of(label)).save(folder / f"{name}_gtFine_instanceIds.png")
        Image.fromarray(data.cityscapes_label_ids(pred)).save(pred_files[-1])
    args = copy.copy(peer.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, True
    return peer.evaluateImgLists(pred_files, truth_files, args)


def ours(folder, labels, preds):
    label_map = np.vectorize(INFO.label_map.get)
    matrix, instances = ConfusionMatrix(19), InstanceCounts()
    files = find_instances(folder, "val")
    for name, label, pred in zip(NAMES, labels, preds, strict=True):
        matrix.update(label_map(label), pred)
        instances.update(*read_instances(files[name]), pred)
    return matrix.metrics(), cityscapes_scores(matrix.metrics(), instances)


def check_equal(wanted, metrics, scores):
    for index, name in enumerate(INFO.class_names):
        assert metrics.iou[index] == pytest.approx(wanted["classScores"][name], nan_ok=True)
        assert scores.class_iiou[index] == pytest.approx(
            wanted["classInstScores"][name], nan_ok=True
        )
    for index, name in enumerate(CATEGORIES):
        assert scores.categories.iou[index] == pytest.approx(
            wanted["categoryScores"][name], nan_ok=True
        )
        assert scores.category_iiou[index] == pytest.approx(
            wanted["categoryInstScores"][name], nan_ok=True
        )
    assert metrics.miou == pytest.approx(wanted["averageScoreClasses"])
    assert scores.categories.miou == pytest.approx(wanted["averageScoreCategories"])
    assert scores.mean_class_iiou == pytest.approx(wanted["averageScoreInstClasses"])
    assert scores.mean_category_iiou == pytest.approx(wanted["averageScoreInstCategories"])


@pytest.fixture
def peer(monkeypatch):
    if not hasattr(np, "in1d"):  # NumPy has dropped it, the script has not
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    return peers.import_cityscapesscripts()


@pytest.mark.peer
@pytest.mark.parametrize("values", [range(34), (0, 7, 11, 24, 26, 29)])
def test_equals_the_script_on_random_maps(tmp_path, peer, values):
    labels = [blobs(seed, values) for seed in range(3)]
    rng = np.random.default_rng(0)
    preds = []
    for seed, label in enumerate(labels):
        truth = np.vectorize(INFO.label_map.get)(label)
        guess = np.where(truth == 255, 0, truth)
        other = blobs(seed + 9, range(19) if len(values) > 9 else (0, 2, 11, 12, 13))
        preds.append(np.where(rng.random(label.shape) < 0.7, guess, other))
    wanted = official(peer, tmp_path / "gt", labels, preds)
    check_equal(wanted, *ours(tmp_path / "gt", labels, preds))
    assert 0 < wanted["averageScoreInstClasses"] < 1
    if len(values) < 9:
        assert math.isnan(wanted["classInstScores"]["train"])


@pytest.mark.peer
def test_equals_the_script_on_real_labels(tmp_path, peer, shared_dir):
    """Streets of CamVid with the ids of Cityscapes; the next frame stands for the prediction."""
    ids = np.array([23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0])
    folder = shared_dir / "data/camvid/testannot"
    frames = [ids[np.asarray(Image.open(path))] for path in sorted(folder.glob("*.png"))[:4]]
    to_train = np.vectorize(INFO.label_map.get)
    preds = [np.where(to_train(x) == 255, 2, to_train(x)) for x in frames[1:]]
    wanted = official(peer, tmp_path / "gt", frames[:-1], preds)
    check_equal(wanted, *ours(tmp_path / "gt", frames[:-1], preds))
    assert 0.05 < wanted["classInstScores"]["car"] < 0.95


def test_hand_numbers():
    """Two cars of 1 and 3 pixels: found are the small one and one pixel of the large one."""
    instances = np.array([[1, 2, 2, 2, 0, 0]])
    pred = np.array([[13, 13, 14, 0, 13, 0]])
    label = np.array([[13, 13, 13, 13, 0, 0]])
    counts, matrix = InstanceCounts(), ConfusionMatrix(19)
    counts.update(instances, np.array([255, 13, 13], np.uint8), pred)
    matrix.update(label, pred)
    scores = cityscapes_scores(matrix.metrics(), counts)
    size = 12794.0202738185
    assert scores.class_iiou[13] == pytest.approx(size * (1 + 1 / 3) / (2 * size + 1))
    vehicle = list(CATEGORIES).index("vehicle")
    assert scores.category_iiou[vehicle] == pytest.approx(size * (1 + 2 / 3) / (2 * size + 1))
    assert scores.categories.iou[vehicle] == pytest.approx(3 / 5)
    assert np.isnan(scores.class_iiou[[0, 11]]).all()
    assert np.isnan(scores.category_iiou[list(CATEGORIES).index("human")])
    assert "vehicle" in scores.table()
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["class_iiou"]["road"] is None


def test_without_instances_there_are_categories_alone():
    metrics = SegmentationMetrics.from_matrix(np.eye(19, dtype=int))
    scores = cityscapes_scores(metrics)
    assert scores.categories.miou == 1
    assert "class_iiou" not in scores.to_dict()
    assert math.isnan(scores.mean_class_iiou)
    assert "100.00        -" in scores.table()
    with pytest.raises(ValueError, match=r"each of 0\.\.18 must be in one group"):
        metrics.merged([range(18)])


def test_files_that_are_not_instances(tmp_path):
    with pytest.raises(DataError, match=r"holds no \*_gtFine_instanceIds.png"):
        find_instances(tmp_path, "val")
    with pytest.raises(DataError, match=r"holds no \*_gtCoarse_instanceIds.png"):
        find_instances(tmp_path, "val_coarse")
    path = tmp_path / "a_gtFine_instanceIds.png"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a_gtFine_instanceIds\.png: "):
        read_instances(find_instances(tmp_path, "val")["a"])
    path.write_bytes(png(np.full((2, 2), 50_000, np.uint16)))
    with pytest.raises(DataError, match=r"outside the map: 50 \(1"):
        read_instances(path)
    path.write_bytes(png(np.full((2, 2), 7_001, np.uint16)))
    counts = InstanceCounts()
    with pytest.raises(DataError, match="instances of 'road'"):
        counts.update(*read_instances(path), np.zeros((2, 2), int))
    with pytest.raises(DataError, match=r"\(2, 2\) and the prediction is \(3, 2\)"):
        counts.update(*read_instances(path), np.zeros((3, 2), int), "x")


# the programs


@pytest.fixture
def published(tmp_path):
    """Two images of `train` and three of `val` as published, their labels in a zip."""
    labels = {}
    with (
        zipfile.ZipFile(tmp_path / "leftImg8bit_trainvaltest.zip", "w") as images,
        zipfile.ZipFile(tmp_path / "gtFine_trainvaltest.zip", "w") as truth,
    ):
        for seed, name in enumerate((*NAMES, "ulm_000000_000019", "ulm_000001_000019")):
            part = "train" if name.startswith("ulm") else "val"
            place = f"{part}/{name.partition('_')[0]}/{name}"
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3)).astype(np.uint8)
            labels[name] = blobs(seed, range(34))
            images.writestr(f"leftImg8bit/{place}_leftImg8bit.png", png(pixels))
            ids = png(labels[name].astype(np.uint8))
            truth.writestr(f"gtFine/{place}_gtFine_labelIds.png", ids)
            truth.writestr(
                f"gtFine/{place}_gtFine_instanceIds.png", png(instances_of(labels[name]))
            )
    return labels


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)
    variables = init(create_tiny("tiny", 19))
    options = {"num_classes": 19, "class_names": INFO.class_names}
    return flaxseg.save_model(tmp_path / "model", variables, name="tiny", **options)


@pytest.mark.peer
def test_evaluate_prints_and_writes_them(tmp_path, peer, published, model_dir, capsys):
    flags = ["--data=cityscapes", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    command = ["evaluate", str(model_dir), *flags, f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, f"--instances={tmp_path}", "--num_images=0"]) == 0
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    records = data.open_split("cityscapes", "val", tmp_path / "data")
    assert [record["id"] for record in records] == list(NAMES)
    model = flaxseg.load_model(model_dir)
    preds = [predict(*model, record["image"]) for record in records]
    labels = [published[name] for name in NAMES]
    wanted = official(peer, tmp_path / "gt", labels, preds)
    metrics, scores = ours(tmp_path / "gt", labels, preds)
    check_equal(wanted, metrics, scores)
    assert report["cityscapes"] == scores.to_dict()
    assert scores.table() in capsys.readouterr().out
    # Without the files there are categories still.
    assert cli.main([*command, "--num_images=0"]) == 0
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["cityscapes"] == cityscapes_scores(metrics).to_dict()


@pytest.mark.peer
def test_evaluate_names_the_image_without_instances(tmp_path, published, model_dir, capsys, peer):
    label = published[NAMES[0]]
    official(peer, tmp_path / "gt", [label] * 3, [np.zeros_like(label)] * 3)
    (tmp_path / "gt" / f"{NAMES[1]}_gtFine_instanceIds.png").unlink()
    flags = ["--data=cityscapes", f"--manual_dir={tmp_path}", f"--data_dir={tmp_path / 'data'}"]
    command = ["evaluate", str(model_dir), *flags]
    assert cli.main([*command, f"--instances={tmp_path / 'gt'}"]) == 1
    assert f"no instanceIds of {NAMES[1]}" in capsys.readouterr().err
