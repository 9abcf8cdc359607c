"""DeconvNet.

    flaxseg train deconvnet --workdir=runs/deconvnet
    flaxseg train deconvnet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train deconvnet:data=shapes --workdir=runs/shapes

The solver is the release's: 40k steps of 64 crops of 224 pixels, rate 0.01, divided by ten every
10k steps, twice the rate for biases. The paper (Noh et al. 2015, arXiv 1505.04366) trains on crops
of single objects, first with one object a crop and then with proposals, and fuses the predictions
for up to 50 proposals of an image. Here crops are random and whole images are evaluated, so the
paper's scores are out of reach. The encoder starts from a VGG16 with BatchNorm; fc6 and fc7, which
have BatchNorm here, start from random weights.
"""

import dataclasses

from ml_collections import config_dict

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "data": {
            "voc": ("vgg16_bn", "1 x 12 GB"),
            "cityscapes": ("vgg16_bn", "1 x 12 GB"),
            "ade20k": ("vgg16_bn", "1 x 12 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "test split, 50 object proposals", 69.6, "paper"),
        ("voc", "the same with a CRF", 70.5, "paper"),
        ("camvid", "deconvnet", 25.3, "measured after 300 steps"),
    ),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/deconvnet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "deconvnet"
    config.model.output_stride = 32
    recipes.set_options(config, fc_features=4096, fc_kernel_size=7)
    _DATA[chosen["data"]](config)
    return config


def _released_solver(config: config_dict.ConfigDict) -> None:
    config.model.backbone = "vgg16_bn"
    config.init.backbone = "timm/vgg16_bn.tv_in1k"
    recipes.set_options(config, normalization=dataclasses.asdict(IMAGENET))
    config.steps = 40_000
    config.batch_size = 64
    config.schedule.name = "step"
    config.schedule.step_milestones = (10_000, 20_000, 30_000)
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 5e-4
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=224)
    _released_solver(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=224)
    _released_solver(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=224)
    _released_solver(config)


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)
    # Of the 8 x 8 cells of a crop, 7 x 7 would leave four.
    recipes.set_options(config, fc_features=256, fc_kernel_size=3)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, fc_features=128, fc_kernel_size=3)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
