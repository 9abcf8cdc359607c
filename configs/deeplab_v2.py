"""DeepLab v2: ASPP on ResNet-101 at three scales, or on VGG16.

    flaxseg train deeplab_v2 --config.init.backbone=INIT.npz --workdir=runs/aspp
    flaxseg train deeplab_v2:variant=vgg16_aspp_l --config.init.backbone=VGG16.npz \
        --workdir=runs/vgg16
    flaxseg train deeplab_v2:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train deeplab_v2:data=shapes --workdir=runs/shapes

INIT.npz (or .safetensors, .pth) is a Caffe ResNet-101 with its own names, `res2a_branch2a` and so
on, and channels in the order blue, green, red: the release's, trained on COCO, or ImageNet's, which
scores 2 to 3 points lower. VGG16.npz is Caffe's ILSVRC classifier, `conv1_1.weight` to `fc7.bias`;
fc6 and fc7 are subsampled to 3x3 and 1024 channels.

The paper's scores (Chen et al. 2016, arXiv 1606.00915) are without CRF. The recipe on VOC is that
of the released solvers: 20k steps of 10 crops, poly, ten times the rate for the classifiers, twice
for biases; with ResNet-101 one crop at a time, BatchNorm with frozen parameters, scales 0.5, 0.75,
... 1.5, and four losses, of the fused scores and of those at each scale, on labels at their own
grid.
"""

from ml_collections import config_dict

from flaxseg.models.deeplab_v2 import RATES
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "resnet101": "ASPP-L at scales 1, 0.75 and 0.5",
            "resnet101_large_fov": "LargeFOV at the same scales",
            "vgg16_large_fov": "LargeFOV on vgg16",
            "vgg16_aspp_s": "ASPP-S on vgg16",
            "vgg16_aspp_l": "ASPP-L on vgg16",
        },
        "data": {
            "voc": ("resnet101; vgg16", "1 x 16 GB; vgg16 1 x 12 GB"),
            "cityscapes": ("resnet101; vgg16", "1 x 24 GB; vgg16 1 x 16 GB"),
            "ade20k": ("resnet101; vgg16", "1 x 16 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "resnet101", 76.35, "paper"),
        ("voc", "resnet101_large_fov", 75.54, "paper"),
        ("voc", "vgg16_large_fov", 65.76, "paper"),
        ("voc", "vgg16_aspp_s", 66.98, "paper"),
        ("voc", "vgg16_aspp_l", 68.96, "paper"),
        ("cityscapes", "resnet101", 70.4, "paper"),
        ("cityscapes", "resnet101, augmentation", 71.0, "paper"),
        ("cityscapes", "resnet101_large_fov", 69.2, "paper"),
        ("cityscapes", "vgg16_aspp_l", 64.89, "paper"),
        ("cityscapes", "vgg16_large_fov", 62.97, "paper"),
        ("camvid", "resnet101", 40.5, "measured after 300 steps"),
    ),
}

_VARIANTS = {
    "resnet101": ("resnet101", "aspp_l"),
    "resnet101_large_fov": ("resnet101", "large_fov"),
    "vgg16_large_fov": ("vgg16", "large_fov"),
    "vgg16_aspp_s": ("vgg16", "aspp_s"),
    "vgg16_aspp_l": ("vgg16", "aspp_l"),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/deeplab_v2.py", **RECIPE["choices"])
    config = default_config()
    backbone, rates = _VARIANTS[chosen["variant"]]
    config.model.name = "deeplabv2"
    config.model.backbone = backbone
    config.model.output_stride = 8
    on_vgg = backbone == "vgg16"
    recipes.set_options(
        config,
        rates=RATES[rates],
        scales=(1.0,) if on_vgg else (1.0, 0.75, 0.5),
        fc_features=1024 if on_vgg else 0,
        dropout=0.5,
    )
    _DATA[chosen["data"]](config)
    outputs = ("scale100",)
    if len(config.model.options.scales) > 1:
        outputs = ("fused", "scale100", "scale75", "scale50")
    config.loss.outputs.logits.weight = 0.0
    recipes.set_output_loss(config, *outputs, resize_labels=True, align_corners=True)
    return config


def _released_solver(config: config_dict.ConfigDict) -> None:
    config.steps = 20_000
    config.batch_size = 10
    config.optimizer.weight_decay = 5e-4
    config.optimizer.head = "aspp/classifier_*"
    config.optimizer.head_lr_multiplier = 10.0
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    if config.model.backbone == "vgg16":
        config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
        config.data.scale = (1.0, 1.0)
        config.optimizer.learning_rate = 1e-3
        return
    config.init.backbone = "INIT.npz"  # a Caffe ResNet-101; give its path
    mean = (122.675, 116.669, 104.008)
    recipes.set_options(config, normalization={"mean": mean, "std": (1.0, 1.0, 1.0)})
    config.model.frozen_batch_norm = True
    config.data.scale = (0.5, 1.5)
    config.data.scale_step = 0.25
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.accumulate_steps = 10
    config.optimizer.frozen = "backbone/*/scale,backbone/*/bias"


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=321)
    _released_solver(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=513)
    _released_solver(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=321)
    _released_solver(config)
    config.steps = 40_000  # twice the images of VOC


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=257)
    config.model.output_stride = 16
    config.optimizer.head_lr_multiplier = 0.1  # no BatchNorm in the head
    recipes.set_options(config, rates=(3, 6, 9, 12), scales=(1.0,), fc_features=0)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, rates=(1, 2, 3, 4), scales=(1.0,), fc_features=0, dropout=0.1)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
