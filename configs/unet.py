"""U-Net.

    flaxseg train unet --workdir=runs/unet
    flaxseg train unet:variant=backbone,data=cityscapes --workdir=runs/unet_resnet34
    flaxseg train unet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train unet:data=shapes --workdir=runs/shapes

The paper's network (`valid`) pads nothing: margins of 92 pixels are reflections, and crops are
16 k + 4 pixels a side, so that none is lost. camvid, folder and shapes always use the form of
`backbone`, on backbones of their own.

The paper's scores are for cells under a microscope (Ronneberger et al. 2015, arXiv 1505.04597: IoU
92.0 % on PhC-U373, 77.6 % on DIC-HeLa); such images can be given as pairs in folders. Its recipe
has one large tile a step, momentum 0.99, rotations, shifts and changes of grey values; its elastic
deformations and its pixel weights between touching cells are not in these recipes. The learning
rate is not published; that of `valid` and `same` is chosen for a mean over pixels.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "valid": "the paper's network, without padding",
            "same": "the same with padding and BatchNorm, as most later versions",
            "backbone": "the form of segmentation_models.pytorch, on resnet34",
        },
        "data": {
            "voc": ("none; resnet34", "1 x 16 GB and up"),
            "cityscapes": ("none; resnet34", "4 x 16 GB and up"),
            "ade20k": ("none; resnet34", "1 x 16 GB and up"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (("camvid", "backbone", 38.9, "measured after 300 steps"),),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/unet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "unet"
    config.model.output_stride = 32
    _DATA[chosen["data"]](config)
    if chosen["data"] in ("camvid", "folder", "shapes"):
        recipes.set_options(config, dropout=0.1)
    elif chosen["variant"] == "backbone":
        _on_resnet34(config)
    else:
        _papers(config, padded=chosen["variant"] == "same")
    return config


def _papers(config: config_dict.ConfigDict, *, padded: bool) -> None:
    """Trains on one tile a step, with the data set's crop at the next size without loss."""
    config.model.backbone = "unet_encoder"
    options = {"padding": "torch", "batch_norm": True} if padded else {"padding": "valid"}
    recipes.set_options(config, backbone_options=options, dropout=0.5)
    config.init.backbone = ""
    config.steps = 100_000
    config.batch_size = 1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.99
    config.data.rotate = 10.0
    config.data.photometric = 0.25
    config.eval.every_steps = 5000
    config.checkpoint.every_steps = 2000
    config.log.every_steps = 100


def _on_resnet34(config: config_dict.ConfigDict) -> None:
    config.model.backbone = "resnet34"
    config.init.backbone = "timm/resnet34.tv_in1k"
    recipes.set_options(config, features=(256, 128, 64, 32, 16), dropout=0.1)
    config.steps = 60_000
    config.batch_size = 16
    config.optimizer.head_lr_multiplier = 10.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=388)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=516)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=388)


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, features=(64, 32, 32, 16, 16))


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
