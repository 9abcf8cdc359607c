"""RefineNet and Light-Weight RefineNet.

    flaxseg train refinenet --workdir=runs/voc
    flaxseg train refinenet:variant=lw,data=cityscapes --workdir=runs/lw
    flaxseg train refinenet:variant=lw,data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train refinenet:data=shapes --workdir=runs/shapes

Without internet access, give the files as in the third command: the data set as published, and
ImageNet weights in a file. On camvid, folder and shapes a variant is a head on their own small
backbone.

Papers: Lin et al. 2017, arXiv 1611.06612, whose scores are means over several scales of the image,
and Nekrasov et al. 2018, arXiv 1810.03272, whose scores are of one scale, after training on COCO.

Rates, decay, batch, crops and frozen BatchNorm statistics are those of the authors' code, in both
cases with ten times the rate for what is not backbone. RefineNet is trained there on one image a
step, picked by class, until its score no longer rises, and then at a tenth of the rate; here images
come in turn, and the rate falls after two thirds of 600k steps. Its loss is at a quarter of the
image, here at the full size. Its ResNets were Caffe's, here they are torchvision's. The
light-weight recipe is that for NYUDv2: three stages of 100 epochs, each at half the rate of the one
before (there, the last at 0.4). There no image is made smaller than 350 pixels a side.
"""

from ml_collections import config_dict

from flaxseg.layers import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "4cascaded": "a block for each level",
            "2cascaded": "two blocks",
            "single": "one block that fuses all levels",
            "4cascaded_2scale": "four blocks fed by two networks, at 1.2 and 0.6 times the size",
            "lw": "Light-Weight RefineNet on resnet50",
            "lw_mobilenet": "its form for MobileNetV2",
        },
        "data": {
            "voc": ("resnet101", "1 x 12 GB"),
            "cityscapes": ("resnet101", "1 x 12 GB"),
            "ade20k": ("resnet101", "1 x 12 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "4cascaded, test split", 82.4, "paper"),
        ("voc", "4cascaded, resnet152, test split", 83.4, "paper"),
        ("voc", "4cascaded, resnet50, VOC's own 1,464 images", 69.1, "authors' code"),
        ("voc", "lw, with COCO", 78.5, "authors' code"),
        ("voc", "lw, resnet101, with COCO", 80.3, "authors' code"),
        ("voc", "lw, resnet152, with COCO", 82.1, "authors' code"),
        ("voc", "lw_mobilenet, with COCO", 76.2, "authors' code"),
        ("cityscapes", "4cascaded, test split", 73.6, "paper"),
        ("ade20k", "4cascaded", 40.2, "paper"),
        ("ade20k", "4cascaded, resnet152", 40.7, "paper"),
        ("camvid", "lw", 41.3, "measured after 300 steps"),
        ("camvid", "4cascaded", 31.1, "measured after 300 steps"),
    ),
}

# Blocks and scales of the image.
_HEAVY = {
    "4cascaded": (4, (1.2,)),
    "2cascaded": (2, (1.2,)),
    "single": (1, (1.2,)),
    "4cascaded_2scale": (4, (1.2, 0.6)),
}
_LIGHT = {"lw": "resnet", "lw_mobilenet": "mobilenet"}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/refinenet.py", **RECIPE["choices"])
    variant = chosen["variant"]
    config = default_config()
    config.model.output_stride = 32
    recipes.set_options(
        config,
        features=256,
        pooling_blocks=4,
        dropout=0.5,
        align_corners=config_dict.FieldReference(True, field_type=object),  # or "cells"
        final_align_corners=config_dict.FieldReference(False, field_type=object),
    )
    if variant in _HEAVY:
        config.model.name = "refinenet"
        cascades, scales = _HEAVY[variant]
        recipes.set_options(config, cascades=cascades, scales=scales, pool_first=True)
    else:
        config.model.name = "refinenet_lw"
        recipes.set_options(config, form=_LIGHT[variant])
    _DATA[chosen["data"]](config, variant)
    return config


def _published(config: config_dict.ConfigDict, variant: str, light_steps: int) -> None:
    """Sets what the authors' recipes have in common, and where they differ."""
    config.model.frozen_batch_norm = True
    config.optimizer.head_lr_multiplier = 10.0
    config.optimizer.decay_bn_and_bias = True
    config.schedule.name = "step"
    config.eval.every_steps = 5000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    if variant in _HEAVY:
        config.model.backbone = "resnet101"
        config.init.backbone = "timm/resnet101.tv_in1k"
        config.steps = 600_000
        config.batch_size = 1
        config.optimizer.learning_rate = 5e-5
        config.optimizer.weight_decay = 5e-4
        config.schedule.step_milestones = (400_000,)
        config.data.scale = (0.7, 1.3)
        config.data.scale_step = 0.1
        return
    config.steps = light_steps
    config.batch_size = 6
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 1e-5
    config.schedule.step_milestones = (light_steps // 3, 2 * light_steps // 3)
    config.schedule.step_factor = 0.5
    config.data.crop_size = (500, 500)
    if variant == "lw":
        config.model.backbone = "resnet50"
        config.init.backbone = "timm/resnet50.tv_in1k"
        return
    config.model.backbone = "mobilenet_v2"
    config.init.backbone = "timm/mobilenetv2_100.ra_in1k"
    # Of the weights, which were trained in PyTorch.
    recipes.set_options(
        config,
        normalization={"mean": IMAGENET.mean, "std": IMAGENET.std},
        backbone_options={"padding": "torch"},
    )


def _voc(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.voc(config, crop=400)
    _published(config, variant, 300 * (1_464 // 6))  # epochs of the images without the additions


def _cityscapes(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.cityscapes(config, crop=600)
    _published(config, variant, 300 * (2_975 // 6))


def _ade20k(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.ade20k(config, crop=400)
    _published(config, variant, 60 * (20_210 // 6))  # 300 would be a million steps
    if variant in _HEAVY:
        config.model.options.pool_first = False  # as in the network released for it


def _camvid(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.camvid(config, crop=257)
    config.optimizer.head_lr_multiplier = 0.1  # no BatchNorm in the head
    _small(config, variant, features=64 if variant in _HEAVY else 128)


def _shapes(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.shapes(config, crop=97)
    config.optimizer.learning_rate = 1e-3
    _small(config, variant, features=32)
    if variant == "lw_mobilenet":
        config.model.options.form = "resnet"  # as the backbone is


def _small(config: config_dict.ConfigDict, variant: str, features: int) -> None:
    """Uses fewer channels, and cells over the same pixels in a crop and in a whole image."""
    options = config.model.options
    options.features = features
    options.dropout = 0.1
    if variant == "4cascaded_2scale":
        options.scales = (1.0, 0.5)
        return
    if variant in _HEAVY:
        options.scales = (1.0,)
    with config.unlocked():
        options.align_corners = options.final_align_corners = "cells"


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
