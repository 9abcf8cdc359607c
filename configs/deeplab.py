"""DeepLab v3 and v3+.

    flaxseg train deeplab --workdir=runs/voc
    flaxseg train deeplab:variant=v3plus,data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train deeplab:data=shapes --workdir=runs/shapes

Without internet access, give the files as in the second command: the data set as published, and
ImageNet weights in a file. On camvid, folder and shapes a variant is a head on their own small
backbone; `folder` is your own images, see docs/data.md.

Papers: Chen et al. 2017, arXiv 1706.05587, section 4, for v3 and cascade; Chen et al. 2018, arXiv
1802.02611, section 4, for v3plus and xception; both on the validation sets, with ImageNet weights.
The release's 75.32 % for mobilenet on VOC starts from COCO weights.
"""

from ml_collections import config_dict

from flaxseg.layers import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "v3plus": "ASPP and a decoder, dense convolutions, multi-grid (1, 2, 4)",
            "v3": "ASPP, multi-grid (1, 2, 4)",
            "cascade": "blocks 5 to 7 in place of ASPP, multi-grid (1, 2, 1)",
            "xception": "ASPP and a decoder, separable convolutions, on xception65",
            "mobilenet": "1x1 branch and image pooling, on mobilenet_v2",
        },
        "data": {
            "voc": ("resnet101", "8 x 16 GB and up"),
            "cityscapes": ("resnet101", "8 x 32 GB and up"),
            "ade20k": ("resnet101", "8 x 16 GB and up"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "v3plus", 78.85, "paper"),
        ("voc", "v3", 77.21, "paper"),
        ("voc", "v3, output stride 8", 78.51, "paper"),
        ("voc", "cascade", 76.66, "paper"),
        ("voc", "xception", 79.79, "paper"),
        ("cityscapes", "v3", 77.23, "paper"),
        ("cityscapes", "xception", 78.79, "paper"),
        ("ade20k", "xception, output stride 8, scales and flip", 45.65, "release"),
        ("camvid", "v3plus", 50.2, "measured after 600 steps"),
        ("camvid", "v3", 42.3, "measured after 300 steps"),
        ("camvid", "cascade", 36.6, "measured after 300 steps"),
        ("shapes", "v3plus", 52.6, "measured, from random weights"),
    ),
}

_HEADS = {
    "v3plus": (
        "deeplabv3plus",
        {"separable": True, "decoder_convs": 2, "low_level_features": 48},
    ),
    "v3": ("deeplabv3", {"separable": False}),
    "cascade": ("deeplabv3_cascade", {"multi_grid": (1, 2, 1)}),
    "xception": (
        "deeplabv3plus",
        {"separable": True, "decoder_convs": 2, "low_level_features": 48},
    ),
    "mobilenet": ("deeplabv3", {"separable": False}),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/deeplab.py", **RECIPE["choices"])
    config = default_config()
    config.model.name, options = _HEADS[chosen["variant"]]
    recipes.set_options(
        config,
        **options,
        rates=config_dict.placeholder(tuple),  # None: those of the papers at the output stride
        features=512 if chosen["variant"] == "cascade" else 256,
        dropout=0.0 if chosen["variant"] == "cascade" else 0.1,
        align_corners=config_dict.FieldReference("cells", field_type=object),  # or a bool
    )
    if config.model.name != "deeplabv3_cascade":
        recipes.set_options(config, image_pooling=True)
    _DATA[chosen["data"]](config, chosen["variant"])
    if chosen["variant"] == "mobilenet":
        config.model.options.rates = ()
    return config


def _voc(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets the recipe of the papers (section 4.1 of 1706.05587), 30k steps."""
    recipes.voc(config, crop=513)
    _train_as_in_the_papers(config, variant)
    config.steps = 30_000


def _cityscapes(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets the papers' recipe with larger crops and 90k steps (section 4.3 of 1706.05587)."""
    recipes.cityscapes(config, crop=769)
    _train_as_in_the_papers(config, variant)
    config.steps = 90_000


def _ade20k(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets the papers' recipe with the steps of the release's instructions."""
    recipes.ade20k(config, crop=513)
    _train_as_in_the_papers(config, variant)
    config.steps = 150_000


def _train_as_in_the_papers(config: config_dict.ConfigDict, variant: str) -> None:
    config.batch_size = 16
    config.optimizer.learning_rate = 0.007
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    if variant == "xception":
        config.model.backbone = "xception65"
        config.init.backbone = "timm/xception65.tf_in1k"
        config.optimizer.weight_decay = 4e-5
    elif variant == "mobilenet":
        config.model.backbone = "mobilenet_v2"
        config.init.backbone = "timm/mobilenetv2_100.ra_in1k"
        config.optimizer.weight_decay = 4e-5
        # Of the weights, which were trained in PyTorch.
        recipes.set_options(
            config,
            normalization={"mean": IMAGENET.mean, "std": IMAGENET.std},
            backbone_options={"padding": "torch"},
        )
    else:
        config.model.backbone = "resnet101"
        config.init.backbone = "timm/resnet101.tv_in1k"
        multi_grid = (1, 2, 1) if variant == "cascade" else (1, 2, 4)
        recipes.set_options(
            config, backbone_options={"multi_grid": multi_grid, "dilate_first_unit": True}
        )
    if variant == "v3plus":
        config.model.options.separable = False  # the paper's rows for ResNet-101


def _camvid(config: config_dict.ConfigDict, variant: str) -> None:
    """Sets rates that fit the crop.

    The papers' reach over most of a small crop's features. The statistics of BatchNorm are then
    those of taps on padding, and do not hold for whole images: at (6, 12, 18) pixel accuracy fell
    from 85 % on crops to 64 % on whole images.
    """
    recipes.camvid(config, crop=256)
    if "decoder_convs" in config.model.options:
        config.model.options.decoder_convs = 1  # as the PyTorch peer has it
    config.model.options.rates = (3, 6, 9)
    if variant == "cascade":
        config.model.options.rates = (2, 4, 8)
        config.model.options.features = 128
        # Three more stages of residual blocks diverge at ten times the backbone's rate.
        config.optimizer.head_lr_multiplier = 1.0


def _shapes(config: config_dict.ConfigDict, variant: str) -> None:
    recipes.shapes(config, crop=97)
    config.model.options.features = 32 if variant == "cascade" else 64
    config.model.options.rates = (1, 2, 3)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
