"""DeepLab v1: VGG16 with atrous fully connected layers.

    flaxseg train deeplab_v1 --config.init.backbone=VGG16.npz --workdir=runs/large_fov
    flaxseg train deeplab_v1:variant=msc --workdir=runs/msc
    flaxseg train deeplab_v1:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train deeplab_v1:data=shapes --workdir=runs/shapes

VGG16.npz (or .safetensors, .pth) is Caffe's ILSVRC classifier with its own names, `conv1_1.weight`
to `fc7.bias`, and channels in the order blue, green, red; fc6 and fc7 are subsampled to the size at
hand. The second command starts from the result of the first (`config.init.model`, by default
runs/large_fov) and, like the release, trains only the classifier and the new branches.

The paper's scores (Chen et al. 2015, arXiv 1412.7062) are without CRF. The recipe on VOC is that of
the released solver: 6k steps of 20 crops, mirrored only, the rate divided by ten every 2k steps,
ten times the rate for the classifier, twice for biases, and the loss at the output stride, on every
eighth pixel of the labels.
"""

from ml_collections import config_dict

from flaxseg.models.deeplab_v1 import FIELDS_OF_VIEW
from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "large": "LargeFOV",
            "7x7": "a 7x7 kernel in fc6",
            "4x4": "a 4x4 kernel in fc6",
            "4x4_large": "a 4x4 kernel of twice the rate",
            "msc": "LargeFOV with scores of finer features, started from large",
        },
        "data": {
            "voc": ("vgg16", "1 x 12 GB"),
            "cityscapes": ("vgg16", "1 x 12 GB"),
            "ade20k": ("vgg16", "1 x 12 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "large", 62.25, "paper"),
        ("voc", "7x7", 64.38, "paper"),
        ("voc", "4x4", 59.8, "paper"),
        ("voc", "4x4_large", 63.41, "paper"),
        ("voc", "msc", 64.21, "paper"),
        ("camvid", "large", 34.7, "measured after 300 steps"),
    ),
}

_VARIANTS = {
    **{name: FIELDS_OF_VIEW[name] for name in ("large", "7x7", "4x4", "4x4_large")},
    "msc": {**FIELDS_OF_VIEW["large"], "multi_scale": True},
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/deeplab_v1.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "deeplabv1"
    config.model.output_stride = 8
    recipes.set_options(config, **_VARIANTS[chosen["variant"]], dropout=0.5)
    config.loss.outputs.logits.weight = 0.0
    recipes.set_output_loss(config, "scale100", resize_labels=True, align_corners=True)
    _DATA[chosen["data"]](config)
    if chosen["variant"] == "msc" and config.model.backbone == "vgg16":
        config.init.backbone = ""
        config.init.model = "runs/large_fov"
        config.init.reinit_head = True
        config.optimizer.frozen = "backbone,fc6,fc7"
        config.optimizer.head_lr_multiplier = 1.0
    return config


def _released_solver(config: config_dict.ConfigDict) -> None:
    config.model.backbone = "vgg16"
    config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
    config.data.scale = (1.0, 1.0)
    config.steps = 6000
    config.batch_size = 20
    config.schedule.name = "step"
    config.schedule.step_milestones = (2000, 4000)
    config.schedule.step_factor = 0.1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 5e-4
    config.optimizer.head = "classifier"
    config.optimizer.head_lr_multiplier = 10.0
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 1000
    config.checkpoint.every_steps = 500
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=321)
    _released_solver(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=505)
    _released_solver(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=321)
    _released_solver(config)
    config.data.scale = (0.5, 1.0)  # images are of up to thousands of pixels
    config.steps = 40_000
    config.schedule.step_milestones = (13_000, 26_000)


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=257)
    config.model.output_stride = 16
    config.optimizer.head_lr_multiplier = 0.1  # no BatchNorm in the head
    recipes.set_options(config, rate=3, kernel_size=3, features=256)  # for crops of 17 cells


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, rate=2, kernel_size=3, features=64, dropout=0.1)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
