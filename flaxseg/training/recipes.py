"""Holds what the recipes in `configs/` share: the argument after the colon, and data sets.

--config=configs/deeplab.py:variant=v3,data=camvid
"""

from collections.abc import Callable, Iterable

from ml_collections import config_dict

from flaxseg.errors import ConfigError, near
from flaxseg.training.config import output_loss_section
from flaxseg.training.field_texts import names_in
from flaxseg.training.losses import OutputLoss


def parse_recipe_argument(argument: str, file: str, **choices: Iterable[str]) -> dict[str, str]:
    """Reads the part of `--config` after the colon.

    Args:
      argument: `"key=value,key=value"`; "" chooses every default.
      file: the recipe's, for the message.
      **choices: for each key, its values; the first is the default.

    Returns:
      One value for every key.

    Raises:
      ConfigError: listing all that is not understood, each with what is known and near.

    Example:
      >>> parse_recipe_argument("data=shapes", "configs/x.py", size=("s", "l"), data=("voc",
      ... "shapes"))
      {'size': 's', 'data': 'shapes'}
    """
    known = {key: tuple(values) for key, values in choices.items()}
    chosen = {key: values[0] for key, values in known.items()}
    problems = []
    for part in names_in(argument):
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in known:
            forms = " or ".join(f"{name}=..." for name in known)
            problems.append(f"{part!r} is not understood; write {forms}.{near(key, known)}")
        elif value not in known[key]:
            choices_of_key = ", ".join(known[key])
            problems.append(
                f"{key} is {value!r}; it must be one of {choices_of_key}.{near(value, known[key])}"
            )
        else:
            chosen[key] = value
    if problems:
        raise ConfigError(f"{file}:{argument}: " + " ".join(problems))
    return chosen


def set_options(config: config_dict.ConfigDict, **options: object) -> None:
    """Sets fields of `config.model.options`, new ones too.

    Only what stands there can be set on the command line, as
    `--config.model.options.dropout=0.5`. A value that the model chooses by itself is
    `config_dict.placeholder(tuple)`, which is None until it is set.
    """
    with config.unlocked():
        for name, value in options.items():  # `update` would lose the type of a placeholder
            config.model.options[name] = value


def set_output_loss(config: config_dict.ConfigDict, *outputs: str, **fields: object) -> None:
    """Describes the loss of some of the model's outputs, in `config.loss.outputs`.

    Args:
      config: changed in place.
      *outputs: `"logits"`, `"auxiliary"` for all auxiliary outputs without a section of their own,
        or the name of one, which then has a section.
      **fields: attributes of `flaxseg.training.losses.OutputLoss`; what is left out has its
        default.
    """
    with config.unlocked():
        for name in outputs:
            config.loss.outputs[name] = output_loss_section(OutputLoss(**fields))


# Square roots of how rare the classes of CamVid are in the training labels: the median of the
# classes' shares of all pixels over the class's share. In a short training the small classes are
# not learned without them.
_CAMVID_WEIGHTS = (0.9, 0.75, 3.6, 0.65, 1.7, 1.2, 3.3, 3.4, 1.5, 4.5, 6.7)

# Each function below changes a config to what a data set needs, whatever the system: its name and
# splits, crops of `crop` x `crop` pixels, and a padding that gives evaluation images one size.


def voc(config: config_dict.ConfigDict, *, crop: int = 513) -> None:
    """Selects PASCAL VOC 2012 with the additional annotations.

    It has 10,582 training images of at most 500x500 pixels, with 21 classes.
    """
    config.data.name = "voc_segmentation"
    config.data.train_split = "train_aug"
    config.data.crop_size = (crop, crop)
    config.eval.pad_to = (513, 513)


def cityscapes(config: config_dict.ConfigDict, *, crop: int = 769) -> None:
    """Selects Cityscapes, fine annotations: 2,975 training images of 1024x2048, 19 classes."""
    config.data.name = "cityscapes"
    config.data.crop_size = (crop, crop)
    config.eval.batch_size = 1


def ade20k(config: config_dict.ConfigDict, *, crop: int = 513) -> None:
    """Selects ADE20K of the scene parsing challenge 2016.

    It has 20,210 training images of all sizes, with 150 classes.
    """
    config.data.name = "ade20k"
    config.data.crop_size = (crop, crop)
    config.eval.batch_size = 1


def camvid(config: config_dict.ConfigDict, *, crop: int = 256) -> None:
    """Selects CamVid (367 training images of 360x480 pixels, 11 classes) on a small backbone.

    Meant for a computer without an accelerator: 600 steps of 8 crops with SGD, at a learning rate
    of 0.01 (0.1 in the head), and a loss that gives rare classes more weight.
    """
    config.data.name = "camvid"
    config.data.eval_split = "test"
    config.data.crop_size = (crop, crop)
    config.model.backbone = "efficientnet_lite0"
    config.init.backbone = "timm/tf_efficientnet_lite0.in1k"
    # TensorFlow's padding, with which the weights were trained, shifts features by an amount that
    # depends on the size, so crops and whole images would differ.
    set_options(config, backbone_options={"padding": "torch"})
    config.steps = 600
    config.batch_size = 8
    config.optimizer.learning_rate = 0.01
    config.optimizer.head_lr_multiplier = 10.0
    config.loss.class_weights = _CAMVID_WEIGHTS
    config.eval.every_steps = 300
    config.checkpoint.every_steps = 100


def own_images(recipe: Callable[..., None]) -> Callable[..., None]:
    """Returns the recipe for your own images, the data set `folder`.

    It is the recipe for CamVid with equal class weights. `verify-data` prints balanced weights.

    Args:
      recipe: the one for CamVid, a function that changes a config in place.
    """

    def of_folder(config: config_dict.ConfigDict, *chosen: str) -> None:
        recipe(config, *chosen)
        config.data.name = "folder"
        config.data.eval_split = "val"
        config.loss.class_weights = ()

    return of_folder


def shapes(config: config_dict.ConfigDict, *, crop: int = 97) -> None:
    """Selects the generated shapes and a ResNet with one block per stage.

    It trains from random weights in minutes on two cores.
    """
    config.data.name = "shapes"
    config.data.crop_size = (crop, crop)
    config.data.scale = (1.0, 1.5)
    config.model.backbone = "resnet18"
    set_options(
        config,
        backbone_options={"stage_sizes": (1, 1, 1, 1), "width": 0.5, "deep_stem": (16, 16, 32)},
    )
    config.init.backbone = ""
    config.steps = 4000
    config.batch_size = 4  # more steps are worth more here than larger batches
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.head_lr_multiplier = 1.0
    config.schedule.warmup_steps = 100
    config.eval.every_steps = 1000
    config.checkpoint.every_steps = 500
    config.log.every_steps = 100
