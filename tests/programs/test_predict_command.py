"""`predict`: lists, probabilities, what is done before, and what servers want."""

import io
import json
import os
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from image_bytes import png_bytes, tiff_bytes
from PIL import Image
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli, data
from flaxseg.crf import dense_crf
from flaxseg.crf.options import parse_crf
from flaxseg.files import whole_file
from flaxseg.inference import read_image
from flaxseg.layers import normalize
from flaxseg.programs.prediction import prediction_files

NAMES = ("ground", "tree", "car", "sky")
CRF = "deeplab_v2_vgg16(w1=3, sigma_alpha=8, sigma_beta=40, iterations=2)"


def save_tiny(folder, names=NAMES, seed=0):
    return flaxseg.save_model(
        folder,
        init(create_tiny("tiny", len(names), blur=True), seed),
        name="tiny",
        num_classes=len(names),
        options={"blur": True},
        class_names=names,
    )


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)
    return save_tiny(tmp_path / "model")


@pytest.fixture
def predict(tmp_path, model_dir, capsys):
    """Runs the command; (exit code, stdout, stderr)."""

    def run(*arguments, model=model_dir, out=tmp_path / "out"):
        code = cli.main(["predict", *map(str, arguments), f"--model={model}", f"--out={out}"])
        return code, *capsys.readouterr()

    return run


def image_file(path, height=12, width=17, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def indices(path):
    with Image.open(path) as mask:
        return np.asarray(mask)


def logits_of(model_dir, source):
    model, variables = flaxseg.load_model(model_dir)
    pixels = normalize(read_image(source)[None], model.normalization)
    return model.apply(variables, pixels).logits[0]


# lists


def test_a_list_on_standard_input(tmp_path, predict, monkeypatch):
    good = [image_file(tmp_path / "in" / f"{name}.png") for name in ("a", "with space", "*")]
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    odd = os.fsdecode(b"odd\xff.png")
    shutil.copy(good[0], tmp_path / "in" / odd)
    names = ["a.png", "", "missing.png", "with space.png", "broken.png", odd, "*.png", "a.png"]
    monkeypatch.chdir(tmp_path / "in")
    text = os.fsencode("\n".join(names))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))
    code, stdout, stderr = predict("-", good[0], "--save=mask")
    assert code == 1
    assert "4 of 6 images done" in stdout
    assert "2 of 6 images failed" in stderr
    assert "missing.png: No such file" in stderr
    assert "broken.png: not an image" in stderr
    masks = {path.name for path in (tmp_path / "out").glob("*_mask.png")}
    assert masks == {
        "a_mask.png",
        "with space_mask.png",
        "*_mask.png",
        os.fsdecode(b"odd\xff_mask.png"),
    }


@pytest.mark.parametrize(
    "form",
    [b"\xef\xbb\xbf%b\r\n%b\r\n", b"%b\0%b\0", b"\n%b\n\n%b"],
    ids=["editor", "find", "shell"],
)
def test_forms_of_a_list(tmp_path, predict, monkeypatch, form):
    names = [os.fsencode(image_file(tmp_path / "in" / f"{name}.png")) for name in ("a", "b")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(form % tuple(names))))
    code, stdout, _ = predict("-", "--save=mask")
    assert code == 0
    assert "2 of 2 images done" in stdout


def test_a_list_in_utf_16_is_named(predict, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("a.png\r\n".encode("utf-16"))))
    code, _, stderr = predict("-")
    assert code == 1
    assert stderr == "error: the list is in UTF-16; save it as UTF-8, with one name per line.\n"


def test_what_was_meant_and_not_taken_is_a_failure(tmp_path, predict):
    image_file(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.heic").write_bytes(b"")
    (tmp_path / "in" / "c.png").symlink_to("gone.png")
    (tmp_path / "in" / "more").symlink_to("unmounted")
    for done in ("1 of 2 images done", "0 of 1 images done"):
        code, stdout, stderr = predict(tmp_path / "in")
        assert code == 1
        assert done in stdout
        assert "1 of " in stderr
        assert "c.png: is a link to gone.png, which does not exist" in stderr
        assert "in/more cannot be searched: is a link to unmounted, which does not exist" in stderr
        assert "not read (.heic): 1" in stderr
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 1


def test_an_empty_list_is_said(predict, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n \n")))
    code, _, stderr = predict("-")
    assert code == 1
    assert "standard input is empty" in stderr


# what is saved


@pytest.mark.parametrize("protocol", ["whole", "windows(window=16)"])
def test_probabilities_are_those_of_the_model(tmp_path, predict, model_dir, protocol):
    source = image_file(tmp_path / "a.png", 16, 16)
    flags = ("--save=probabilities,mask", f"--protocol={protocol}")
    assert predict(source, *flags)[0] == 0
    assert not (tmp_path / "out/a_overlay.png").exists()
    wanted = np.asarray(jax.nn.softmax(logits_of(model_dir, source)))
    with np.load(tmp_path / "out/a_probabilities.npz") as file:
        assert sorted(file.files) == ["class_names", "probabilities"]
        assert tuple(file["class_names"]) == NAMES
        assert file["probabilities"].dtype == np.float16
        np.testing.assert_allclose(file["probabilities"], wanted, atol=6e-4)
    np.testing.assert_array_equal(indices(tmp_path / "out/a_mask.png"), wanted.argmax(-1))


def test_the_likeliest_classes_alone(tmp_path, predict, model_dir):
    source = image_file(tmp_path / "a.png")
    assert predict(source, "--save=probabilities", "--top_classes=3")[0] == 0
    wanted = np.asarray(jax.nn.softmax(logits_of(model_dir, source)))
    with np.load(tmp_path / "out/a_probabilities.npz") as file:
        classes, values = file["classes"], file["probabilities"]
        assert tuple(file["class_names"]) == NAMES
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, np.argsort(-wanted, -1)[..., :3])
    np.testing.assert_allclose(values, -np.sort(-wanted, -1)[..., :3], atol=6e-4)


def test_probabilities_behind_a_crf_are_its_marginals(tmp_path, predict, model_dir):
    source = image_file(tmp_path / "a.png")
    assert predict(source, "--save=mask,probabilities", f"--crf={CRF}")[0] == 0
    logits = logits_of(model_dir, source)
    wanted = np.asarray(dense_crf(-logits, read_image(source), parse_crf(CRF)))
    with np.load(tmp_path / "out/a_probabilities.npz") as file:
        np.testing.assert_allclose(file["probabilities"], wanted, atol=1e-3)
    assert np.abs(wanted - jax.nn.softmax(logits)).max() > 0.1
    mask = indices(tmp_path / "out/a_mask.png")
    assert np.mean(mask == wanted.argmax(-1)) > 0.98


def test_probabilities_too_large_are_refused_for_that_image(tmp_path, predict, monkeypatch):
    small, large = (
        image_file(tmp_path / "small.png", 4, 4),
        image_file(tmp_path / "large.png", 9, 9),
    )
    monkeypatch.setattr(prediction_files, "MAX_BYTES", 9 * 9 * 4 * 2 - 1)
    code, _, stderr = predict(small, large, "--save=probabilities")
    assert code == 1
    assert f"{large}: the probabilities of 9 x 9 pixels" in stderr
    assert "--top_classes=2" in stderr
    assert [p.name for p in (tmp_path / "out").glob("*.npz")] == ["small_probabilities.npz"]
    assert predict(large, "--save=probabilities", "--top_classes=2")[0] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save=mask,logits"], "'logits' is no kind of file"),
        (["--top_classes=2"], "add --save=mask,probabilities"),
        (["--save=probabilities", "--top_classes=5"], "the model has 4 classes"),
        (["--save=mask", "--submission=voc"], "--save cannot be combined with --submission"),
        (["--root=.", "--submission=voc"], "--root cannot be combined with --submission"),
        (["--root=out"], "is not below --root="),
        (["--submission=kitti"], "kitti"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, predict, flags, words):
    code, _, stderr = predict(image_file(tmp_path / "a.png"), *flags)
    assert code == 2
    assert words in stderr
    assert not (tmp_path / "out").exists()


def test_a_file_is_whole_or_not_there(tmp_path):
    with whole_file(tmp_path / "a.txt") as file:
        file.write(b"old")
        assert not (tmp_path / "a.txt").exists()

    def interrupted():
        with whole_file(tmp_path / "a.txt") as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_lines_of_python_in_the_readme_run(tmp_path, model_dir, repository, monkeypatch):
    page = (repository / "README.md").read_text()
    block = next(
        x for x in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "load_model" in x
    )
    monkeypatch.chdir(tmp_path)
    source = image_file(tmp_path / "street.jpg")
    (tmp_path / "runs").mkdir()
    model_dir.rename("runs/camvid")
    names = {}
    exec(block, names)
    wanted = logits_of("runs/camvid", source).argmax(-1)
    np.testing.assert_array_equal(names["classes"], wanted)
    np.testing.assert_array_equal(indices("street_mask.png"), wanted)


# what is done before


def test_a_second_call_does_what_is_not_done(tmp_path, predict, monkeypatch):
    for name in "abc":
        image_file(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "d.png").write_bytes(b"")
    out = tmp_path / "out"
    assert predict(tmp_path / "in")[0] == 1
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    # The bad one is mended, one changes, one loses a result.
    image_file(tmp_path / "in" / "d.png")
    image_file(tmp_path / "in" / "b.png", seed=1)
    (out / "c_overlay.png").unlink()
    code, stdout, _ = predict(tmp_path / "in")
    assert code == 0
    assert "1 of 4 images were done before" in stdout
    assert "3 of 3 images done" in stdout
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(after) == 8
    assert {name for name in before if after[name] == before[name]} == {
        "a_mask.png",
        "a_overlay.png",
    }
    # With all of it done not even the model is read.
    monkeypatch.setattr("flaxseg.load_model", None)
    code, stdout, _ = predict(tmp_path / "in")
    assert code == 0
    assert "4 of 4 images were done before" in stdout


OTHER_WAYS = (
    ["--protocol=whole(flip=True)"],
    ["--protocol=windows(window=16)"],
    ["--pad_multiple=4"],
    ["--crf=crfasrnn(iterations=0)"],
    ["--save=mask,overlay,probabilities"],
    ["--overwrite"],
)


@pytest.mark.parametrize("flags", OTHER_WAYS, ids=lambda flags: flags[0])
def test_results_of_another_way_are_not_taken(tmp_path, predict, flags):
    source = image_file(tmp_path / "a.png")
    assert predict(source)[0] == 0
    code, stdout, _ = predict(source, *flags)
    assert code == 0
    assert "1 of 1 images done" in stdout
    assert "done before" not in stdout
    # What was made in the first way is not there any more.
    if flags[0] != "--overwrite" and "--save" not in flags[0]:
        assert "1 of 1 images done" in predict(source)[1]


def test_results_of_another_model_or_image_are_not_taken(tmp_path, predict):
    source = image_file(tmp_path / "a.png")
    assert predict(source)[0] == 0
    mask = indices(tmp_path / "out/a_mask.png")
    other = save_tiny(tmp_path / "other", seed=1)
    assert "1 of 1 images done" in predict(source, model=other)[1]
    assert (indices(tmp_path / "out/a_mask.png") != mask).any()
    renamed = save_tiny(tmp_path / "renamed", ("ground", "tree", "car", "water"))
    assert "1 of 1 images done" in predict(source, model=renamed)[1]
    namesake = image_file(tmp_path / "elsewhere" / "a.png", seed=1)
    mask = indices(tmp_path / "out/a_mask.png")
    code, _, stderr = predict(namesake, "--overwrite", model=renamed)
    assert code == 2
    assert f"a_mask.png is the result of {source}; that of {namesake} would replace it" in stderr
    assert (indices(tmp_path / "out/a_mask.png") == mask).all()
    assert predict(namesake, f"--root={tmp_path}", model=renamed)[0] == 0
    assert (tmp_path / "out/elsewhere/a_mask.png").exists()


def test_a_record_that_was_cut_off_goes_on(tmp_path, predict):
    sources = [image_file(tmp_path / f"{name}.png") for name in "ab"]
    assert predict(*sources)[0] == 0
    record = tmp_path / "out/predictions.jsonl"
    lines = record.read_text().splitlines()
    assert json.loads(lines[0])["are"]["class_names"] == list(NAMES)
    assert json.loads(lines[1])["files"] == {"a_mask.png": None, "a_overlay.png": None}
    assert json.loads(lines[2])["files"].keys() == {"a_mask.png", "a_overlay.png"}
    record.write_text("\n".join([*lines[:4], lines[4][:40]]))
    assert "1 of 1 images done" in predict(*sources)[1]
    assert "2 of 2 images were done before" in predict(*sources)[1]
    # What no line is left of is not replaced.
    record.write_text('\x00\n[1]\n7\n{"files": 3}\n{"settings": 1, "files": {"a_mask.png": 2}}')
    code, _, stderr = predict(*sources)
    assert code == 2
    assert "a_mask.png exists, and no predictions.jsonl says which image it belongs to" in stderr


def test_a_folder_that_was_moved_is_still_done(tmp_path, predict):
    source = image_file(tmp_path / "a.png")
    assert predict(source)[0] == 0
    (tmp_path / "out").rename(tmp_path / "moved")
    assert "done before" in predict(source, out=tmp_path / "moved")[1]


# notes


def test_what_was_done_to_an_image_is_printed_with_it(tmp_path, predict):
    folder = tmp_path / "in"
    folder.mkdir()
    samples = np.random.default_rng(0).integers(0, 4096, (12, 17, 3))
    samples[0, 0] = 4095
    (folder / "twelve.PNG").write_bytes(png_bytes(samples, 16, "RGB"))
    (folder / "bands.tif").write_bytes(tiff_bytes(np.zeros((12, 17, 13), int), 16, 1))
    code, stdout, stderr = predict(folder, "--save=mask")
    assert code == 1
    assert f"{folder}/twelve.PNG  (reduced 16 bits to 8, of which little is left: only 12" in stdout
    assert f"{folder}/bands.tif: a TIFF of 13 bands of 16 bits; give 3" in stderr


# submissions


def submit(tmp_path, predict, server, names, size=(12, 17), info=None):
    """Runs a model of the data set on images of these names."""
    classes = data.dataset_info(info).class_names
    model = save_tiny(tmp_path / "net", classes)
    for seed, name in enumerate(names):
        image_file(tmp_path / "in" / name, *size, seed=seed)
    code, stdout, stderr = predict(tmp_path / "in", f"--submission={server}", model=model)
    logits = {name: logits_of(model, tmp_path / "in" / name) for name in names}
    preds = {name: np.argmax(values, -1) for name, values in logits.items()}
    return code, stdout, stderr, preds


def test_submission_to_voc(tmp_path, predict):
    names = ["2008_000006.jpg", "2011_002121.jpg"]
    code, stdout, _, preds = submit(tmp_path, predict, "voc", names, info="voc_segmentation")
    assert code == 0
    assert "2 results; the server expects one for each image of the split (test has 1456)" in stdout
    subprocess.run(stdout.splitlines()[-1].strip(), shell=True, check=True)
    listing = subprocess.run(
        ["tar", "-tzf", tmp_path / "out/voc.tgz"], capture_output=True, text=True, check=True
    )
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    files = [line for line in listing.stdout.split() if not line.endswith("/")]
    assert sorted(files) == [f"{folder}/2008_000006.png", f"{folder}/2011_002121.png"]
    with Image.open(tmp_path / "out" / files[0]) as png:
        assert png.mode == "P"
        assert png.getpalette()[3 * 15 : 3 * 16] == [192, 128, 128]  # person
    for name in names:
        found = indices(tmp_path / "out" / folder / name.replace(".jpg", ".png"))
        np.testing.assert_array_equal(found, preds[name])


def test_a_submission_has_the_orientation_of_the_stored_pixels(tmp_path, predict):
    classes = data.dataset_info("voc_segmentation").class_names
    source, exif = image_file(tmp_path / "in" / "2008_000006.png"), Image.Exif()
    exif[0x0112] = 6
    Image.open(source).save(source, exif=exif)
    model = save_tiny(tmp_path / "net", classes)
    for argument, size in {"--submission=voc": (12, 17), "--save=mask": (17, 12)}.items():
        out = tmp_path / argument
        assert predict(source, argument, model=model, out=out)[0] == 0
        (mask,) = out.rglob("*.png")
        assert indices(mask).shape == size


def test_submission_to_ade20k(tmp_path, predict):
    names = ["ADE_test_00000001.jpg", "sub/ADE_test_00000002.jpg"]
    code, stdout, _, preds = submit(tmp_path, predict, "ade20k", names, info="ade20k")
    assert code == 0
    assert "(val has 2000)" in stdout
    for name in names:
        with Image.open(tmp_path / "out/ade20k" / f"{name[-21:-4]}.png") as png:
            assert png.mode == "L"
            np.testing.assert_array_equal(np.asarray(png), preds[name] + 1)
    assert (
        "2 of 2 images were done before"
        in predict(tmp_path / "in", "--submission=ade20k", model=tmp_path / "net")[1]
    )


def test_submission_to_cityscapes(tmp_path, predict):
    names = [
        "berlin/berlin_000000_000019_leftImg8bit.png",
        "bad-honnef/bad-honnef_000001_000029_leftImg8bit.png",
    ]
    code, _, _, preds = submit(
        tmp_path, predict, "cityscapes", names, size=(1024, 2048), info="cityscapes"
    )
    assert code == 0
    ids = {0: 7, 1: 8, 2: 11, 3: 12, 4: 13, 5: 17, 6: 19, 7: 20, 8: 21, 9: 22, 10: 23, 11: 24}
    ids |= {12: 25, 13: 26, 14: 27, 15: 28, 16: 31, 17: 32, 18: 33}
    found = sorted((tmp_path / "out/cityscapes").iterdir())
    assert [p.name for p in found] == [
        "bad-honnef_000001_000029_pred.png",
        "berlin_000000_000019_pred.png",
    ]
    with Image.open(found[1]) as png:
        assert png.mode == "L"
        wanted = np.vectorize(ids.get)(preds[names[0]])
        assert np.mean(np.asarray(png) == wanted) > 0.9999
        assert len(np.unique(wanted)) > 3


def test_submission_of_a_image_of_another_size(tmp_path, predict):
    names = ["ulm_000000_000019_leftImg8bit.png"]
    code, _, stderr, _ = submit(tmp_path, predict, "cityscapes", names, info="cityscapes")
    assert code == 1
    assert f"{names[0]}: is 12 x 17 (height x width)" in stderr
    assert "1024 x 2048" in stderr


@pytest.mark.parametrize(
    ("server", "info", "names", "words"),
    [
        ("voc", "voc_segmentation", ["2008_000006.jpg", "cat.jpg"], "1 of 2 images are not"),
        ("voc", "voc_segmentation", ["2008_000006_mask.png"], "such as 2008_000006.jpg"),
        ("ade20k", "ade20k", ["ADE_train_00000001.jpg"], "such as ADE_test_00000001.jpg"),
        ("cityscapes", "cityscapes", ["ulm_000000_000019_gtFine_color.png"], "_leftImg8bit.png"),
        ("ade20k", "ade20k", ["a/ADE_val_00000001.jpg", "b/ADE_val_00000001.jpg"], "both become"),
    ],
)
def test_submission_of_images_of_other_names(tmp_path, predict, server, info, names, words):
    code, _, stderr, _ = submit(tmp_path, predict, server, names, info=info)
    assert code in (1, 2)
    assert words in stderr
    assert not (tmp_path / "out").exists()


def test_submission_by_a_model_of_other_classes(tmp_path, predict):
    source = image_file(tmp_path / "2008_000006.jpg")
    code, _, stderr = predict(source, "--submission=voc")
    assert code == 2
    assert "the model has 4 classes and data set 'voc_segmentation' has 21" in stderr
    names = list(data.dataset_info("voc_segmentation").class_names)
    names[3], names[4] = names[4], names[3]
    swapped = save_tiny(tmp_path / "swapped", names)
    code, _, stderr = predict(source, "--submission=voc", model=swapped)
    assert code == 2
    assert "class 3 ('boat' in the model, 'bird' in the data), 4 ('bird'" in stderr
