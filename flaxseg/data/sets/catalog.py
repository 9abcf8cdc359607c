"""All data sets by name."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence

from flaxseg.data.raw.download import Download
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import Problem
from flaxseg.data.sets import (
    ade20k,
    camvid,
    cityscapes,
    folder,
    pascal_context,
    shapes,
    voc_segmentation,
)
from flaxseg.data.sets.info import DatasetInfo
from flaxseg.data.sets.segmentation import SegmentationBuilder
from flaxseg.errors import ConfigError, DataError, near

MANIFEST = "flaxseg.json"
"""The file in the folder of a prepared data set that says what it is."""

FOLDER = "folder"
"""The data set of one's own pictures; its full name says where they are, `folder:PATH`."""


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
      archive: the zip of a repository from which files come when no folder is given.
      downloads: or the archives from which they come.
      how_to_get: where neither is possible, what to do instead.
      source: of one's own pictures, the folder; None for all other sets.
      listing: of one's own pictures, returns a digest of which files there are.
    """

    info: DatasetInfo
    builder: Callable[..., SegmentationBuilder]
    examples: Callable | None = None
    find_pairs: (
        Callable[[pathlib.Path], tuple[dict[str, list[Pair]], Sequence[Problem | str]]] | None
    ) = None
    archive: Archive | None = None
    downloads: tuple[Download, ...] = ()
    how_to_get: str = ""
    source: pathlib.Path | None = None
    listing: Callable[[], str] | None = None


_DATASETS = {
    "shapes": Entry(shapes.INFO, shapes.Shapes, examples=shapes.examples),
    "camvid": Entry(
        camvid.INFO,
        camvid.Camvid,
        find_pairs=camvid.find_pairs,
        archive=Archive(camvid.ARCHIVE_URL, camvid.ARCHIVE_FOLDER, camvid.GIT_TREE),
    ),
    "voc_segmentation": Entry(
        voc_segmentation.INFO,
        voc_segmentation.VocSegmentation,
        find_pairs=voc_segmentation.find_pairs,
        downloads=(
            Download(voc_segmentation.VOC_URL, voc_segmentation.VOC_DIGEST),
            Download(voc_segmentation.SBD_URL, voc_segmentation.SBD_DIGEST),
        ),
    ),
    "cityscapes": Entry(
        cityscapes.INFO,
        cityscapes.Cityscapes,
        find_pairs=cityscapes.find_pairs,
        how_to_get=cityscapes.HOW_TO_GET,
    ),
    "ade20k": Entry(
        ade20k.INFO,
        ade20k.Ade20k,
        find_pairs=ade20k.find_pairs,
        downloads=(Download(ade20k.URL, ade20k.DIGEST),),
    ),
    "pascal_context": Entry(
        pascal_context.INFO,
        pascal_context.PascalContext,
        find_pairs=pascal_context.find_pairs,
        how_to_get=pascal_context.HOW_TO_GET,
    ),
    "pascal_context_60": Entry(
        pascal_context.INFO_60,
        pascal_context.PascalContext60,
        find_pairs=pascal_context.find_pairs,
        how_to_get=pascal_context.HOW_TO_GET,
    ),
}

# Names under which people look for them.
_OTHER_NAMES = {
    **dict.fromkeys(("voc", "voc2012", "voc12", "pascal_voc", "sbd"), "voc_segmentation"),
    **dict.fromkeys(("ade", "ade20k_150", "scene_parse150"), "ade20k"),
    **dict.fromkeys(("pcontext", "pascal_context_59"), "pascal_context"),
}


def list_datasets() -> list[str]:
    """Returns the names of all data sets, sorted; those of one's own, `folder:PATH`, beside."""
    return sorted(_DATASETS)


def full_name(name: str, manual_dir: str | os.PathLike[str] | None = None) -> str:
    """Returns the name by which `flaxseg.data` knows a data set that the user named.

    >>> full_name("folder", "pictures/holes")
    'folder:pictures/holes'
    >>> full_name("camvid", "downloads/CamVid")
    'camvid'

    Args:
      name: of a data set; `"folder"` for the pictures in `manual_dir`.
      manual_dir: the folder that the user named beside it; None or "" for none.

    Raises:
      ConfigError: "folder" without a folder, or with two.
    """
    kind, colon, path = name.partition(":")
    if kind != FOLDER:
        return name
    if not path and not manual_dir:
        raise ConfigError(
            "data set 'folder' is your own images, and this does not say where they are; give "
            "the folder that holds dataset.toml with --manual_dir=FOLDER (train.py: "
            "--config.data.manual_dir=FOLDER), or write folder:FOLDER"
        )
    if colon and manual_dir and pathlib.Path(path) != pathlib.Path(manual_dir):
        raise ConfigError(f"the data set is {name!r} and manual_dir {manual_dir}; give one of them")
    return f"{FOLDER}:{path or os.fspath(manual_dir)}"


def dataset_info(name: str) -> DatasetInfo:
    """Returns the facts of a data set.

    Raises:
      ConfigError: no data set has this name.
      DataError: the files of one's own data set do not say what they are.

    Example:
      >>> dataset_info("camvid").num_classes
      11
    """
    return find_entry(name).info


def find_entry(name: str) -> Entry:
    """Returns the entry of a data set; raises ConfigError if no data set has this name."""
    if name in _DATASETS:
        return _DATASETS[name]
    if name.partition(":")[0] == FOLDER:
        return _own_folder(pathlib.Path(full_name(name).partition(":")[2]).expanduser())
    known = [*list_datasets(), FOLDER]
    raise ConfigError(
        f"there is no data set {name!r}.{near(_OTHER_NAMES.get(name, name), known)} Data sets: "
        f"{', '.join(known)} (your own images, with manual_dir)."
    )


def _own_folder(path: pathlib.Path) -> Entry:
    """The entry of one's own pictures in a folder, or of what was prepared from them into it."""
    if (path / MANIFEST).is_file():
        info = _prepared_info(path)
        return Entry(info, functools.partial(folder.Folder, info=info))
    file, info = folder.read_folder(path, reserved=(*_DATASETS, FOLDER))
    return Entry(
        info,
        functools.partial(folder.Folder, info=info),
        find_pairs=lambda *_: folder.find_pairs(file, info),
        source=file.path.parent,
        listing=lambda: folder.listing_digest(file, info),
    )


def _prepared_info(path: pathlib.Path) -> DatasetInfo:
    try:
        facts = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["info"]
        return DatasetInfo.from_json(facts, prepared=path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path / MANIFEST} does not say what the classes are ({error}); give the folder that "
            "holds dataset.toml, or a data set by its name"
        ) from None
