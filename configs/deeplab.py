"""DeepLab v3 and v3+.

    python train.py --config=configs/deeplab.py --workdir=runs/voc
    python train.py --config=configs/deeplab.py:variant=v3plus,data=camvid \
        --config.data.manual_dir=CAMVID --config.init.backbone=WEIGHTS.safetensors \
        --workdir=runs/camvid
    python train.py --config=configs/deeplab.py:data=shapes --workdir=runs/shapes

Without internet give the files, as in the second command: the data set as published and ImageNet
weights in a file.

The part after the colon: `variant` is v3plus (default), v3, cascade, xception or mobilenet; `data`
is voc (default), cityscapes, ade20k, camvid, folder or shapes. The last three have a small backbone
of their own for every variant; a variant is then its head. `folder` is your own pictures, as
docs/data.md says.

variant    head                             backbone of voc, cityscapes, ade20k
v3plus     ASPP and decoder, dense          resnet101, multi-grid (1, 2, 4)
v3         ASPP                             resnet101, multi-grid (1, 2, 4)
cascade    blocks 5 to 7                    resnet101, multi-grid (1, 2, 1)
xception   ASPP and decoder, separable      xception65
mobilenet  1x1 branch and image pooling     mobilenet_v2

data        output stride, crop, steps   hardware          mIoU expected
voc         16, 513, 30k                 8 x 16 GB and up  v3 77.21 %, at output stride 8 78.51 %;
                                                           v3plus 78.85 %; cascade 76.66 %;
                                                           xception 79.79 % (paper)
cityscapes  16, 769, 90k                 8 x 32 GB and up  v3 77.23 %; xception 78.79 % (paper)
ade20k      16, 513, 150k                8 x 16 GB and up  xception 45.65 % at output stride 8 with
                                                           scales and flip (release)
camvid      16, 256, 600                 2 CPU cores       v3plus 50.2 %, after 300 steps v3 42.3 %,
                                                           cascade 36.6 %, measured, on the test
                                                           split
shapes      16, 97, 4000                 2 CPU cores       v3plus 52.6 % measured; random weights

(paper): Chen et al. 2017, arXiv 1706.05587, section 4 for v3 and cascade, and Chen et al. 2018,
arXiv 1802.02611, section 4 for v3plus and xception, on the validation sets with ImageNet weights.
The release's numbers for mobilenet, 75.32 % on VOC, begin from COCO.
"""

from ml_collections import config_dict

from flaxseg.layers import IMAGENET
from flaxseg.training import recipes
from flaxseg.training.config import default_config

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
    """The recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(
        argument, "configs/deeplab.py", variant=_HEADS, data=_DATA
    )
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
    """The recipe of the papers (section 4.1 of 1706.05587), 30k steps."""
    recipes.voc(config, crop=513)
    _train_as_in_the_papers(config, variant)
    config.steps = 30_000


def _cityscapes(config: config_dict.ConfigDict, variant: str) -> None:
    """The papers' recipe with larger crops, 90k steps (section 4.3 of 1706.05587)."""
    recipes.cityscapes(config, crop=769)
    _train_as_in_the_papers(config, variant)
    config.steps = 90_000


def _ade20k(config: config_dict.ConfigDict, variant: str) -> None:
    """The papers' recipe with the steps of the release's instructions."""
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
    """Rates that fit the crop.

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
    "folder": recipes.own_pictures(_camvid),
    "shapes": _shapes,
}
