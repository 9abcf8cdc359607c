"""Dilated-Net: the front end, then the context module, then both.

    flaxseg train dilatednet --config.init.backbone=VGG16.npz --workdir=runs/dilatednet_front
    flaxseg train dilatednet:variant=context --workdir=runs/dilatednet_context
    flaxseg train dilatednet:variant=joint --workdir=runs/dilatednet_joint
    flaxseg train dilatednet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train dilatednet:data=shapes --workdir=runs/shapes

VGG16.npz (or .safetensors, .pth) is Caffe's ILSVRC classifier with its own names, `conv1_1.weight`
to `fc7.bias`, and channels in the order blue, green, red. The second command starts from the result
of the first (`config.init.model`, by default runs/dilatednet_front) and trains the context module
alone; the third starts from that of the second and trains everything.

Paper: Yu and Koltun 2016, arXiv 1511.07122. Rates are those of the release's solvers (front end
1e-4, on VOC the paper's 1e-3; context 1e-3; joint 1e-5), twice for biases, with batches of 14;
steps are the paper's: 60k for the front end on VOC, and on Cityscapes 40k, 24k and 60k for the
three, which other data sets share. The loss is on the scores at stride 8. The release's crops of
500 pixels are 128 and a margin of real pixels; here the margin of a crop is its reflection, so
crops are larger. Where no margin is needed, on camvid and shapes, dilation rates are halved because
the grid is twice as coarse.
"""

from ml_collections import config_dict

from flaxseg.layers import CONTEXT_RATES
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "front": "the front end",
            "context": "the context module, started from front",
            "joint": "both, started from context",
        },
        "context": {
            "basic": "of the context module: as many channels as classes",
            "large": "of the context module: more channels",
        },
        "data": {
            "voc": ("vgg16", "1 x 12 GB"),
            "cityscapes": ("vgg16", "1 x 12 GB"),
            "ade20k": ("vgg16", "1 x 12 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "front, test split", 67.6, "paper"),
        ("voc", "front, with COCO", 69.8, "paper"),
        ("voc", "basic context, with COCO", 71.3, "paper"),
        ("voc", "large context, with COCO", 72.1, "paper"),
        ("cityscapes", "joint, ten layers of context", 68.7, "paper"),
        ("camvid", "front", 42.5, "measured after 300 steps"),
    ),
}

# Rate, and steps on VOC and on all others.
_VARIANTS = {
    "front": (1e-4, 60_000, 40_000),
    "context": (1e-3, 24_000, 24_000),
    "joint": (1e-5, 60_000, 60_000),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,context=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/dilatednet.py", **RECIPE["choices"])
    config = default_config()
    variant = chosen["variant"]
    config.model.name = "dilatednet"
    config.model.output_stride = 8
    recipes.set_options(
        config,
        context="none" if variant == "front" else chosen["context"],
        rates=CONTEXT_RATES,
        pad_first=False,
        upsampling="bilinear",
    )
    config.loss.outputs.logits.weight = 0.0
    recipes.set_output_loss(config, "scores", resize_labels=True)
    _DATA[chosen["data"]](config, variant)
    if variant != "front":
        config.init.backbone = ""
        config.init.model = f"runs/dilatednet_{'front' if variant == 'context' else 'context'}"
        config.init.reinit_head = variant == "context"
    if variant == "context":
        config.optimizer.frozen = "backbone,classifier"
    return config


def _released_solver(config: config_dict.ConfigDict, variant: str) -> None:
    config.model.backbone = "vgg16"
    config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
    rate, steps_on_voc, steps = _VARIANTS[variant]
    on_voc = config.data.name == "voc_segmentation"
    config.optimizer.learning_rate = 1e-3 if on_voc and variant == "front" else rate
    config.steps = steps_on_voc if on_voc else steps
    config.batch_size = 14
    config.schedule.name = "constant"  # the first step of the release's is after 100k
    config.data.scale = (1.0, 1.0)
    config.optimizer.weight_decay = 5e-4
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 4000
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 100


def _voc(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.voc(config, crop=320)
    config.eval.pad_to = (512, 512)
    _released_solver(config, variant)


def _cityscapes(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets up Dilation10."""
    recipes.cityscapes(config, crop=512)
    recipes.set_options(config, rates=(1, 1, 2, 4, 8, 16, 32, 64, 1), upsampling="deconv")
    _released_solver(config, variant)


def _ade20k(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.ade20k(config, crop=320)
    _released_solver(config, variant)
    config.data.scale = (0.5, 1.0)  # images are of up to thousands of pixels


def _camvid(config: config_dict.ConfigDict, variant: str) -> None:
    del variant
    recipes.camvid(config, crop=257)
    config.model.output_stride = 16
    config.optimizer.head_lr_multiplier = 0.1  # no BatchNorm in the head
    recipes.set_options(config, rates=(1, 1, 1, 2, 4, 8, 1))
    config.loss.outputs.scores.align_corners = "cells"  # as the model does without a margin


def _shapes(config: config_dict.ConfigDict, variant: str) -> None:
    del variant
    recipes.shapes(config, crop=97)
    config.model.output_stride = 16
    recipes.set_options(config, rates=(1, 1, 1, 2, 4, 1))
    config.loss.outputs.scores.align_corners = "cells"  # as the model does without a margin


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
