"""ICNet.

    flaxseg train icnet:variant=full --workdir=runs/full
    flaxseg prune runs/full --keep=0.5 --out=models/half
    flaxseg train icnet:variant=half --config.init.model=models/half --workdir=runs/half

    flaxseg train icnet:variant=full,data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train icnet:data=shapes --workdir=runs/shapes

The first three commands are the paper's way to its network (Zhao et al. 2018, arXiv 1704.08545,
section 3.4): train one of twice the channels, prune it, continue training. Trained from random
weights, the small one stays some seven points behind. Without internet access, give the files as in
the fourth command. With the EfficientNet-Lite0 of camvid, only the head differs between the two
variants. The paper's 67.1 % on CamVid is at 720 x 960 on its own ResNet.

Learning rate, batch, decay and augmentation are the paper's; its crops are not published, and those
here are 32 k + 1 pixels a side, so that all branches meet cell by cell. The paper starts from a
PSPNet50 whose ImageNet weights have no public name; the recipe uses torchvision's ResNet-50, and
therefore its layout: a 7x7 stem and the stride on the 3x3 convolution.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "half": "the paper's network",
            "full": "the one of twice the channels, before pruning",
        },
        "data": {
            "cityscapes": ("resnet50", "8 x 16 GB and up"),
            "voc": ("resnet50", "8 x 16 GB and up"),
            "ade20k": ("resnet50", "8 x 16 GB and up"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("cityscapes", "half, at 1025 x 2049", 67.7, "paper"),
        ("cityscapes", "full, never pruned", 71.0, "a PyTorch port"),
        ("camvid", "half", 39.9, "measured after 300 steps"),
    ),
}

_WIDTHS = {"half": 0.5, "full": 1.0}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/icnet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "icnet"
    config.model.output_stride = 8
    recipes.set_options(
        config,
        width=_WIDTHS[chosen["variant"]],
        windows="released",
        quarter_logits=True,
    )
    # The paper's losses: of all branches at their own size, on labels resized to it. The weights
    # are those of two ports; others have 0.4 for both. "logits" are those of sub124 at full size,
    # without a loss of their own.
    config.loss.outputs.logits.weight = 0.0
    for name, weight in {"sub4": 0.16, "sub24": 0.4, "sub124": 1.0}.items():
        recipes.set_output_loss(config, name, weight=weight, resize_labels=True, align_corners=True)
    _DATA[chosen["data"]](config)
    return config


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=769)
    _on_resnet50(config)


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=513)
    _on_resnet50(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=513)
    _on_resnet50(config)
    config.steps = 60_000  # seven times the images of Cityscapes


def _on_resnet50(config: config_dict.ConfigDict) -> None:
    """Trains for the paper's 30k steps."""
    config.model.backbone = "resnet50"
    recipes.set_options(
        config,
        backbone_options={"deep_stem": (), "stride_on": "3x3", "dilate_first_unit": False},
    )
    if config.model.options.width == 1.0:
        config.init.backbone = "timm/resnet50.tv_in1k"
    config.steps = 30_000
    config.batch_size = 16
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=257)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)


_DATA = {
    "cityscapes": _cityscapes,
    "voc": _voc,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
