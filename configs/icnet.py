"""ICNet.

    python train.py --config=configs/icnet.py:variant=full --workdir=runs/full
    python -m flaxseg prune runs/full --keep=0.5 --out=models/half
    python train.py --config=configs/icnet.py:variant=half --config.init.model=models/half \
        --workdir=runs/half

    python train.py --config=configs/icnet.py:variant=full,data=camvid \
        --config.data.manual_dir=CAMVID --config.init.backbone=WEIGHTS.safetensors \
        --workdir=runs/camvid
    python train.py --config=configs/icnet.py:data=shapes --workdir=runs/shapes

The first three commands are the paper's way to its network (Zhao et al., 2018, section 3.4): train
one of twice the channels, prune it, train on. Trained from random weights the small one stays some
seven points behind. Without internet give the files, as in the fourth command.

The part after the colon: `variant` is half (default), the paper's network, or full, the one before
pruning; `data` is cityscapes (default), voc, ade20k, camvid, folder or shapes. With the
EfficientNet-Lite0 of camvid only the head differs between the two.

data        backbone             hardware           mIoU expected
cityscapes  resnet50             8 x 16 GB and up   67.7 % half, validation split at 1025 x 2049
                                                    (paper: Zhao et al. 2018, arXiv 1704.08545); an
                                                    unpruned port in PyTorch reports 71.0 %
voc         resnet50             8 x 16 GB and up   none published
ade20k      resnet50             8 x 16 GB and up   none published
camvid      efficientnet_lite0   2 CPU cores        39.9 % measured after 300 steps of half; the
                                                    paper's 67.1 % is at 720 x 960 on its ResNet
shapes      resnet18             2 CPU cores        not measured yet; from random weights

Learning rate, batch, decay and augmentation are the paper's; its crops are not published, and those
here are 32 k + 1 pixels a side, so that all branches meet cell by cell. The paper begins with a
PSPNet50, whose ImageNet weights have no public name; the recipe has torchvision's ResNet-50, and so
its layout: a 7x7 stem and the stride on the 3x3 convolution.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

_WIDTHS = {"half": 0.5, "full": 1.0}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """The recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(
        argument, "configs/icnet.py", variant=_WIDTHS, data=_DATA
    )
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
    config.steps = 60_000  # seven times the pictures of Cityscapes


def _on_resnet50(config: config_dict.ConfigDict) -> None:
    """The paper's 30k steps."""
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
    "folder": recipes.own_pictures(_camvid),
    "shapes": _shapes,
}
