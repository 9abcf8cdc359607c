"""FCN: 32s, 16s and 8s, all at once, AlexNet, and the dilated form on ResNet.

    flaxseg train fcn --config.init.backbone=VGG16.npz --workdir=runs/fcn32s
    flaxseg train fcn:variant=16s --workdir=runs/fcn16s
    flaxseg train fcn:variant=8s --workdir=runs/fcn8s
    flaxseg train fcn:variant=8s,data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train fcn:variant=8s,data=shapes --workdir=runs/shapes

The second command starts from the result of the first (`config.init.model`, by default
runs/fcn32s), the third from that of the second: everything is taken over, and the scores of the new
skip start at zero. VGG16.npz (or .safetensors, .pth) is Caffe's ILSVRC classifier with its own
names, `conv1_1.weight` to `fc7.bias`, and channels in the order blue, green, red. With
`weights=torchvision` the first command downloads timm/vgg16.tv_in1k instead; ports that start from
it score some points lower.

The VOC scores are the release's own, on the 736 images of VOC 2011 val that are not in SBD train,
after training on 8,498 images of SBD train. That of variant resnet is torchvision's, trained on
COCO. Cityscapes: Cordts et al. 2016, arXiv 1604.01685. ADE20K: Zhou et al. 2017, arXiv 1608.05442.

Source of the recipe on VOC: the solvers of the released nets. One whole image a step, no
augmentation, the loss summed over the pixels, momentum 0.99. With the mean over the pixels
(`--config.loss.reduction=mean`) the same recipe has a learning rate S times as large, where S is
the number of valid pixels of an image: 1.9e-5 instead of 1e-10 for 500 x 375, and a weight decay of
5e-4 / S, which is practically none.
"""

import dataclasses

from ml_collections import config_dict

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "32s": "scores of stride 32, enlarged",
            "16s": "one skip, started from 32s",
            "8s": "two skips, started from 16s",
            "8s_atonce": "both skips, trained in one run",
            "alexnet": "32s on AlexNet",
            "resnet": "the dilated form on resnet50, output stride 8",
        },
        "weights": {
            "caffe": "of VGG16, from a file; the same for all stages",
            "torchvision": "of VGG16, downloaded",
        },
        "data": {
            "voc": ("vgg16", "1 x 8 GB; resnet 8 x 16 GB"),
            "cityscapes": ("vgg16", "1 x 16 GB"),
            "ade20k": ("vgg16", "1 x 16 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "32s", 63.6, "paper"),
        ("voc", "16s", 65.0, "paper"),
        ("voc", "8s", 65.5, "paper"),
        ("voc", "8s_atonce", 65.4, "paper"),
        ("voc", "alexnet", 48.0, "paper"),
        ("voc", "resnet", 60.5, "torchvision"),
        ("cityscapes", "8s, test split", 65.3, "paper"),
        ("ade20k", "8s", 29.4, "paper"),
        ("camvid", "8s", 48.6, "measured after 300 steps"),
        ("camvid", "resnet, output stride 16", 43.3, "measured after 300 steps"),
    ),
}

_VARIANTS = {
    "32s": "fcn32s",
    "16s": "fcn16s",
    "8s": "fcn8s",
    "8s_atonce": "fcn8s_atonce",
    "alexnet": "fcn_alexnet",
    "resnet": "fcn",
}
# Rate of the summed loss, steps, and the run to start from.
_STAGES = {
    "32s": (1e-10, 100_000, ""),
    "16s": (1e-12, 100_000, "runs/fcn32s"),
    "8s": (1e-14, 100_000, "runs/fcn16s"),
    "8s_atonce": (1e-10, 300_000, ""),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...,weights=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/fcn.py", **RECIPE["choices"])
    config = default_config()
    variant = chosen["variant"]
    config.model.name = _VARIANTS[variant]
    if variant == "resnet":
        config.model.backbone = "resnet50"
        config.model.output_stride = 8
        config.init.backbone = "timm/resnet50.tv_in1k"
        recipes.set_options(config, dropout=0.1)
    else:
        config.model.backbone = "alexnet" if variant == "alexnet" else "vgg16"
        config.model.output_stride = 32
        recipes.set_options(config, learned_upsampling="none", learned_last_upsampling=False)
    _DATA[chosen["data"]](config, variant)
    if chosen["weights"] == "torchvision" and config.model.backbone == "vgg16":
        recipes.set_options(config, normalization=dataclasses.asdict(IMAGENET))
        if config.init.backbone:
            config.init.backbone = "timm/vgg16.tv_in1k"
    return config


def _released_recipe(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets what the released solvers say, for any data set."""
    if variant == "resnet":
        config.steps = 30_000
        config.batch_size = 16
        config.loss.outputs.auxiliary.weight = 0.5
        config.optimizer.learning_rate = 0.01
        return
    config.schedule.name = "constant"
    config.data.scale = (1.0, 1.0)
    config.data.flip = False
    config.optimizer.weight_decay = 5e-4
    if variant == "alexnet":
        config.init.backbone = "ALEXNET.npz"  # Caffe's reference net; give its path
        config.steps = 5_000  # of 20 images
        config.batch_size = 20
        config.optimizer.accumulate_steps = 20
        config.optimizer.learning_rate = 1e-4
        config.optimizer.momentum = 0.9
        return
    rate, config.steps, start = _STAGES[variant]
    if start:
        config.init.model = start
        config.init.reinit_head = True
    else:
        config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
    config.batch_size = 1
    config.loss.reduction = "sum"
    config.optimizer.learning_rate = rate
    config.optimizer.momentum = 0.99
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 4000
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 100


def _voc(config: config_dict.ConfigDict, variant: str) -> None:
    """Trains on whole images: they have at most 500 x 500 pixels."""
    recipes.voc(config, crop=500)
    config.eval.batch_size = 1
    config.eval.pad_to = (500, 500)
    _released_recipe(config, variant)


def _cityscapes(config: config_dict.ConfigDict, variant: str) -> None:
    """Trains on crops of 512 x 1024 instead of whole images, to save memory."""
    recipes.cityscapes(config, crop=768)
    config.data.crop_size = (512, 1024)
    _released_recipe(config, variant)
    config.data.flip = True


def _ade20k(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.ade20k(config, crop=500)
    _released_recipe(config, variant)
    config.data.flip = True


def _camvid(config: config_dict.ConfigDict, variant: str) -> None:
    """Trains all heads at once on a small backbone, with the mean loss."""
    recipes.camvid(config, crop=256)
    if variant == "resnet":
        config.model.output_stride = 16
    else:
        config.optimizer.head_lr_multiplier = 0.1  # scores without a BatchNorm before them


def _shapes(config: config_dict.ConfigDict, variant: str) -> None:
    del variant
    recipes.shapes(config, crop=97)
    config.init.backbone = ""


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
