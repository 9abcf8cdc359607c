"""`pascal_context`: PASCAL VOC 2010 with every pixel labelled, 59 classes; and `pascal_context_60`,
where the rest is the class "background".

The folder holds VOC 2010, as `VOCtrainval_03-May-2010.tar` or unpacked as `VOCdevkit/VOC2010/`, and
the labels in one of two forms:

    trainval.tar.gz or trainval/   ID.mat, a variable `LabelMap` with ids 1 to 459; as published
    VOCdevkit/VOC2010/SegmentationClassContext/   ID.png with ids 0 to 59, and lists in
        ImageSets/SegmentationContext/; as MMSegmentation's converter writes them

The splits are those of VOC 2010, `ImageSets/Main/{train,val}.txt`, or the lists of the second form.
"""

import dataclasses
import pathlib

import numpy as np

from flaxseg.classes import IGNORE_LABEL, voc_colors
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.file_tree import (
    FileTree,
    nothing_found,
    open_tree,
    read_ids,
    read_lines,
)
from flaxseg.data.raw.label_map import count_ids
from flaxseg.data.raw.mat_file import read_mat_array
from flaxseg.data.raw.pairs import Pair
from flaxseg.image_files import UndecodableError

VOC_ARCHIVE = "VOCtrainval_03-May-2010.tar"
LABEL_ARCHIVE = "trainval.tar.gz"
NUM_PUBLISHED_CLASSES = 459

HOW_TO_GET = (
    f"The labels have no lasting address: get {LABEL_ARCHIVE} from the PASCAL-Context site "
    "(https://cs.stanford.edu/~roozbeh/pascal-context/, now https://roozbehm.info/pascal-context/) "
    f"and {VOC_ARCHIVE} (https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/{VOC_ARCHIVE}) and give "
    "their folder"
)

# The 59 most frequent classes: their ids among the 459 published ones, and their names.
_NAMED = """
2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat, 33 book,
34 bottle, 44 building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair, 80 cloth,
85 computer, 98 cow, 104 cup, 105 curtain, 113 dog, 115 door, 144 fence, 158 floor, 159 flower,
162 food, 187 grass, 189 ground, 207 horse, 220 keyboard, 232 light, 258 motorbike, 259 mountain,
260 mouse, 284 person, 295 plate, 296 platform, 308 pottedplant, 324 road, 326 rock, 347 sheep,
349 shelves, 354 sidewalk, 355 sign, 360 sky, 366 snow, 368 sofa, 397 table, 415 track,
416 train, 420 tree, 424 truck, 427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood
"""
_CLASSES = tuple((int(raw), name) for raw, name in (entry.split() for entry in _NAMED.split(",")))

# From published ids to ours.
_TABLE = np.zeros(NUM_PUBLISHED_CLASSES + 1, np.uint8)
_TABLE[[raw for raw, _ in _CLASSES]] = range(1, len(_CLASSES) + 1)

_PNG, _MAT = "SegmentationClassContext/{}.png", "trainval/{}.mat"

INFO = DatasetInfo(
    name="pascal_context",
    version="1.0.0",
    description="PASCAL VOC 2010 with every pixel labelled, the 59 most frequent classes.",
    class_names=tuple(name for _, name in _CLASSES),
    class_colors=voc_colors(60)[1:],
    label_map={0: IGNORE_LABEL, **{i: i - 1 for i in range(1, 60)}},
    splits=("train", "val"),
    split_sizes={"train": 4998, "val": 5105},
    eval_split="val",
    license="Photographs from Flickr, under Flickr's terms of use and those of their owners; for "
    "research. The annotations come without a licence text.",
    citation="R. Mottaghi, X. Chen, X. Liu, N.-G. Cho, S.-W. Lee, S. Fidler, R. Urtasun, A. "
    "Yuille. The Role of Context for Object Detection and Semantic Segmentation in the Wild. "
    "CVPR, 2014.",
    homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
)

INFO_60 = dataclasses.replace(
    INFO,
    name="pascal_context_60",
    description="PASCAL VOC 2010 with every pixel labelled, the 59 most frequent classes and "
    "background.",
    class_names=("background", *INFO.class_names),
    class_colors=voc_colors(60),
    label_map={i: i for i in range(60)},
)


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Reads the lists of VOC 2010 and finds the labels in either form; see `Published.find_pairs`.

    In either form, labels have ids 0 (none of the classes) to 59.
    """
    voc = open_tree(
        folder,
        roots=("", "VOC2010", "VOCdevkit/VOC2010"),
        marker="JPEGImages",
        archive=VOC_ARCHIVE,
        prefix="VOCdevkit/VOC2010/",
        parts=(
            "JPEGImages/",
            "SegmentationClassContext/",
            "ImageSets/Main/train.txt",
            "ImageSets/Main/val.txt",
            "ImageSets/SegmentationContext/",
        ),
        progress=progress,
    )
    if voc is None:
        raise nothing_found(INFO.name, folder, [f"VOC 2010. {HOW_TO_GET}"])
    problems: list[str] = []
    if voc.names("SegmentationClassContext", ".png"):
        lists, labels, pattern, options = "SegmentationContext", voc, _PNG, {}
    else:
        lists, pattern, options = "Main", _MAT, {"decode": decode_published}
        labels = open_tree(
            folder,
            roots=("", "pascal-context"),
            marker="trainval",
            archive=LABEL_ARCHIVE,
            prefix="",
            parts=("trainval/", "labels.txt"),
            progress=progress,
        )
        if labels is None:
            raise nothing_found(INFO.name, folder, [f"labels. {HOW_TO_GET}"])
        problems += _check_names(labels)
    pairs = {}
    for split in INFO.splits:
        ids = read_ids(voc, f"ImageSets/{lists}/{split}.txt", problems)
        pairs[split] = [
            Pair(
                i,
                voc.file(f"JPEGImages/{i}.jpg"),
                labels.file(pattern.format(i)),
                as_stored=True,
                **options,
            )
            for i in ids
        ]
    return pairs, problems


def _check_names(labels: FileTree) -> list[str]:
    """Compares our class names with the published list, lines such as `2: aeroplane`, if it is
    there.
    """
    file = labels.file("labels.txt")
    try:
        lines = read_lines(file)
    except FileNotFoundError:
        return []
    except (OSError, UndecodableError) as error:
        return [f"{file}: the list cannot be read: {error}"]
    named = dict(tuple(map(str.strip, line.partition(":")[::2])) for line in lines)
    others = [
        f"id {raw} is {named.get(str(raw))!r}, wanted {name!r}"
        for raw, name in _CLASSES
        if named.get(str(raw), "").replace(" ", "") != name
    ]
    return [f"{file}: {len(others)} names are not as expected: {others[0]}"] if others else []


def decode_published(encoded: bytes) -> np.ndarray:
    """Decodes a published label and keeps 59 of its 459 classes.

    Args:
      encoded: the bytes of a MAT-file with the variable `LabelMap`.

    Returns:
      uint8 `[H, W]`: 1..59 in the order of the class names, 0 for the others.

    Raises:
      UndecodableError: it is not such a file, or holds ids above 459, listed with pixel counts.
    """
    ids = read_mat_array(encoded, "LabelMap")
    unknown = {i: n for i, n in count_ids(ids).items() if i > NUM_PUBLISHED_CLASSES}
    if unknown:
        found = ", ".join(f"{i} ({n} pixels)" for i, n in unknown.items())
        raise UndecodableError(
            f"label ids outside the map: {found}; known ids are 0..{NUM_PUBLISHED_CLASSES}"
        )
    return _TABLE[ids]
