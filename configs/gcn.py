"""GCN: large kernels, boundary refinement, and what the paper compares them with.

    flaxseg train gcn --workdir=runs/voc
    flaxseg train gcn:data=cityscapes --workdir=runs/cityscapes
    flaxseg train gcn:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train gcn:data=shapes --workdir=runs/shapes

Without internet access, give the files as in the third command: the data set as published, and
ImageNet weights in a file. No ImageNet weights were published for resnet_gcn: give your own as
--config.init.backbone.

Paper: Peng et al. 2017, arXiv 1703.02719, tables 1 to 7. Its score on Cityscapes uses the coarse
annotations first, and crops of 1024 pixels. Sizes and augmentation (mirror images alone) are the
paper's. Its solver is not usable as it stands: one image a step, momentum 0.99, weight decay 5e-4,
and no learning rate is given. Here it is that of other systems: 16 images a step, rate 0.0025
falling by the power 0.9 and ten times that in the head, 30k steps. After VOC with the additional
annotations, the paper trains on VOC alone:

    flaxseg train gcn --config.data.train_split=train --config.init.backbone= \
        --config.init.model=runs/voc --workdir=runs/voc_alone
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "gcn": "the paper's network: k = 15, on Cityscapes 25, and boundary refinement",
            "unrefined": "without boundary refinement, as all ablations",
            "baseline": "1x1 convolutions instead of large kernels",
            "trivial": "k x k convolutions, k = 9",
            "stack": "five 3x3 convolutions without ReLU, which see 11 x 11 cells",
            "resnet_gcn": "gcn on a ResNet-50 of large kernels",
        },
        "data": {
            "voc": ("resnet152", "8 x 16 GB and up"),
            "cityscapes": ("resnet152", "8 x 32 GB and up"),
            "ade20k": ("resnet152", "8 x 16 GB and up"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "gcn", 74.7, "paper"),
        ("voc", "unrefined", 74.5, "paper"),
        ("voc", "baseline", 69.0, "paper"),
        ("voc", "trivial", 68.8, "paper"),
        ("voc", "stack", 67.5, "paper"),
        ("voc", "resnet_gcn", 72.5, "paper"),
        ("voc", "gcn, with COCO before and VOC alone after", 80.3, "paper"),
        ("cityscapes", "gcn, with coarse annotations", 76.9, "paper"),
        ("camvid", "gcn", 35.1, "measured after 300 steps"),
    ),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/gcn.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "gcn"
    config.model.backbone = "resnet152"
    config.model.output_stride = 32
    recipes.set_options(
        config,
        kernel_size=15,
        kind="global",
        stack_features=config_dict.placeholder(int),  # None: as many as the level has
        boundary_refinement=True,
        upsampling="dense",
    )
    _DATA[chosen["data"]](config)
    if chosen["variant"] in _CHANGES:
        _CHANGES[chosen["variant"]](config)
    return config


def _paper(config: config_dict.ConfigDict) -> None:
    """Sets what does not depend on the data set."""
    config.init.backbone = "timm/resnet152.tv_in1k"
    config.steps = 30_000
    config.batch_size = 16
    config.optimizer.learning_rate = 0.0025
    config.optimizer.head_lr_multiplier = 10.0
    config.optimizer.weight_decay = 5e-4
    config.data.scale = (1.0, 1.0)
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    """Trains on whole images, padded to 512 pixels: features of stride 32 have 16 x 16 cells."""
    recipes.voc(config, crop=512)
    config.eval.pad_to = (512, 512)
    _paper(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=800)
    _paper(config)
    config.model.options.kernel_size = 25


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=512)
    _paper(config)


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)
    config.optimizer.head_lr_multiplier = 0.1  # scores without a BatchNorm before them


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    config.model.options.kernel_size = 7


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}


def _unrefined(config: config_dict.ConfigDict) -> None:
    config.model.options.boundary_refinement = False


def _baseline(config: config_dict.ConfigDict) -> None:
    _unrefined(config)
    config.model.options.kind = "baseline"


def _trivial(config: config_dict.ConfigDict) -> None:
    """Uses the largest kernel of table 2."""
    _unrefined(config)
    config.model.options.kind = "trivial"
    config.model.options.kernel_size = 9


def _stack(config: config_dict.ConfigDict) -> None:
    """Uses the deepest stack of table 3."""
    _unrefined(config)
    config.model.options.kind = "stack"
    config.model.options.kernel_size = 11


def _resnet_gcn(config: config_dict.ConfigDict) -> None:
    """Uses its backbone on small data sets too, with the depth and width of theirs."""
    if config.data.name in ("camvid", "folder"):
        recipes.set_options(config, backbone_options={"stage_sizes": (1, 1, 1, 1), "width": 0.25})
    config.model.backbone = "resnet50_gcn"
    config.init.backbone = ""


_CHANGES = {
    "unrefined": _unrefined,
    "baseline": _baseline,
    "trivial": _trivial,
    "stack": _stack,
    "resnet_gcn": _resnet_gcn,
}
