"""DeepLab v2: ASPP on ResNet-101 at three scales, or on VGG16.

    python train.py --config=configs/deeplab_v2.py --config.init.backbone=INIT.npz \
        --workdir=runs/aspp
    python train.py --config=configs/deeplab_v2.py:variant=vgg16_aspp_l \
        --config.init.backbone=VGG16.npz --workdir=runs/vgg16
    python train.py --config=configs/deeplab_v2.py:data=camvid \
        --config.data.manual_dir=CAMVID --config.init.backbone=WEIGHTS.safetensors \
        --workdir=runs/camvid
    python train.py --config=configs/deeplab_v2.py:data=shapes --workdir=runs/shapes

INIT.npz (or .safetensors, .pth) is a Caffe ResNet-101 with its names, `res2a_branch2a` and so on,
for blue, green, red: the release's, trained on COCO, or ImageNet's, with which 2 to 3 points are
lost. VGG16.npz is Caffe's ILSVRC classifier, `conv1_1.weight` to `fc7.bias`; fc6 and fc7 are
thinned out to 3x3 and 1024 channels.

The part after the colon: `variant` is resnet101 (default, ASPP-L at scales 1, 0.75 and 0.5),
resnet101_large_fov, vgg16_large_fov, vgg16_aspp_s or vgg16_aspp_l; `data` is voc (default),
cityscapes, ade20k, camvid, folder or shapes.

data        backbone             hardware    mIoU expected
voc         resnet101            1 x 16 GB   76.35 % ASPP-L, 75.54 % LargeFOV
            vgg16                1 x 12 GB   65.76 % LargeFOV, 66.98 % ASPP-S, 68.96 % ASPP-L;
                                             all without CRF (paper: Chen et al. 2016, arXiv
                                             1606.00915)
cityscapes  resnet101            1 x 24 GB   70.4 % ASPP-L, 69.2 % LargeFOV, 71.0 % ASPP-L with
                                             augmentation (paper)
            vgg16                1 x 16 GB   64.89 % ASPP-L, 62.97 % LargeFOV (paper)
ade20k      resnet101, vgg16     1 x 16 GB   none published
camvid      efficientnet_lite0   2 CPU cores 40.5 % measured after 300 steps
shapes      resnet18             2 CPU cores not measured yet; from random weights

The recipe on VOC is that of the released solvers: 20k steps of 10 crops, poly, ten times the rate
for the classifiers, twice for biases; with ResNet-101 one crop at a time, BatchNorm with its
parameters frozen, scales 0.5, 0.75, ... 1.5, and four losses, of the fused scores and of those at
each scale, on labels at their own grid.
"""

from ml_collections import config_dict

from flaxseg.models.deeplab_v2 import RATES
from flaxseg.training import recipes
from flaxseg.training.config import default_config

_VARIANTS = {
    "resnet101": ("resnet101", "aspp_l"),
    "resnet101_large_fov": ("resnet101", "large_fov"),
    "vgg16_large_fov": ("vgg16", "large_fov"),
    "vgg16_aspp_s": ("vgg16", "aspp_s"),
    "vgg16_aspp_l": ("vgg16", "aspp_l"),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """The recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(
        argument, "configs/deeplab_v2.py", variant=_VARIANTS, data=_DATA
    )
    config = default_config()
    backbone, rates = _VARIANTS[chosen["variant"]]
    config.model.name = "deeplabv2"
    config.model.backbone = backbone
    config.model.output_stride = 8
    on_vgg = backbone == "vgg16"
    recipes.set_options(
        config,
        rates=RATES[rates],
        scales=(1.0,) if on_vgg else (1.0, 0.75, 0.5),
        fc_features=1024 if on_vgg else 0,
        dropout=0.5,
    )
    _DATA[chosen["data"]](config)
    outputs = ("scale100",)
    if len(config.model.options.scales) > 1:
        outputs = ("fused", "scale100", "scale75", "scale50")
    config.loss.outputs.logits.weight = 0.0
    recipes.set_output_loss(config, *outputs, resize_labels=True, align_corners=True)
    return config


def _released_solver(config: config_dict.ConfigDict) -> None:
    config.steps = 20_000
    config.batch_size = 10
    config.optimizer.weight_decay = 5e-4
    config.optimizer.head = "aspp/classifier_*"
    config.optimizer.head_lr_multiplier = 10.0
    config.optimizer.bias_lr_multiplier = 2.0
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50
    if config.model.backbone == "vgg16":
        config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
        config.data.scale = (1.0, 1.0)
        config.optimizer.learning_rate = 1e-3
        return
    config.init.backbone = "INIT.npz"  # a Caffe ResNet-101; give its path
    mean = (122.675, 116.669, 104.008)
    recipes.set_options(config, normalization={"mean": mean, "std": (1.0, 1.0, 1.0)})
    config.model.frozen_batch_norm = True
    config.data.scale = (0.5, 1.5)
    config.data.scale_step = 0.25
    config.optimizer.learning_rate = 2.5e-4
    config.optimizer.accumulate_steps = 10
    config.optimizer.frozen = "backbone/*/scale,backbone/*/bias"


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=321)
    _released_solver(config)


def _cityscapes(config: config_dict.ConfigDict) -> None:
    recipes.cityscapes(config, crop=513)
    _released_solver(config)


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=321)
    _released_solver(config)
    config.steps = 40_000  # twice the pictures of VOC


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=257)
    config.model.output_stride = 16
    config.optimizer.head_lr_multiplier = 0.1  # no BatchNorm in the head
    recipes.set_options(config, rates=(3, 6, 9, 12), scales=(1.0,), fc_features=0)


def _shapes(config: config_dict.ConfigDict) -> None:
    recipes.shapes(config, crop=97)
    recipes.set_options(config, rates=(1, 2, 3, 4), scales=(1.0,), fc_features=0, dropout=0.1)


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_pictures(_camvid),
    "shapes": _shapes,
}
