"""PSPNet.

    flaxseg train pspnet:data=ade20k --workdir=runs/ade20k
    flaxseg train pspnet:data=cityscapes --config.model.backbone=resnet101 \
        --config.init.backbone=timm/resnet101s.gluon_in1k --workdir=runs/cityscapes
    flaxseg train pspnet:data=camvid --config.data.manual_dir=CAMVID \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train pspnet:data=shapes --workdir=runs/shapes

Without internet access, give the files as in the third command: the data set as published, and
ImageNet weights in a file. The weights of the author's own ResNets (resnet50_v2.pth and so on, of
semseg) fit too; torchvision's need the 7x7 stem,
--config.model.options.backbone_options.deep_stem="()".

Paper: Zhao et al. 2017, arXiv 1612.01105, tables 1 and 3. The author's scores slide windows of the
crop's size over the image, each with its mirror image; here whole images are evaluated.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "semseg": "the recipe of the author's PyTorch code",
            "caffe": "the network and rates of the Caffe release, as far as they are known",
            "baseline": "semseg without pyramid pooling, the baseline of the paper's ablations",
        },
        "data": {
            "voc": ("resnet50", "4 x 12 GB and up"),
            "cityscapes": ("resnet50", "8 x 12 GB and up"),
            "ade20k": ("resnet50", "4 x 12 GB and up"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "semseg", 77.05, "author's code"),
        ("voc", "semseg, resnet101", 79.07, "author's code"),
        ("cityscapes", "semseg", 77.3, "author's code"),
        ("cityscapes", "semseg, resnet101", 78.63, "author's code"),
        ("ade20k", "semseg", 41.89, "author's code"),
        ("ade20k", "semseg, resnet101", 43.1, "author's code"),
        ("ade20k", "semseg", 41.68, "paper"),
        ("ade20k", "semseg, resnet101", 41.96, "paper"),
        ("ade20k", "baseline", 37.23, "paper"),
        ("camvid", "semseg", 44.4, "measured after 300 steps"),
    ),
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/pspnet.py", **RECIPE["choices"])
    config = default_config()
    config.model.name = "pspnet"
    config.model.backbone = "resnet50"
    config.model.output_stride = 8
    recipes.set_options(
        config,
        bins=(1, 2, 3, 6),
        pooling="average",
        windows=config_dict.placeholder(tuple),  # None: adaptive
        features=512,
        dropout=0.1,
        channel_dropout=True,
        align_corners=config_dict.FieldReference("cells", field_type=object),  # or a bool
    )
    config.loss.outputs.auxiliary.weight = 0.4
    config.optimizer.decay_bn_and_bias = True
    _DATA[chosen["data"]](config)
    if chosen["variant"] in _CHANGES:
        _CHANGES[chosen["variant"]](config)
    return config


def _published(config: config_dict.ConfigDict, steps: int) -> None:
    """Sets what semseg's recipes have in common.

    There an image is rotated with probability 0.5, here always, by an angle of the same range.
    """
    recipes.set_options(config, backbone_options={"deep_stem": (64, 64, 128)})
    config.init.backbone = "timm/resnet50s.gluon_in1k"
    config.steps = steps
    config.batch_size = 16
    config.optimizer.head_lr_multiplier = 10.0
    config.data.rotate = 10.0
    config.data.blur = 0.5
    config.eval.every_steps = 5000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict) -> None:
    recipes.voc(config, crop=473)
    _published(config, 50 * (10_582 // 16))  # epochs


def _cityscapes(config: config_dict.ConfigDict) -> None:
    """Trains as semseg; the paper has rotation and blur for the two other data sets only."""
    recipes.cityscapes(config, crop=713)
    _published(config, 200 * (2_975 // 16))


def _ade20k(config: config_dict.ConfigDict) -> None:
    recipes.ade20k(config, crop=473)
    _published(config, 100 * (20_210 // 16))


def _camvid(config: config_dict.ConfigDict) -> None:
    recipes.camvid(config, crop=256)
    config.model.output_stride = 16
    config.model.options.features = 128


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


def _caffe(config: config_dict.ConfigDict) -> None:
    """Sets the rates in the published network definitions; the solver was not published.

    Their weight decay of the classifier's bias, 1e-4, is left out.
    """
    options = config.model.options
    options.bins = (6, 3, 2, 1)
    options.channel_dropout = False
    recipes.set_options(config, batch_norm_momentum=0.95)
    side = (config.data.crop_size[0] - 1) // config.model.output_stride + 1
    if side % 6 == 0:
        options.windows = tuple(side // bins for bins in options.bins)
    config.optimizer.decay_bn_and_bias = False
    config.optimizer.bias_lr_multiplier = 2.0


def _baseline(config: config_dict.ConfigDict) -> None:
    config.model.options.bins = ()


_CHANGES = {"caffe": _caffe, "baseline": _baseline}
