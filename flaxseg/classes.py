"""Holds what every part of the library says about classes: the ignored label, VOC's names, and the
palette of its label files."""

import unicodedata
from collections.abc import Iterable, Sequence

from flaxseg.errors import ConfigError, listed

IGNORE_LABEL = 255  # of every loaded label: a pixel that is neither learned from nor counted

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def check_class_names(names: Iterable[str]) -> None:
    """Checks that class names can be printed, drawn and written, each within its line.

    Raises:
      ConfigError: a name is empty or holds a control character, such as a newline.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"a class name is {name!r}; it must be a text that is not empty.")
        bad = [c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        if bad:
            raise ConfigError(
                f"the class name {name!r} holds the control character {bad[0]!r}; names are a line "
                "of text."
            )


def check_same_classes(
    model_names: Sequence[str], data: str, data_names: Sequence[str], advice: str
) -> None:
    """Checks that a model and a data set mean the same by every class index.

    Names such as "class 7", which a model has that was given none, fit any data set.

    Args:
      model_names: of the model's classes.
      data: name of the data set.
      data_names: of its classes.
      advice: what to do, for the message.

    Raises:
      ConfigError: they do not.
    """
    names, wanted = list(model_names), list(data_names)
    if len(names) != len(wanted):
        raise ConfigError(
            f"the model has {len(names)} classes and data set {data!r} has {len(wanted)}; {advice}"
        )
    different = [
        f"{index} ({ours!r} in the model, {theirs!r} in the data)"
        for index, (ours, theirs) in enumerate(zip(names, wanted, strict=True))
        if ours != theirs
    ]
    if different and names != [f"class {index}" for index in range(len(names))]:
        raise ConfigError(
            f"the classes of the model and of data set {data!r} differ: class "
            f"{listed(different, 4)}; {advice}"
        )


def voc_colors(number: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first colours of VOC's palette, which its label PNGs hold.

    Bits 0, 1 and 2 of an id become the highest bits of red, green and blue, the next three bits
    the next lower ones, and so on (VOC development kit, `VOClabelcolormap.m`).

    Args:
      number: of classes, 0 to 256.

    Returns:
      RGB triples; the first is black.

    Raises:
      ValueError: there are more classes than label files have values.

    Example:
      >>> voc_colors(4)
      ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    if not 0 <= number <= 256:
        raise ValueError(
            f"voc_colors has 0 to 256 colours, got {number}; a label file has no more ids."
        )
    colors = []
    for index in range(number):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append(tuple(channels))
    return tuple(colors)
