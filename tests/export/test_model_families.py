"""Every family of models goes into both formats and comes out as it was."""

import jax
import numpy as np
import pytest
from onnx_packages import import_onnx
from random_weights import relative_difference
from tiny_model import TinyBackbone

import flaxseg
from flaxseg.backbones import EfficientNetLite0, ResNet
from flaxseg.backbones.mobile import Stage
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.export import export_onnx, export_stablehlo
from flaxseg.export.check import agreement, load_exported

SIZE = (33, 47)
MOBILE = EfficientNetLite0(
    stages=tuple(
        Stage(expansion, features, 1, stride)
        for expansion, features, stride in ((1, 8, 1), (2, 8, 2), (2, 8, 2), (2, 8, 2), (2, 16, 2))
    ),
    output_stride=16,
)
RESNET = ResNet(stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=0.125, output_stride=16)
FAMILIES = {
    "deeplabv3plus": (RESNET, {"features": 16}),
    "pspnet": (RESNET, {"features": 16, "pooling": "max"}),
    "fcn8s": (RESNET, {}),
    "icnet": (MOBILE, {"width": 0.125}),
    "gcn": (MOBILE, {"kernel_size": 3}),
    "segnet": (MOBILE, {"convs": (1,) * 4}),
    "lrr": (MOBILE, {"num_bases": 2, "mask_window": 3}),
}
# Their backbones are exported with the families.
OTHERS = {
    "deeplabv1": (TinyBackbone(), {"features": 16}),
    "deeplabv2": (TinyBackbone(), {"fc_features": 16, "rates": (1, 2)}),
    "deeplabv3": (TinyBackbone(), {"features": 16}),
    "deeplabv3_cascade": (TinyBackbone(), {"features": 16, "rates": (2,), "multi_grid": (1, 2)}),
    "fcn": (TinyBackbone(), {}),
    "dfn": (TinyBackbone(), {"features": 8, "border_features": 4, "head_factor": 2}),
    "refinenet": (TinyBackbone(), {"features": 8, "input_units": 1, "output_units": 1}),
    "refinenet_lw": (TinyBackbone(), {"features": 8}),
    "unet": (TinyBackbone(), {"features": (8,) * 5}),
    "deconvnet": (TinyBackbone(), {"fc_features": 16, "fc_kernel_size": 3, "convs": (1,) * 4}),
    "dilatednet": (TinyBackbone(), {"context": "large", "rates": (1, 2, 1)}),
    "parsenet": (TinyBackbone(), {"features": 16, "rate": 1, "levels": ("c3", "fc7")}),
}
CASES = [
    *FAMILIES,
    *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS),
]


def make(name):
    """A small model and variables far from those at the start."""
    backbone, options = (FAMILIES | OTHERS)[name]
    model = flaxseg.create_model(name, 5, backbone=backbone, output_stride=16, **options)
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        match path[-1].key:
            case "kernel":
                spread = np.sqrt(2 / np.prod(leaf.shape[:3]))
                return (rng.normal(size=leaf.shape) * spread).astype(np.float32)
            case "scale" | "var":
                return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(value, shapes)


@pytest.mark.peer
@pytest.mark.parametrize("name", CASES)
def test_both_formats_equal_the_model(tmp_path, name):
    import_onnx()
    model, variables = make(name)
    image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    hlo, onnx = tmp_path / "x.stablehlo", tmp_path / "x.onnx"
    export_stablehlo(model, variables, hlo, SIZE, outputs=("classes", "logits"))
    export_onnx(model, variables, onnx, SIZE, outputs=("classes", "logits"))
    assert agreement(onnx, model, variables, [image])[0] >= 0.999
    batch = np.stack([image, image[::-1]])
    of_hlo, of_onnx = (load_exported(path)[1](batch) for path in (hlo, onnx))
    assert relative_difference(of_onnx["logits"], of_hlo["logits"]) < 1e-5
    assert np.mean(of_onnx["classes"] == of_hlo["classes"]) >= 0.999
    # What was compared is no constant.
    spread = of_hlo["logits"].std((1, 2)).max()
    assert spread > 1e-3 * np.abs(of_hlo["logits"]).max(), spread


def test_every_model_is_here():
    forms_of_others = {"fcn32s", "fcn16s", "fcn8s_atonce", "fcn_alexnet", "segnet_basic"}
    assert set(FAMILIES | OTHERS) | forms_of_others == set(flaxseg.list_models())
