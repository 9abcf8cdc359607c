"""DeepLabv3 and v3+.

    python train.py --config=configs/deeplab.py --workdir=runs/voc
    python train.py --config=configs/deeplab.py:variant=v3plus,data=camvid \
        --config.data.manual_dir=CAMVID --config.init.backbone=WEIGHTS.safetensors \
        --workdir=runs/camvid
    python train.py --config=configs/deeplab.py:data=shapes --workdir=runs/shapes

Without internet give the files, as in the second command: the data set as published and ImageNet
weights in a file.

The part after the colon: `variant` is v3plus (default) or v3; `data` is voc (default), camvid or
shapes.

data     backbone             hardware           mIoU expected
voc      resnet101, OS 16     8 x 16 GB and up   78.51 % v3 (paper: Chen et al. 2017, arXiv
                                                 1706.05587, table 5, ImageNet weights, OS 8 in the
                                                 evaluation); v3+ 78.85 % (paper: Chen et al. 2018,
                                                 arXiv 1802.02611, table 3)
camvid   efficientnet_lite0   2 CPU cores        46.4 % measured, on the test split
shapes   resnet18             2 CPU cores        not measured yet; from random weights
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

_VARIANTS = {
    "v3plus": (
        "deeplabv3plus",
        {"separable": True, "decoder_convs": 2, "low_level_features": 48},
    ),
    "v3": ("deeplabv3", {"separable": False}),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """The recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(
        argument, "configs/deeplab.py", variant=_VARIANTS, data=_DATA
    )
    config = default_config()
    config.model.name, options = _VARIANTS[chosen["variant"]]
    recipes.set_options(
        config,
        **options,
        rates=config_dict.placeholder(tuple),  # None: those of the papers at the output stride
        features=256,
        dropout=0.1,
        align_corners=True,
    )
    _DATA[chosen["data"]](config)
    return config


def _voc(config: config_dict.ConfigDict) -> None:
    """The recipe of the papers (section 4.1 of 1706.05587), 30k steps."""
    recipes.voc(config, crop=513)
    config.model.backbone = "resnet101"
    config.model.options.separable = False  # the paper's rows for ResNet-101
    config.init.backbone = "timm/resnet101.tv_in1k"
    config.steps = 30_000
    config.batch_size = 16
    config.optimizer.learning_rate = 0.007
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _camvid(config: config_dict.ConfigDict) -> None:
    """The rates fit the crop.

    The papers' reach over most of a small crop's features. The statistics of BatchNorm are then
    those of taps on padding, and do not hold for whole images: at (6, 12, 18) pixel accuracy fell
    from 85 % on crops to 64 % on whole images.
    """
    recipes.camvid(config, crop=256)
    if "decoder_convs" in config.model.options:
        config.model.options.decoder_convs = 1  # as the PyTorch peer has it
    config.model.options.rates = (3, 6, 9)
    config.steps = 600
    config.batch_size = 8
    config.optimizer.head_lr_multiplier = 10.0  # 0.1, where the backbone has 0.01
    config.eval.every_steps = 300
    config.checkpoint.every_steps = 100


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    config.model.options.features = 128
    config.model.options.rates = (1, 2, 3)
    config.steps = 1200
    config.batch_size = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.schedule.warmup_steps = 30
    config.eval.every_steps = 400
    config.checkpoint.every_steps = 200


_DATA = {"voc": _voc, "camvid": _camvid, "shapes": _shapes}
