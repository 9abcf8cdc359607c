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

from flaxseg.errors import ConfigError
from flaxseg.training.config import default_config, did_you_mean

_VARIANTS = {
    "v3": ("deeplabv3", {"separable": False}),
    "v3plus": ("deeplabv3plus", {"separable": True, "decoder_convs": 2}),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """The recipe for `variant=...,data=...`."""
    chosen = _parse(argument)
    config = default_config()
    config.model.name, options = _VARIANTS[chosen["variant"]]
    with config.unlocked():
        config.model.options.update(options)
    _DATA[chosen["data"]](config)
    return config


def _voc(config: config_dict.ConfigDict) -> None:
    """The recipe of the papers (section 4.1 of 1706.05587), 30k steps."""
    config.data.name = "voc_segmentation"
    config.model.backbone = "resnet101"
    config.model.options.separable = False  # the paper's rows for ResNet-101
    config.init.backbone = "timm/resnet101.tv_in1k"
    config.data.train_split = "train_aug"
    config.data.crop_size = (513, 513)
    config.steps = 30_000
    config.batch_size = 16
    config.optimizer.learning_rate = 0.007
    config.eval.pad_to = (513, 513)
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _camvid(config: config_dict.ConfigDict) -> None:
    config.data.name = "camvid"
    config.model.backbone = "efficientnet_lite0"
    if "decoder_convs" in config.model.options:
        config.model.options.decoder_convs = 1  # as the PyTorch peer has it
    config.init.backbone = "timm/tf_efficientnet_lite0.in1k"
    config.data.eval_split = "test"
    config.data.crop_size = (256, 256)
    _set_rates(config, (3, 6, 9))
    config.steps = 600
    config.batch_size = 8
    config.optimizer.head_lr_multiplier = 10.0  # 0.1, where the backbone has 0.01
    config.eval.every_steps = 300
    config.checkpoint.every_steps = 100


def _set_rates(config: config_dict.ConfigDict, rates: tuple[int, ...]) -> None:
    """Rates of the ASPP for crops smaller than the papers' 513.

    The papers' rates reach over most of a small crop's features. The statistics of BatchNorm are
    then those of taps on padding, and do not hold for whole images: on CamVid, 256 crops at (6, 12,
    18), pixel accuracy fell from 85 % on crops to 64 % on whole images.
    """
    with config.unlocked():
        config.model.options.rates = rates


def _shapes(config: config_dict.ConfigDict) -> None:
    """A small network that learns from nothing in minutes on two cores."""
    config.data.name = "shapes"
    config.model.backbone = "resnet18"
    with config.unlocked():
        config.model.options.backbone_options = {"stage_sizes": (1, 1, 1, 1)}
        config.model.options.features = 128
    _set_rates(config, (1, 2, 3))
    config.data.crop_size = (97, 97)
    config.data.scale = (1.0, 1.5)
    config.steps = 1200
    config.batch_size = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.schedule.warmup_steps = 30
    config.eval.every_steps = 400
    config.checkpoint.every_steps = 200


_DATA = {"voc": _voc, "camvid": _camvid, "shapes": _shapes}


def _parse(argument: str) -> dict[str, str]:
    """`variant=v3,data=camvid` as a dict, with defaults; ConfigError for what is not known."""
    chosen = {"variant": "v3plus", "data": "voc"}
    known = {"variant": tuple(_VARIANTS), "data": tuple(_DATA)}
    problems = []
    for part in filter(None, argument.split(",")):
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in known:
            problems.append(
                f"{part!r} is not understood; write variant=... or data=..."
                f"{did_you_mean(key, known)}"
            )
        elif value not in known[key]:
            problems.append(
                f"{key} is {value!r}; it must be one of {', '.join(known[key])}."
                f"{did_you_mean(value, known[key])}"
            )
        else:
            chosen[key] = value
    if problems:
        raise ConfigError(f"configs/deeplab.py:{argument}: " + " ".join(problems))
    return chosen
