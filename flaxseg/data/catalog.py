"""All data sets by name."""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable

from flaxseg.data.builders import camvid, shapes
from flaxseg.data.builders.segmentation import SegmentationBuilder
from flaxseg.data.info import DatasetInfo
from flaxseg.data.pairs import Pair
from flaxseg.errors import DataError


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where the files of a data set are published.

    Attributes:
      url: of a zip.
      folder: the folder to take out of it.
      git_tree: git's id of that folder, to check what was unpacked.
    """

    url: str
    folder: str
    git_tree: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A data set and how it is made.

    Attributes:
      info: its facts.
      builder: its TFDS builder.
      examples: for a generated set, per split what yields the examples; None for one that is made
        of files.
      find_pairs: for files, from their folder to (pairs per split, problems).
      archive: where files come from when no folder is given; None if they can not be downloaded.
    """

    info: DatasetInfo
    builder: type[SegmentationBuilder]
    examples: Callable | None = None
    find_pairs: Callable[[pathlib.Path], tuple[dict[str, list[Pair]], list[str]]] | None = None
    archive: Archive | None = None


_DATASETS = {
    "shapes": Entry(shapes.INFO, shapes.Shapes, examples=shapes.examples),
    "camvid": Entry(
        camvid.INFO,
        camvid.Camvid,
        find_pairs=camvid.find_pairs,
        archive=Archive(camvid.ARCHIVE_URL, camvid.ARCHIVE_FOLDER, camvid.GIT_TREE),
    ),
}

_VOC = (
    "PASCAL VOC 2012",
    "VOCtrainval_11-May-2012.tar from host.robots.ox.ac.uk/pascal/VOC/voc2012, and for train_aug "
    "the SBD annotations, benchmark.tgz",
)
# Well-known sets that people will ask for by these names, and where their files are.
_WITHOUT_BUILDER = {
    "voc": _VOC,
    "voc2012": _VOC,
    "pascal_voc": _VOC,
    "voc_segmentation": _VOC,
    "cityscapes": (
        "Cityscapes",
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from cityscapes-dataset.com, "
        "after registration",
    ),
    "ade20k": ("ADE20K", "ADEChallengeData2016.zip from groups.csail.mit.edu/vision/datasets"),
}


def list_datasets() -> list[str]:
    """Returns the names of all data sets, sorted."""
    return sorted(_DATASETS)


def dataset_info(name: str) -> DatasetInfo:
    """Returns the facts of a data set.

    Raises:
      DataError: no data set has this name.

    Example:
      >>> dataset_info("camvid").num_classes
      11
    """
    return find_entry(name).info


def find_entry(name: str) -> Entry:
    """Returns the entry of a data set; raises DataError where there is none, with what is near."""
    if name in _DATASETS:
        return _DATASETS[name]
    known = ", ".join(list_datasets())
    if name in _WITHOUT_BUILDER:
        title, files = _WITHOUT_BUILDER[name]
        raise DataError(
            f"data set {name!r} ({title}) is not prepared, and this version has no builder that "
            f"could prepare it. Data sets that it can prepare: {known}.\n"
            "  To train now, use the generated one, which needs no download: "
            "--config=configs/deeplab.py:data=shapes\n"
            f"  To use {title}: get {files}; write a builder beside "
            "flaxseg/data/builders/camvid.py, which reads files of the same kind; and add it to "
            "flaxseg/data/catalog.py."
        )
    near = difflib.get_close_matches(name, list_datasets(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(f"there is no data set {name!r}.{hint} Data sets: {known}.")
