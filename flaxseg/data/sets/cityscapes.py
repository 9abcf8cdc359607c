"""`cityscapes`: street scenes of 50 cities, 1024 x 2048, 19 classes.

The data can only be downloaded with an account. The folder holds the archives from
cityscapes-dataset.com, or the folders that they unpack to:

    leftImg8bit_trainvaltest.zip   leftImg8bit/{train,val,test}/CITY/ID_leftImg8bit.png
    gtFine_trainvaltest.zip        gtFine/{train,val,test}/CITY/ID_gtFine_labelIds.png
    leftImg8bit_trainextra.zip     leftImg8bit/train_extra/CITY/ID_leftImg8bit.png
    gtCoarse.zip                   gtCoarse/{train,val,train_extra}/CITY/ID_gtCoarse_labelIds.png

The last two are optional. Labels are the files `labelIds`, with ids 0 to 33; the derived
`labelTrainIds` are not read. The labels of `test` are blank: they mark only the borders of the
image and the car, which are ignored, so there is nothing to evaluate.
"""

import pathlib

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.decode import decode_label
from flaxseg.data.raw.file_tree import FileTree, Folder, nothing_found, open_tree, pair_up
from flaxseg.data.raw.label_map import LabelMap
from flaxseg.data.raw.pairs import File, Pair
from flaxseg.errors import DataError
from flaxseg.image_files import UndecodableError

HOW_TO_GET = (
    "Cityscapes can only be downloaded with an account: get leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip (and gtCoarse.zip and leftImg8bit_trainextra.zip for the coarse "
    "annotations) from https://www.cityscapes-dataset.com/downloads/ and give their folder"
)

# The evaluated classes: published id, name, colour; their order is that of the train ids.
_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)

CATEGORIES = {
    "flat": (0, 1),
    "construction": (2, 3, 4),
    "object": (5, 6, 7),
    "nature": (8, 9),
    "sky": (10,),
    "human": (11, 12),
    "vehicle": (13, 14, 15, 16, 17, 18),
}
"""The train ids of each evaluated category."""

# The pixels of an instance hold the id of its class times this plus a number; those of groups of
# instances, and of everything else, hold the id of the class.
_INSTANCES_PER_CLASS = 1000

_COARSE = "gtCoarse.zip"
_EXTRA = "leftImg8bit_trainextra.zip"

INFO = DatasetInfo(
    name="cityscapes",
    version="1.0.0",
    description="Street scenes from a car in 50 cities, 1024 x 2048, 19 classes.",
    class_names=tuple(name for _, name, _ in _CLASSES),
    class_colors=tuple(color for _, _, color in _CLASSES),
    label_map={
        **dict.fromkeys(range(34), IGNORE_LABEL),
        **{raw: train for train, (raw, _, _) in enumerate(_CLASSES)},
    },
    splits=("train", "val", "test", "train_extra", "train_coarse", "val_coarse"),
    split_sizes={
        "train": 2975,
        "val": 500,
        "test": 1525,
        "train_extra": 19998,
        "train_coarse": 2975,
        "val_coarse": 500,
    },
    eval_split="val",
    license="Cityscapes' own terms: free for research, teaching and personal experiments, not for "
    "commercial use, and not to be handed on (https://www.cityscapes-dataset.com/license/).",
    citation="M. Cordts, M. Omran, S. Ramos, T. Rehfeld, M. Enzweiler, R. Benenson, U. Franke, S. "
    "Roth, B. Schiele. The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR, 2016.",
    homepage="https://www.cityscapes-dataset.com",
    repeated={"train_coarse": "train", "val_coarse": "val"},
    optional={
        "test": "leftImg8bit/test and gtFine/test",
        "train_extra": f"{_EXTRA} and {_COARSE}",
        "train_coarse": _COARSE,
        "val_coarse": _COARSE,
    },
)

# Split -> the folder of its images and labels, and the kind of labels.
_PARTS = {
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "test": ("test", "gtFine"),
    "train_extra": ("train_extra", "gtCoarse"),
    "train_coarse": ("train", "gtCoarse"),
    "val_coarse": ("val", "gtCoarse"),
}


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Pairs images and labels by name; see `Published.find_pairs`.

    Splits whose files are missing are left out, except for `train` and `val`.
    """
    del progress
    labels = {
        "gtFine": _open(folder, "gtFine", "gtFine_trainvaltest.zip"),
        "gtCoarse": _open(folder, "gtCoarse", _COARSE),
    }
    fine = _open(folder, "leftImg8bit", "leftImg8bit_trainvaltest.zip", "train")
    images = dict.fromkeys(("train", "val", "test"), fine)
    images["train_extra"] = _open(folder, "leftImg8bit", _EXTRA, "train_extra")
    pairs = {}
    for split, (part, kind) in _PARTS.items():
        found = _pairs(images[part], part, labels[kind], kind)
        if found:
            pairs[split] = found
    missing = [split for split in ("train", "val") if split not in pairs]
    if missing:
        raise nothing_found(
            INFO.name,
            folder,
            [
                f"images and labels of {' and '.join(missing)}: "
                "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, or leftImg8bit/ and "
                "gtFine/ from them"
            ],
        )
    return pairs, []


def _open(folder: pathlib.Path, kind: str, archive: str, part: str = "") -> FileTree | None:
    return open_tree(
        folder,
        roots=("", archive.removesuffix(".zip"), "cityscapes", "Cityscapes"),
        marker=f"{kind}/{part}",
        archive=archive,
        prefix="",
        parts=(f"{kind}/",),
    )


def _pairs(images: FileTree | None, part: str, labels: FileTree | None, kind: str) -> list[Pair]:
    """Returns the pairs of a split, or none if all its images or all its labels are missing."""
    if images is None or labels is None:
        return []
    image_folder, label_folder = f"leftImg8bit/{part}", f"{kind}/{part}"
    image_suffix, label_suffix = "_leftImg8bit.png", f"_{kind}_labelIds.png"
    if not (images.names(image_folder, image_suffix) and labels.names(label_folder, label_suffix)):
        return []
    return pair_up(images, image_folder, image_suffix, labels, label_folder, label_suffix)


def find_instances(folder: pathlib.Path, split: str) -> dict[str, File]:
    """Finds the files `instanceIds`, which are not in the prepared records.

    Args:
      folder: holds `gtFine_trainvaltest.zip` (or `gtCoarse.zip`, for coarse labels), what it
        unpacks to, or files `*_gtFine_instanceIds.png` at any depth.
      split: the split; one that is not Cityscapes' own has fine labels.

    Returns:
      The id of each image -> its file.

    Raises:
      DataError: there are none, or the archive is damaged or hostile.
    """
    _, kind = _PARTS.get(split, ("", "gtFine"))
    archive = _COARSE if kind == "gtCoarse" else "gtFine_trainvaltest.zip"
    suffix = f"_{kind}_instanceIds.png"
    tree, below = _open(folder, kind, archive), kind
    if tree is None:
        tree, below = Folder(folder), ""
    files = {
        name.rpartition("/")[2].removesuffix(suffix): tree.file(name)
        for name in tree.names(below, suffix)
    }
    if not files:
        raise DataError(
            f"{folder} holds no *{suffix}; give the folder of {archive} or of what it unpacks to."
        )
    return files


def read_instances(file: File) -> tuple[np.ndarray, np.ndarray]:
    """Reads which pixels belong to which instance.

    Returns:
      instances, int32 [H, W]: a number for each instance, 0 where there is none; and the train ids
      of the instances, uint8 [largest number + 1], 255 for classes that are not evaluated and for
      0.

    Raises:
      DataError: the file cannot be read, or is not of Cityscapes.
    """
    try:
        raw = decode_label(file.read_bytes()).astype(np.int32)
    except (OSError, UndecodableError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    found = np.unique(raw)
    found = found[found > _INSTANCES_PER_CLASS]
    numbers = np.zeros(int(raw.max(initial=0)) + 1, np.int32)
    numbers[found] = np.arange(1, len(found) + 1)
    try:
        classes = LabelMap(INFO.label_map).apply((found // _INSTANCES_PER_CLASS).astype(np.uint16))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    return numbers[raw], np.append(np.uint8(IGNORE_LABEL), classes.astype(np.uint8))


def to_label_ids(train_ids: np.ndarray) -> np.ndarray:
    """Turns predictions into the ids that Cityscapes' evaluation server expects.

    Args:
      train_ids: integers `[..., H, W]`, 0..18, or 255 where nothing is predicted.

    Returns:
      uint8 of the same shape: published ids, 0 (unlabeled) where nothing is predicted. It can be
      submitted as a PNG named `ID_*.png`, such as `berlin_000000_000019_pred.png`.

    Raises:
      ValueError: there are other values.

    Example:
      >>> to_label_ids(np.array([[0, 13, 255]]))
      array([[ 7, 26,  0]], dtype=uint8)
    """
    return LabelMap(INFO.label_map).to_raw(train_ids, ignored=0)
