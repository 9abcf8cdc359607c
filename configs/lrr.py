"""LRR: Laplacian pyramid reconstruction with learned bases, level by level.

    flaxseg learn-basis voc_segmentation --out=runs/bases_voc
    flaxseg train lrr:variant=32x --config.init.bases=runs/bases_voc \
        --config.init.backbone=VGG16.npz --workdir=runs/lrr32x
    flaxseg train lrr:variant=16x --config.init.bases=runs/bases_voc --workdir=runs/lrr16x
    flaxseg train lrr:variant=8x --config.init.bases=runs/bases_voc --workdir=runs/lrr8x
    flaxseg train lrr:variant=4x --config.init.bases=runs/bases_voc --workdir=runs/lrr4x

    flaxseg learn-basis camvid --scale=unit --out=runs/bases_camvid
    flaxseg train lrr:data=camvid --config.init.bases=runs/bases_camvid \
        --config.init.backbone=WEIGHTS.safetensors --workdir=runs/camvid
    flaxseg train lrr:data=shapes --workdir=runs/shapes

Each stage starts from the one before (`config.init.model`, by default runs/lrr32x, runs/lrr16x,
runs/lrr8x): everything is taken over, and the coefficients of the new level start at zero. The
released code gives 16x and 8x no steps of their own: `variant=4x --config.init.model=runs/lrr32x`.
Without `init.bases` the bases are cosines. VGG16.npz is Caffe's ILSVRC classifier with its own
names, as for the recipe fcn; its mean stands for that of the training set. On camvid, folder and
shapes all levels are trained at once.

The scores on VOC are those of the public leaderboard, from Chen et al. 2016, arXiv 1606.00915.
Source of the recipe: the released training code for VOC (golnazghiasi/LRR): rate 1e-3 for 65 epochs
of 32x, halved after 50 and 60, then 6.25e-5 for 16 epochs of each stage; momentum 0.9, decay 5e-4,
also of biases, which have twice the rate; images whose longer side becomes 288 to 704 pixels, parts
of 384 x 384; a loss per level on labels of its size, all of weight 1, and the heads of dilation and
erosion at 32x. The bases are not trained. Four things differ: the release takes the centre of an
image, one scale for a batch, the mean over each image's pixels before that over the batch, and
forgets its momentum after each epoch.
"""

from ml_collections import config_dict

from flaxseg.training import recipes
from flaxseg.training.config import default_config

RECIPE = {
    "choices": {
        "variant": {
            "4x": "all levels, started from 8x",
            "32x": "the coarsest level",
            "16x": "two levels, started from 32x",
            "8x": "three levels, started from 16x",
        },
        "backbone": {
            "vgg16": "of voc, cityscapes and ade20k",
            "resnet101": "of voc, cityscapes and ade20k",
        },
        "data": {
            "voc": ("vgg16; resnet101", "4 x 24 GB; resnet101 8 x 24 GB"),
            "cityscapes": ("vgg16; resnet101", "8 x 24 GB"),
            "ade20k": ("vgg16; resnet101", "4 x 24 GB"),
            "camvid": ("efficientnet_lite0", "2 CPU cores"),
            "folder": ("efficientnet_lite0", "2 CPU cores"),
            "shapes": ("resnet18", "2 CPU cores"),
        },
    },
    "scores": (
        ("voc", "4x, with COCO, test split", 76.8, "paper"),
        ("voc", "4x, resnet101, with COCO and CRF, test split", 79.3, "paper"),
        ("cityscapes", "4x, test split, fine annotations", 69.7, "paper"),
        ("camvid", "4x, bases of CamVid", 52.3, "measured after 300 steps"),
    ),
}

_VARIANTS = {"4x": 4, "32x": 32, "16x": 16, "8x": 8}
_START = {"4x": "runs/lrr8x", "8x": "runs/lrr16x", "16x": "runs/lrr32x", "32x": ""}
# Rates of the coefficients over the base rate, small because the bases are large.
_RATES = {32: 0.1, 16: 0.05, 8: 0.0125, 4: 0.1 / 512}

_BATCH_SIZE = 20


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """Returns the recipe for `variant=...,data=...,backbone=...`."""
    chosen = recipes.parse_recipe_argument(argument, "configs/lrr.py", **RECIPE["choices"])
    config = default_config()
    finest = _VARIANTS[chosen["variant"]]
    config.model.name = "lrr"
    config.model.output_stride = 32
    recipes.set_options(
        config,
        num_bases=10,
        finest=finest,
        mask_window=9,
        dilation_erosion=True,
        background_class=config_dict.placeholder(int),
    )
    # The losses of the release: every level at its own size. The logits of 4x are its scores; those
    # of a coarser net are only upsampled, and have no loss of their own.
    coarse = [f"{level}x" for level in (32, 16, 8) if level >= finest]
    recipes.set_output_loss(config, *coarse, resize_labels=True)
    if finest > 4:
        config.loss.outputs.logits.weight = 0.0
    recipes.set_output_loss(config, "dilation", kind="dilated_masks(radius=32)")
    recipes.set_output_loss(config, "erosion", kind="eroded_masks(radius=32)")
    config.optimizer.frozen = "reconstruction_*/kernel"
    _DATA[chosen["data"]](config, chosen["variant"], chosen["backbone"])
    return config


def _released_recipe(
    config: config_dict.ConfigDict, variant: str, backbone: str, images: int
) -> None:
    """Sets what the released code says for VOC, for as many epochs of any data set."""
    config.model.backbone = backbone
    if backbone == "vgg16":
        config.init.backbone = "VGG16.npz"  # Caffe's ILSVRC net; give its path
    else:
        config.init.backbone = "timm/resnet101.tv_in1k"
        config.model.frozen_batch_norm = True  # batches are small for statistics of their own
    if _START[variant]:
        config.init.backbone = ""
        config.init.model = _START[variant]
        config.init.reinit_head = True
    config.batch_size = _BATCH_SIZE
    epoch = images // _BATCH_SIZE
    if variant == "32x":
        config.steps = 65 * epoch
        config.optimizer.learning_rate = 1e-3
        config.schedule.name = "step"
        config.schedule.step_factor = 0.5
        config.schedule.step_milestones = (50 * epoch, 60 * epoch)
    else:
        config.steps = 16 * epoch
        config.optimizer.learning_rate = 1e-3 / 16
        config.schedule.name = "constant"
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_bn_and_bias = True
    config.optimizer.bias_lr_multiplier = 2.0
    levels = [level for level in _RATES if level >= _VARIANTS[variant]]
    rates = [f"coefficients_{level}x={_RATES[level]!r}" for level in levels]
    heads = [f"coefficients_{head}=0.1" for head in ("dilation", "erosion")]
    config.optimizer.lr_multipliers = ",".join([*rates, *heads])
    config.data.crop_size = (384, 384)
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 1000
    config.log.every_steps = 50


def _voc(config: config_dict.ConfigDict, variant: str, backbone: str) -> None:
    """Scales for images whose longer side is 500 pixels, as nearly all here."""
    recipes.voc(config)
    _released_recipe(config, variant, backbone, images=10_582)
    config.model.options.background_class = 0
    config.data.scale = (288 / 500, 704 / 500)
    config.data.scale_step = 32 / 500


def _cityscapes(config: config_dict.ConfigDict, variant: str, backbone: str) -> None:
    """Uses the mask window of the released network."""
    recipes.cityscapes(config)
    _released_recipe(config, variant, backbone, images=2_975)
    config.model.options.mask_window = 17
    config.data.crop_size = (768, 768)


def _ade20k(config: config_dict.ConfigDict, variant: str, backbone: str) -> None:
    recipes.ade20k(config)
    _released_recipe(config, variant, backbone, images=20_210)


def _camvid(config: config_dict.ConfigDict, variant: str, backbone: str) -> None:
    """Sets ordinary rates, which fit bases of unit norm."""
    del variant, backbone
    recipes.camvid(config, crop=256)
    config.optimizer.head_lr_multiplier = 0.1  # scores without a BatchNorm before them
    _without_masks(config)


def _shapes(config: config_dict.ConfigDict, variant: str, backbone: str) -> None:
    del variant, backbone
    recipes.shapes(config, crop=96)
    _without_masks(config)


def _without_masks(config: config_dict.ConfigDict) -> None:
    """Leaves out the heads of dilation and erosion, which only serve the training."""
    recipes.set_options(config, dilation_erosion=False)
    with config.unlocked():
        del config.loss.outputs["dilation"], config.loss.outputs["erosion"]


_DATA = {
    "voc": _voc,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "camvid": _camvid,
    "folder": recipes.own_images(_camvid),
    "shapes": _shapes,
}
