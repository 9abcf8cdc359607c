"""ParseNet.

    flaxseg train parsenet --config.init.backbone=VGG16.npz --workdir=runs/parsenet
    flaxseg train parsenet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train parsenet:data=shapes --workdir=runs/shapes

VGG16.npz (or .safetensors, .pth) is Caffe's ILSVRC classifier with its own names, `conv1_1.weight`
to `fc7.bias`, and channels in the order blue, green, red; fc6 and fc7 are subsampled to the size at
hand.

Paper: Liu et al. 2016, arXiv 1506.04579. The polynomial decay of the rate with power 0.9 is this
paper's; it starts from 1e-9 for the loss summed over the pixels, batches of 8, momentum 0.9. The
number of steps, 20k, is not the paper's.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "global": "the mean over the image beside the last feature",
            "multi_layer": "the same, and two earlier features",
            "baseline": "neither, and no normalisation",
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
        ("voc", "global, test split", 69.8, "paper"),
        ("voc", "baseline, test split", 67.3, "paper"),
        ("camvid", "global", 30.4, "measured after 300 steps"),
    ),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/parsenet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "parsenet"
    config.model.output_stride = 8
    recipes.set_options(config, levels=("fc7",), global_context=True, dropout=0.5)
    _DATA[chosen["data"]](config)
    if chosen["variant"] == "multi_layer":
        finer = ("conv4", "conv5") if config.model.backbone == "vgg16" else ("c3", "c4")
        recipes.set_options(config, levels=(*finer, "fc7"))
    if chosen["variant"] == "baseline":
        recipes.set_options(config, global_context=False, initial_scale=None)
    return config


def _papers(config: config_dict.ConfigDict) -> None:
    config.model.backbone = "vgg16"
    config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
    config.data.scale = (1.0, 1.0)
    config.loss.reduction = "sum"
    config.steps = 20_000
    config.batch_size = 8
    config.optimizer.learning_rate = 1e-9
    config.optimizer.weight_decay = 5e-4
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=497)
    _papers(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=513)
    _papers(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=497)
    _papers(config)
    config.data.scale = (0.5, 1.0)  # images are of up to thousands of pixels


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=257)
    config.model.output_stride = 16
    config.optimizer.head_lr_multiplier = 1.0  # no BatchNorm in the head
    recipes.set_options(config, rate=3, features=256)  # for crops of 17 cells


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, rate=2, features=64, dropout=0.1)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
