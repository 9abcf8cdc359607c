"""What is in an exported file, read by JAX and by ONNX Runtime as a stranger would."""

import importlib
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from onnx_packages import import_onnx

from flaxseg.errors import ConfigError, DataError, ExportError, WriteError
from flaxseg.export import (
    export_onnx,
    export_stablehlo,
    read_onnx_card,
    read_stablehlo_card,
)
from flaxseg.export.check import agreement, load_exported
from flaxseg.inference import predict
from flaxseg.layers import AtrousConv, ImageNormalization, convolution_form
from flaxseg.models import Prediction

NAMES = ("ground", "tree", "car")
COLORS = ((10, 20, 30), (0, 200, 0), (200, 0, 200))
ALL = ("classes", "probabilities", "logits")


def check_outputs(found, model, variables, images):
    """All three outputs beside the model's own."""
    pixels = images / np.float32(255)
    logits = np.asarray(model.apply(variables, pixels).logits, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert {name: (v.shape, str(v.dtype)) for name, v in found.items()} == {
        "classes": (images.shape[:3], "uint8"),
        "probabilities": ((*images.shape[:3], 3), "float32"),
        "logits": ((*images.shape[:3], 3), "float32"),
    }
    np.testing.assert_array_equal(found["classes"], predict(model, variables, images))
    assert len(np.unique(found["classes"])) == 3
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)


def check_card(card, batch):
    assert card["class_names"] == list(NAMES)
    assert card["class_colors"] == [list(color) for color in COLORS]
    assert card["num_classes"] == 3
    assert card["input"]["name"] == "image"
    assert card["input"]["shape"] == [batch, 8, 9, 3]
    assert card["input"]["dtype"] == "uint8"
    assert card["outputs"]["classes"]["shape"] == [batch, 8, 9]
    assert card["outputs"]["logits"]["shape"] == [batch, 8, 9, 3]
    assert card["normalization"] == {"done_inside": True, "mean": [0.0] * 3, "std": [255.0] * 3}
    assert card["extra"] == {"step": 7}


def test_stablehlo_is_read_by_jax_alone(tmp_path, tiny, images):
    path = export_stablehlo(
        *tiny,
        tmp_path / "tiny.stablehlo",
        (8, 9),
        outputs=ALL,
        class_names=NAMES,
        class_colors=COLORS,
        extra={"step": 7},
    )
    data = path.read_bytes()
    exported = jax.export.deserialize(data)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    check_outputs(jax.jit(exported.call)(images), *tiny, images)
    np.testing.assert_array_equal(exported.call(images[:1])["classes"], predict(*tiny, images[:1]))
    card = read_stablehlo_card(path)
    check_card(card, "batch")
    assert card == json.loads(data.rpartition(b"\nmodel card\n")[2])
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.stablehlo"]


def test_stablehlo_of_a_fixed_batch_and_one_platform(tmp_path, tiny, images):
    path = export_stablehlo(*tiny, tmp_path / "tiny.stablehlo", (8, 9), batch=2, platforms=("cpu",))
    exported = jax.export.deserialize(path.read_bytes())
    assert exported.platforms == ("cpu",)
    assert list(exported.call(images)) == ["classes"]
    with pytest.raises(ValueError, match="shape"):
        exported.call(images[:1])


class Pointwise(nn.Module):
    """One 1x1 convolution."""

    num_classes: int = 3
    normalization: ImageNormalization = ImageNormalization((0.0,) * 3, (255.0,) * 3)

    @nn.compact
    def __call__(self, image, *, train=False):
        return Prediction(AtrousConv(self.num_classes, 1, name="head")(image), {})


@pytest.mark.parametrize(("platform", "form"), [("cpu", "dot_general"), ("tpu", "convolution")])
def test_each_platform_has_the_form_that_is_fast_there(tmp_path, platform, form):
    model = Pointwise()
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 9, 3), np.float32))
    path = export_stablehlo(model, variables, tmp_path / "x", (8, 9), platforms=(platform,))
    text = jax.export.deserialize(path.read_bytes()).mlir_module()
    found = {name for name in ("dot_general", "convolution") if f"stablehlo.{name}" in text}
    assert found == {form}


def test_a_form_is_one_of_two():
    with (
        pytest.raises(ValueError, match="'native', 'products' or 'phases'"),
        convolution_form("fast"),
    ):
        pass


@pytest.mark.peer
def test_onnx_is_read_by_its_runtime(tmp_path, tiny, images):
    runtime = import_onnx()
    path = export_onnx(
        *tiny,
        tmp_path / "tiny.onnx",
        (8, 9),
        outputs=ALL,
        class_names=NAMES,
        class_colors=COLORS,
        extra={"step": 7},
    )
    session = runtime.InferenceSession(str(path))
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", 8, 9, 3])
    ]
    assert [output.name for output in session.get_outputs()] == list(ALL)
    for some in (images, images[:1]):
        found = session.run(list(ALL), {"image": some})
        check_outputs(dict(zip(ALL, found, strict=True)), *tiny, some)
    metadata = session.get_modelmeta().custom_metadata_map
    check_card(json.loads(metadata["model_card"]), "batch")
    assert read_onnx_card(path) == json.loads(metadata["model_card"])
    assert metadata["classes"].split("\n") == list(NAMES)
    fixed = export_onnx(*tiny, tmp_path / "one.onnx", (8, 9), batch=1)
    assert runtime.InferenceSession(str(fixed)).get_inputs()[0].shape == [1, 8, 9, 3]


@pytest.mark.parametrize("suffix", [".stablehlo", pytest.param(".onnx", marks=pytest.mark.peer)])
def test_agreement_sees_another_model(tmp_path, tiny, suffix):
    if suffix == ".onnx":
        import_onnx()
    model, variables = tiny
    export = export_onnx if suffix == ".onnx" else export_stablehlo
    path = export(model, variables, tmp_path / f"tiny{suffix}", (8, 9), batch=2)
    pixels = np.random.default_rng(1).integers(0, 256, (11, 6, 3)).astype(np.uint8)
    assert agreement(path, model, variables, [pixels]) == [1.0]
    other = jax.tree.map(lambda x: -x, variables["params"])
    assert agreement(path, model, {**variables, "params": other}, [pixels])[0] < 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (8, 0)}, "at least 1"),
        ({"size": (8,)}, r"\(height, width\)"),
        ({"batch": 0}, "batch is 0"),
        ({"outputs": ()}, "one or several of classes"),
        ({"outputs": ("classes", "classes")}, "each once"),
        ({"outputs": ("masks",)}, "masks"),
    ],
)
def test_impossible_requests(tmp_path, tiny, options, words):
    with pytest.raises(ConfigError, match=words):
        export_stablehlo(*tiny, tmp_path / "x", **({"size": (8, 9)} | options))
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_model_has_not_is_named(tmp_path):
    from flaxseg.models import create_model

    model = create_model("unet", 2, mirror=False, features=None)
    image = jax.ShapeDtypeStruct((1, 188, 188, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    with pytest.raises(ConfigError, match=r"takes no images of 100 x 100: .*188"):
        export_stablehlo(model, variables, tmp_path / "x", (100, 100))


def test_a_missing_package_says_how_to_install_it(tmp_path, tiny, monkeypatch):
    real = importlib.import_module

    def absent(name):
        if name in ("jax2onnx", "flatbuffers"):
            raise ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(ExportError, match=r'pip install "flaxseg\[onnx\]" .*--no-deps "jax2onnx'):
        export_onnx(*tiny, tmp_path / "x.onnx", (8, 9))
    with pytest.raises(ExportError, match="pip install flatbuffers"):
        export_stablehlo(*tiny, tmp_path / "x.stablehlo", (8, 9))


def test_files_that_are_none(tmp_path, tiny):
    with pytest.raises(DataError, match="cannot be read"):
        read_stablehlo_card(tmp_path / "absent.stablehlo")
    (tmp_path / "x.stablehlo").write_bytes(b"anything")
    with pytest.raises(DataError, match="no model card"):
        load_exported(tmp_path / "x.stablehlo")
    with pytest.raises(WriteError, match=r"cannot write .*x.stablehlo: No such file.*It needs"):
        export_stablehlo(*tiny, tmp_path / "no" / "x.stablehlo", (8, 9))
