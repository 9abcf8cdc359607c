"""SegNet and SegNet-Basic.

    flaxseg train segnet --config.data.manual_dir=CAMVID --workdir=runs/segnet
    flaxseg train segnet:variant=basic --config.data.manual_dir=CAMVID --workdir=runs/segnet_basic
    flaxseg train segnet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train segnet:data=shapes --workdir=runs/shapes

The backbones of camvid and shapes have no pooling; there the two variants differ only in kernel
size and ReLU. Paper: Badrinarayanan et al. 2017, arXiv 1511.00561.

The recipe is that of the authors' tutorial: SGD at a constant rate of 0.001, for SegNet-Basic 0.1
(as in the paper for both), batches of 4 (12 in the paper), twice the rate for biases, and class
weights: the median of the class frequencies over each. It starts from a VGG16 that already has
BatchNorm, and so subtracts ImageNet's mean, whereas the authors insert BatchNorm into one without.
They recompute the statistics after training; here they are running averages.
"""

import dataclasses

from ml_collections import config_dict

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "segnet": "VGG16 with pooling indices",
            "basic": "four 7x7 convolutions down and up, from random weights",
        },
        "data": {
            "camvid_whole": ("vgg16_bn", "1 x 12 GB"),  # the paper's: whole images
            "voc": ("vgg16_bn", "1 x 12 GB"),
            "cityscapes": ("vgg16_bn", "4 x 12 GB"),
            "ade20k": ("vgg16_bn", "1 x 12 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("camvid_whole", "segnet, 40k steps", 50.0, "paper"),
        ("camvid_whole", "segnet, 80k steps", 57.2, "paper"),
        ("camvid_whole", "segnet, longer", 60.1, "paper"),
        ("camvid", "segnet", 26.2, "measured after 300 steps"),
    ),
}

_VARIANTS = {"segnet": "segnet", "basic": "segnet_basic"}
# The median of the classes' frequencies over each, from sky to cyclist.
_MEDIAN_FREQUENCY = (
    *(0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826),
    *(9.6446, 1.8418, 0.6823, 6.2478, 7.3614),
)


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/segnet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = _VARIANTS[chosen["variant"]]
    config.model.output_stride = 32
    _DATA[chosen["data"]](config)
    return config


def _tutorial(config: config_dict.ConfigDict) -> None:
    """Sets what the authors' solvers say, for any data set."""
    if config.model.name == "segnet_basic":
        config.model.backbone = "segnet_basic_encoder"
        config.optimizer.learning_rate = 0.1
        config.steps = 10_000
    else:
        config.model.backbone = "vgg16_bn"
        config.init.backbone = "timm/vgg16_bn.tv_in1k"
        recipes.set_options(config, normalization=dataclasses.asdict(IMAGENET))
        config.optimizer.learning_rate = 1e-3
        config.steps = 40_000
    config.batch_size = 4
    config.schedule.name = "constant"
    config.data.scale = (1.0, 1.0)
    config.data.flip = False
    config.optimizer.weight_decay = 5e-4
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _camvid_whole(config: config_dict.ConfigDict) -> None:
    config.data.name = "camvid"
    config.data.eval_split = "test"
    config.data.crop_size = (360, 480)
    config.loss.class_weights = _MEDIAN_FREQUENCY
    _tutorial(config)


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=384)
    _tutorial(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=512)
    _tutorial(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=384)
    _tutorial(config)


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)


_DATA = {
    "camvid_whole": _camvid_whole,
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
