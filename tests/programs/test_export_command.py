"""`python -m flaxseg export`, as a user runs it, and the documentation's way to read its files."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from onnx_packages import import_onnx
from PIL import Image
from tiny_model import create_tiny, init

import flaxseg
from flaxseg import cli
from flaxseg.export import read_onnx_card, read_stablehlo_card
from flaxseg.inference import predict

SIZE = (12, 17)


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxseg.models.create_model", create_tiny)
    return flaxseg.save_model(
        tmp_path / "model",
        init(create_tiny("tiny", 3, blur=True)),
        name="tiny",
        num_classes=3,
        options={"blur": True},
        class_names=("ground", "tree", "car"),
        extra={"step": 5, "config": {"data": {"manual_dir": "/home/me"}}},
    )


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "street.png"
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capsys, *arguments):
    code = cli.main(["export", *map(str, arguments)])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.peer)])
def test_a_saved_model_is_exported_and_checked(tmp_path, model_dir, image_file, capsys, suffix):
    if suffix == ".onnx":
        import_onnx()
    out = tmp_path / "files" / f"tiny{suffix}"
    code, stdout, stderr = run(
        capsys, model_dir, "--size", *SIZE, f"--out={out}", "--check", image_file
    )
    assert (code, stderr) == (0, "")
    assert f"any number of images of 12 x 17 (height x width) is in {out}" in stdout
    assert f"{image_file}: 100.0000 % of the pixels" in stdout
    card = (read_onnx_card if suffix == ".onnx" else read_stablehlo_card)(out)
    assert card["class_names"] == ["ground", "tree", "car"]
    wanted = flaxseg.read_model_card(model_dir)
    assert card["extra"] == {
        "model": "tiny",
        "options": {"blur": True},
        "weights": wanted["weights"],
        "step": 5,  # and not the settings, with folders of the machine of the training
    }


def test_a_file_that_differs_is_an_error(tmp_path, model_dir, image_file, capsys, monkeypatch):
    monkeypatch.setattr("flaxseg.export.check.agreement", lambda *_: [1.0, 0.998])
    flags = (model_dir, "--size", *SIZE, f"--out={tmp_path / 'x.stablehlo'}")
    code, _, stderr = run(capsys, *flags, "--check", image_file, image_file)
    assert code == 1
    assert "does not agree with the model" in stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=x.pb", "--size", "8", "8"], "must end in .stablehlo or .onnx"),
        (["--out=x.onnx"], "required: --size"),
        (["--out=x.onnx", "--size", "8", "8", "--platforms", "cpu"], "--platforms is for"),
        (["--out=x.onnx", "--size", "8", "8", "--batch=0"], "at least 1, got 0"),
        (
            ["--out=x.onnx", "--size", "8", "8", "--outputs", "logits", "--check", "x.png"],
            "compares classes",
        ),
    ],
)
def test_wrong_flags(model_dir, capsys, flags, words):
    code, _, stderr = run(capsys, model_dir, *flags)
    assert code == 2
    assert words in stderr


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.peer)])
def test_the_documented_lines_read_the_file_without_flaxseg(
    tmp_path, model_dir, image_file, capsys, repository, suffix
):
    if suffix == ".onnx":
        import_onnx()
    flags = ("--size", *SIZE, "--outputs", "classes", "probabilities")
    assert run(capsys, model_dir, *flags, f"--out={tmp_path / f'camvid{suffix}'}")[0] == 0
    blocks = re.findall(
        r"```python\n(.*?)```", (repository / "docs" / "export.md").read_text(), re.DOTALL
    )
    (lines,) = [block for block in blocks if f'"camvid{suffix}"' in block and "Image" in block]
    program = (
        f"{lines}\nimport sys\n"
        "assert not any(name.partition('.')[0] == 'flaxseg' for name in sys.modules)\n"
        "np.save('classes.npy', classes)\nprint(card['class_names'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.replace("'", '"')) == ["ground", "tree", "car"]
    with Image.open(image_file) as image:
        wanted = predict(*flaxseg.load_model(model_dir), np.asarray(image))
    np.testing.assert_array_equal(np.load(tmp_path / "classes.npy"), wanted)


@pytest.mark.peer
@pytest.mark.parametrize("suffix", [".stablehlo", ".onnx"])
def test_real_weights_on_real_images(tmp_path, shared_dir, capsys, suffix):
    if suffix == ".onnx":
        import_onnx()
    weights = shared_dir / "data" / "weights" / "deeplabv3_mobilenet_v2_voc21.safetensors"
    images = sorted((shared_dir / "data" / "voc2012_sample").rglob("*.jpg"))[:2]
    assert len(images) == 2
    assert cli.main(["import", str(weights), "--out", str(tmp_path / "voc")]) == 0
    out = pathlib.Path(tmp_path / f"voc{suffix}")
    code, stdout, _ = run(
        capsys, tmp_path / "voc", "--size", 193, 257, f"--out={out}", "--check", *images
    )
    assert code == 0
    shares = [float(share) for share in re.findall(r": ([\d.]+) % of the pixels", stdout)]
    assert len(shares) == 2
    assert min(shares) >= 99.9
