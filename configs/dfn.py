"""DFN: a smooth network with channel attention, and a border network beside it in training.

    flaxseg train dfn --workdir=runs/voc
    flaxseg train dfn:data=cityscapes --workdir=runs/cityscapes
    flaxseg train dfn:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train dfn:data=shapes --workdir=runs/shapes

Without internet access, give the files as in the third command: the data set as published, and
ImageNet weights in a file. Paper: Yu et al. 2018, arXiv 1804.09337. The scores on Cityscapes slide
windows over the image.

Source of the recipe: the first author's PyTorch code (TorchSeg). Its focal loss is smallest where
a border is predicted everywhere, whatever the labels; here it is the paper's, so that the border
network learns. The losses of borders weigh 0.1. A border is four pixels to both sides of where
classes meet; that code also has edges along ignored rings, which do not count here. Its scales are
0.5, 0.75, 1, 1.5, 1.75 and 2; here they are continuous. The paper's rate is 0.004. The context
branch normalises one number an image, so a step needs many images.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "dfn": "smooth and border network, a loss at every stage",
            "smooth": "without the border network",
            "rrb": "refinement alone: no context, attention or losses of coarser stages",
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
        ("voc", "dfn", 79.67, "paper"),
        ("voc", "dfn", 79.4, "author's code"),
        ("cityscapes", "dfn", 78.5, "paper"),
        ("cityscapes", "dfn", 79.09, "author's code"),
        ("camvid", "dfn", 30.4, "measured after 300 steps"),
    ),
}

_SMOOTH = ("smooth_c5", "smooth_c4", "smooth_c3")
_BORDER = ("border_c2", "border_c3", "border_c4", "border_c5")


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/dfn.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "dfn"
    config.model.backbone = "resnet101"
    config.model.output_stride = 32
    recipes.set_options(
        config,
        features=512,
        border_features=21,
        head_factor=9,
        global_context=True,
        attention=True,
        deep_supervision=True,
        border=True,
        remat_blocks=False,
    )
    recipes.set_output_loss(config, *_SMOOTH, weight=1.0, align_corners=True)
    recipes.set_output_loss(
        config,
        *_BORDER,
        weight=0.1,
        kind="focal(gamma=2.0, alpha=0.25)",
        target="border(radius=4)",
        align_corners=True,
    )
    _DATA[chosen["data"]](config)
    if chosen["variant"] in _CHANGES:
        _CHANGES[chosen["variant"]](config)
    return config


def _published(config: config_dict.ConfigDict) -> None:
    """Sets what the author's recipes have in common."""
    config.init.backbone = "timm/resnet101s.gluon_in1k"
    recipes.set_options(config, backbone_options={"deep_stem": (64, 64, 128)})
    config.optimizer.head_lr_multiplier = 10.0
    config.eval.every_steps = 5000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=512)
    config.eval.pad_to = (512, 512)
    _published(config)
    config.steps = 120 * (10_582 // 32)  # epochs
    config.batch_size = 32
    config.optimizer.learning_rate = 8e-4
    config.optimizer.weight_decay = 1e-5


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=800)
    _published(config)
    config.steps = 80_000
    config.batch_size = 16
    config.optimizer.learning_rate = 7e-4
    config.optimizer.weight_decay = 1e-4


def _ade20k(config: config_dict.ConfigDict) -> None:
    """Trains as on VOC, for 60 epochs of twice the images."""
    recipes.ade20k(config, crop=512)
    _published(config)
    config.steps = 60 * (20_210 // 32)
    config.batch_size = 32
    config.optimizer.learning_rate = 8e-4
    config.optimizer.weight_decay = 1e-5


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)
    config.optimizer.learning_rate = 0.001  # losses of eight outputs; 0.01 diverges
    config.model.options.features = 64


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    config.model.options.features = 64


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}


def _smooth(config: config_dict.ConfigDict) -> None:
    config.model.options.border = False
    _drop(config, _BORDER)


def _rrb(config: config_dict.ConfigDict) -> None:
    _smooth(config)
    options = config.model.options
    options.global_context = options.attention = options.deep_supervision = False
    _drop(config, _SMOOTH)


def _drop(config: config_dict.ConfigDict, outputs: tuple[str, ...]) -> None:
    """Removes the losses of outputs that the variant does not have."""
    with config.unlocked():
        for name in outputs:
            del config.loss.outputs[name]


_CHANGES = {"smooth": _smooth, "rrb": _rrb}
