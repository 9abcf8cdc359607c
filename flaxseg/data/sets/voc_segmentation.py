"""`voc_segmentation`: PASCAL VOC 2012 with the additional labels of SBD.

The folder holds `VOCtrainval_11-May-2012.tar`, or what it unpacks to, `VOCdevkit/VOC2012/`. The
splits `train_aug` and `sbd` also need SBD's `benchmark.tgz`, or its `benchmark_RELEASE/`, or a
folder `SegmentationClassAug` in `VOC2012/` with SBD's labels as PNGs, as several projects
distribute it.

The stored splits are `train` and `val`, the official lists, with VOC's labels; `sbd`, all images
that only SBD labels; and `seg11valid`, a part of `val`. `train_aug` is `train` and `sbd` together:
an image that both label has VOC's label, which marks the borders of objects as void, unlike SBD's.
"""

import pathlib

import numpy as np

from flaxseg.classes import IGNORE_LABEL, VOC_CLASSES, voc_colors
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.file_tree import FileTree, nothing_found, open_tree, read_ids
from flaxseg.data.raw.mat_file import read_mat_array
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.sets.voc_seg11valid import SEG11VALID
from flaxseg.image_files import UndecodableError

VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC_URL = f"https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_ARCHIVE}"
VOC_DIGEST = "md5:6cd6e144f989b92b3379bac3b3de84fd"
SBD_ARCHIVE = "benchmark.tgz"
SBD_URL = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    + SBD_ARCHIVE
)
SBD_DIGEST = "md5:82b4d87ceb2ed10f6038a1cba92111cb"

_NEEDS_SBD = f"SBD's {SBD_ARCHIVE} ({SBD_URL})"

INFO = DatasetInfo(
    name="voc_segmentation",
    version="1.0.0",
    description="PASCAL VOC 2012 segmentation, 20 kinds of objects and background, with the "
    "additional labels of SBD.",
    class_names=VOC_CLASSES,
    class_colors=voc_colors(21),
    label_map={**{i: i for i in range(21)}, 255: IGNORE_LABEL},
    splits=("train", "val", "trainval", "train_aug", "sbd", "seg11valid"),
    split_sizes={
        "train": 1464,
        "val": 1449,
        "trainval": 2913,
        "train_aug": 10582,
        "sbd": 9118,
        "seg11valid": 736,
    },
    eval_split="val",
    license="Photographs from Flickr, under Flickr's terms of use and those of their owners; for "
    "research. The annotations of VOC and SBD come without a licence text.",
    citation="M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn, A. Zisserman. The PASCAL "
    "Visual Object Classes Challenge 2012 (VOC2012) Results. Additional labels: B. Hariharan, P. "
    "Arbelaez, L. Bourdev, S. Maji, J. Malik. Semantic Contours from Inverse Detectors. "
    "ICCV, 2011.",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    combined={"trainval": ("train", "val"), "train_aug": ("train", "sbd")},
    repeated={"seg11valid": "val"},
    optional={"sbd": _NEEDS_SBD, "train_aug": _NEEDS_SBD},
)


def find_pairs(
    folder: pathlib.Path, progress: bool = False
) -> tuple[dict[str, list[Pair]], list[str]]:
    """Reads the lists of VOC and SBD; see `Published.find_pairs`."""
    voc = open_tree(
        folder,
        roots=("", "VOC2012", "VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012"),
        marker="ImageSets/Segmentation/val.txt",
        archive=VOC_ARCHIVE,
        prefix="VOCdevkit/VOC2012/",
        parts=(
            "JPEGImages/",
            "SegmentationClass/",
            "SegmentationClassAug/",
            "ImageSets/Segmentation/",
        ),
        progress=progress,
    )
    if voc is None:
        unpacked = "VOCdevkit/VOC2012/ with ImageSets/Segmentation/val.txt in it"
        raise nothing_found(INFO.name, folder, [f"{VOC_ARCHIVE} ({VOC_URL}), or {unpacked}"])
    problems: list[str] = []
    pairs = {}
    for split in ("train", "val"):
        ids = read_ids(voc, f"ImageSets/Segmentation/{split}.txt", problems)
        pairs[split] = [_pair(voc, i, voc, f"SegmentationClass/{i}.png") for i in ids]
    official = {pair.id for of_split in pairs.values() for pair in of_split}
    sbd = _find_sbd(folder, voc, official, progress, problems)
    if sbd:
        pairs["sbd"] = sbd
    seg11valid = [pair for pair in pairs["val"] if pair.id in SEG11VALID]
    if seg11valid:
        pairs["seg11valid"] = seg11valid
    return pairs, problems


def _find_sbd(
    folder: pathlib.Path,
    voc: FileTree,
    official: set[str],
    progress: bool,
    problems: list[str],
) -> list[Pair]:
    """Returns the pairs of images that SBD labels and VOC does not."""
    sbd = open_tree(
        folder,
        roots=(
            "benchmark_RELEASE/dataset",
            "SBD/benchmark_RELEASE/dataset",
            "sbd/benchmark_RELEASE/dataset",
            "dataset",
        ),
        marker="cls",
        archive=SBD_ARCHIVE,
        prefix="benchmark_RELEASE/dataset/",
        parts=("cls/", "train.txt", "val.txt"),
        progress=progress,
    )
    if sbd is None:
        names = voc.names("SegmentationClassAug", ".png")
        ids = {pathlib.PurePosixPath(name).stem for name in names} - official
        return [_pair(voc, i, voc, f"SegmentationClassAug/{i}.png") for i in sorted(ids)]
    listed: set[str] = set()
    for name in ("train.txt", "val.txt"):
        listed |= set(read_ids(sbd, name, problems))
    return [
        _pair(voc, i, sbd, f"cls/{i}.mat", decode=decode_sbd) for i in sorted(listed - official)
    ]


def _pair(voc: FileTree, name: str, labels: FileTree, label: str, **options) -> Pair:
    image = voc.file(f"JPEGImages/{name}.jpg")
    return Pair(name, image, labels.file(label), as_stored=True, **options)


def decode_sbd(encoded: bytes) -> np.ndarray:
    """Decodes a label of SBD: the field `Segmentation` of the structure `GTcls`.

    Args:
      encoded: the bytes of a file in `cls/`.

    Returns:
      uint8 `[H, W]`, VOC's class ids, without 255.

    Raises:
      UndecodableError: it is not such a file, or holds ids that do not fit into 8 bits.
    """
    ids = read_mat_array(encoded, "GTcls", "Segmentation")
    if ids.max() > 255:
        raise UndecodableError(f"the label holds id {ids.max()}, more than 255")
    return ids.astype(np.uint8)
