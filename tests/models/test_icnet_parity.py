"""ICNet against a transcription of its sheet, from converted files of every known layout to
logits."""

import functools
import importlib.util
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import safetensors.numpy
from random_weights import random_image, relative_difference

from flaxseg.errors import WeightsError
from flaxseg.layers import PyramidPooling
from flaxseg.models.icnet import released_windows
from flaxseg.weights import import_model, load_pretrained, read_pretrained

pytestmark = pytest.mark.peer
TOLERANCE = 1e-4
# The narrowest network whose channels are whole at half width.
WIDTH, CLASSES = 1 / 16, 5
LEAVES = ("weight", "bias", "running_mean", "running_var")


@functools.cache
def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "icnet_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def reference(width=WIDTH):
    """The transcription with random weights, and these by their names there."""
    net = reference_module().ICNet(CLASSES, width)
    tensors = {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        shape = tuple(value.shape)
        if len(shape) == 4:
            values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("_bn.weight"):
            values = rng.uniform(0.3, 0.9, shape)
        elif name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(size=shape) * 0.1
        tensors[name] = values.astype(np.float32)
    return peers.load_state(net, tensors), tensors


def of_layer(name: str) -> tuple[str, str, bool]:
    """Layer, array, and whether it is a BatchNorm's, of a name of the transcription."""
    layer, array = name.rsplit(".", 1)
    return layer.removesuffix("_bn"), array, layer.endswith("_bn")


def inference_only(tensors):
    return {k: v for k, v in tensors.items() if not re.match("sub(4|24)_out", k)}


def caffe(tensors):
    """Names and shapes of pycaffe: BN blobs slope, bias, mean, variance `[1, C, 1, 1]`."""
    blobs = dict(zip(LEAVES, ("slope", "bias", "mean", "variance"), strict=True))
    result = {"conv5_3_train_only.weight": np.zeros((3, 3), np.float32)}
    for name, value in inference_only(tensors).items():
        layer, array, is_bn = of_layer(name)
        if is_bn:
            result[f"{layer}/bn.{blobs[array]}"] = value.reshape(1, -1, 1, 1)
        else:
            result[f"{layer}.{array}"] = value
    return result


def tensorflow(tensors):
    """Names and layouts of the TensorFlow port, a level of nesting as a slash."""
    arrays = dict(zip(LEAVES, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True))
    result = {}
    for name, value in inference_only(tensors).items():
        layer, array, is_bn = of_layer(name)
        if is_bn:
            result[f"{layer}_bn/{arrays[array]}"] = value
        elif array == "weight":
            result[f"{layer}/weights"] = value.transpose(2, 3, 1, 0)
        else:
            result[f"{layer}/biases"] = value
    return result


def merged(tensors):
    """BatchNorm folded into its convolution, which then has a bias."""
    result = {}
    for name, value in inference_only(tensors).items():
        layer, array, is_bn = of_layer(name)
        if is_bn or array == "bias":
            result.setdefault(f"{layer}.bias", value)
            continue
        result[name] = value
        if f"{layer}_bn.weight" in tensors:
            scale, shift, mean, var = (
                tensors[f"{layer}_bn.{leaf}"].astype(np.float64) for leaf in LEAVES
            )
            factor = scale / np.sqrt(var + 1e-5)
            result[name] = (value * factor[:, None, None, None]).astype(np.float32)
            result[f"{layer}.bias"] = (shift - mean * factor).astype(np.float32)
    return result


def meetps(tensors):
    fixed = {
        "conv1_1_3x3_s2": "convbnrelu1_1.cbr_unit",
        "conv1_2_3x3": "convbnrelu1_2.cbr_unit",
        "conv1_3_3x3": "convbnrelu1_3.cbr_unit",
        "conv5_4_k1": "conv5_4_k1.cbr_unit",
        "conv1_sub1": "convbnrelu1_sub1.cbr_unit",
        "conv2_sub1": "convbnrelu2_sub1.cbr_unit",
        "conv3_sub1": "convbnrelu3_sub1.cbr_unit",
        "conv_sub4": "cff_sub24.low_dilated_conv_bn.cb_unit",
        "conv3_1_sub2_proj": "cff_sub24.high_proj_conv_bn.cb_unit",
        "conv_sub2": "cff_sub12.low_dilated_conv_bn.cb_unit",
        "conv3_sub1_proj": "cff_sub12.high_proj_conv_bn.cb_unit",
        "sub4_out": "cff_sub24.low_classifier_conv",
        "sub24_out": "cff_sub12.low_classifier_conv",
        "conv6_cls": "classification",
    }
    parts = {
        "1x1_reduce": "cbr1.cbr_unit",
        "3x3": "cbr2.cbr_unit",
        "1x1_increase": "cb3.cb_unit",
        "1x1_proj": "cb4.cb_unit",
    }
    result = {"pyramid_pooling.path_module_list.0.cbr_unit.0.weight": np.zeros(2, np.float32)}
    for name, value in tensors.items():
        layer, array, is_bn = of_layer(name)
        theirs = fixed.get(layer)
        if theirs is None:
            stage, unit, part = re.fullmatch(r"conv(\d)_(\d)_(.*)", layer).groups()
            where = {"31": "res_block3_conv.layers.0"}.get(stage + unit)
            if where is None:
                block = "res_block3_identity" if stage == "3" else f"res_block{stage}"
                where = f"{block}.layers.{int(unit) - (2 if stage == '3' else 1)}"
            theirs = f"{where}.{parts[part]}"
        if "unit" in theirs:
            theirs += ".1" if is_bn else ".0"
        result[f"{theirs}.{array}"] = value
    return result


LAYOUTS = {"caffe": caffe, "merged": merged, "tensorflow": tensorflow, "meetps": meetps}


@functools.cache
def wanted(size, width=WIDTH, adaptive=False):
    """Logits of the transcription, of a red, green, blue image turned to blue, green, red."""
    net, _ = reference(width)
    data = peers.to_torch(random_image(1, *size)[..., ::-1])
    torch = peers.import_torch()
    with torch.no_grad():
        return tuple(peers.from_torch(output) for output in net(data, adaptive))


def load(tmp_path, layout, width=WIDTH, **overrides):
    _, tensors = reference(width)
    tensors = {k: np.ascontiguousarray(v) for k, v in LAYOUTS[layout](tensors).items()}
    if layout == "meetps":
        path = tmp_path / "net.safetensors"
        safetensors.numpy.save_file(tensors, path)
    else:
        path = tmp_path / "net.npz"
        np.savez(path, **tensors)
    return path, *load_pretrained(path, **overrides)


@pytest.mark.parametrize("layout", ["caffe", "merged"])
def test_converted_files_give_the_logits_of_the_transcription(tmp_path, layout):
    size = (65, 129)
    _, model, variables = load(tmp_path, layout)
    assert model.width == WIDTH
    assert model.normalization.mean == (123.68, 116.779, 103.939)
    assert model.normalization.std == (1.0, 1.0, 1.0)
    logits = jax.jit(model.apply)(variables, random_image(1, *size)).logits
    difference = relative_difference(logits, wanted(size)[0])
    print(layout, difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize("layout", ["tensorflow", "meetps"])
def test_the_other_layouts_hold_the_same_network(tmp_path, layout):
    _, _, wanted_variables = load(tmp_path, "caffe")
    path, model, variables = load(tmp_path, layout)
    assert not read_pretrained(path).report.missing
    assert model.auxiliary == (layout == "meetps")
    if model.auxiliary:
        for fusion in ("fusion24", "fusion12"):
            del variables["params"][fusion]["classifier"]
    jax.tree.map(np.testing.assert_array_equal, variables, wanted_variables)


def test_layers_that_only_training_has_are_left_out_and_reported(tmp_path):
    path, _, _ = load(tmp_path, "caffe")
    assert read_pretrained(path).report.unused == ("conv5_3_train_only.weight",)


@pytest.mark.parametrize(
    ("size", "windows"),
    [((97, 97), "released"), ((289, 225), "released"), ((289, 225), "adaptive")],
)
def test_sizes_and_poolings_equal_the_transcription(tmp_path, size, windows):
    """9 x 7 cells: no bin but the first divides them."""
    _, model, variables = load(tmp_path, "caffe", windows=windows)
    logits = jax.jit(model.apply)(variables, random_image(1, *size)).logits
    difference = relative_difference(logits, wanted(size, adaptive=windows == "adaptive")[0])
    print(size, windows, difference)
    assert difference < TOLERANCE
    if size == (289, 225):
        other = wanted(size, adaptive=windows != "adaptive")[0]
        assert relative_difference(logits, other) > 10 * TOLERANCE


def test_the_released_width_equals_the_transcription(tmp_path):
    _, model, variables = load(tmp_path, "caffe", 0.5)
    logits = jax.jit(model.apply)(variables, random_image(1, 65, 97)).logits
    difference = relative_difference(logits, wanted((65, 97), 0.5)[0])
    print(difference)
    assert difference < TOLERANCE


def test_auxiliary_outputs_equal_the_transcription(tmp_path):
    """With statistics frozen training is evaluation with the other outputs."""
    size = (65, 129)
    options = {"frozen_batch_norm": True, "quarter_logits": True}
    _, model, variables = load(tmp_path, "meetps", **options)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, _ = train(variables, random_image(1, *size))
    logits, sub4, sub24, quarter = wanted(size)
    for ours, theirs in (
        (prediction.logits, logits),
        (prediction.auxiliary["sub4"], sub4),
        (prediction.auxiliary["sub24"], sub24),
        (prediction.auxiliary["sub124"], quarter),
    ):
        assert relative_difference(ours, theirs) < TOLERANCE


def test_the_released_pyramid_equals_the_transcription():
    x = np.random.default_rng(0).normal(size=(1, 33, 65, 3)).astype(np.float32)
    windows, strides = released_windows((33, 65), (1, 2, 3, 6))
    layer = PyramidPooling(reduce=False, fusion="sum", windows=windows, strides=strides)
    theirs = peers.from_torch(reference_module().pyramid(peers.to_torch(x)))
    assert relative_difference(layer.apply({}, jnp.asarray(x)), theirs) < 1e-5


def test_the_import_command_writes_a_saved_model_with_its_normalisation(tmp_path):
    path, _, variables = load(tmp_path, "merged")
    folder = import_model(path, tmp_path / "icnet")
    model, again = load_pretrained(folder)
    assert model.normalization.mean == (123.68, 116.779, 103.939)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_a_file_that_lacks_a_layer_is_refused(tmp_path):
    _, tensors = reference()
    tensors = caffe(tensors)
    del tensors["conv3_1_3x3.weight"]
    np.savez(tmp_path / "net.npz", **tensors)
    with pytest.raises(WeightsError, match=r"1 are missing(.|\n)*layer2_0/conv2/kernel"):
        load_pretrained(tmp_path / "net.npz")
