"""Finds a data set by its name."""

import os
import pathlib

from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.download import Download
from flaxseg.data.sets import (
    ade20k,
    camvid,
    cityscapes,
    folder,
    pascal_context,
    shapes,
    voc_segmentation,
)
from flaxseg.data.sets.data_sources import Generated, OwnFolder, Prepared, Published, Source
from flaxseg.errors import ConfigError, DataError, near
from flaxseg.json_text import read_json
from flaxseg.paths import is_readable, readable

MANIFEST = "flaxseg.json"
"""The file in the folder of a prepared data set that says what it is."""

FOLDER = "folder"
"""The data set of the user's own images; its full name says where they are, `folder:PATH`."""

_SOURCES: dict[str, Generated | Published] = {
    source.info.name: source
    for source in (
        Generated(shapes.INFO, shapes.examples),
        Published(camvid.INFO, camvid.find_pairs, (Download(camvid.URL, camvid.DIGEST),)),
        Published(
            voc_segmentation.INFO,
            voc_segmentation.find_pairs,
            (
                Download(voc_segmentation.VOC_URL, voc_segmentation.VOC_DIGEST),
                Download(voc_segmentation.SBD_URL, voc_segmentation.SBD_DIGEST),
            ),
        ),
        Published(cityscapes.INFO, cityscapes.find_pairs, how_to_get=cityscapes.HOW_TO_GET),
        Published(ade20k.INFO, ade20k.find_pairs, (Download(ade20k.URL, ade20k.DIGEST),)),
        *(
            Published(info, pascal_context.find_pairs, how_to_get=pascal_context.HOW_TO_GET)
            for info in (pascal_context.INFO, pascal_context.INFO_60)
        ),
    )
}

# Names under which people look for data sets.
_OTHER_NAMES = {
    **dict.fromkeys(("voc", "voc2012", "voc12", "pascal_voc", "sbd"), "voc_segmentation"),
    **dict.fromkeys(("ade", "ade20k_150", "scene_parse150"), "ade20k"),
    **dict.fromkeys(("pcontext", "pascal_context_59"), "pascal_context"),
}


def list_datasets() -> list[str]:
    """Returns the names of all data sets, sorted, without the user's own, `folder:PATH`."""
    return sorted(_SOURCES)


def full_name(name: str, manual_dir: str | os.PathLike[str] | None = None) -> str:
    """Returns the name by which `flaxseg.data` knows a data set that the user named.

    >>> full_name("folder", "images/holes")
    'folder:images/holes'
    >>> full_name("camvid", "downloads/CamVid")
    'camvid'

    Args:
      name: of a data set; `"folder"` for the images in `manual_dir`.
      manual_dir: the folder that the user named beside it; None or "" for none.

    Raises:
      ConfigError: "folder" without a folder, or with two; or a path that is not UTF-8.
    """
    kind, colon, path = name.partition(":")
    for given in filter(None, (path, manual_dir)):
        if not is_readable(given):
            raise ConfigError(
                f"the path {readable(given)} is not UTF-8; rename the folder, or give a link to it"
            )
    if kind != FOLDER:
        return name
    if not path and not manual_dir:
        raise ConfigError(
            "data set 'folder' is your own images, and this does not say where they are; give "
            "the folder that holds dataset.toml with --manual_dir=FOLDER (train: "
            "--config.data.manual_dir=FOLDER), or write folder:FOLDER"
        )
    if colon and manual_dir and pathlib.Path(path) != pathlib.Path(manual_dir):
        raise ConfigError(f"the data set is {name!r} and manual_dir {manual_dir}; give one of them")
    return f"{FOLDER}:{path or os.fspath(manual_dir)}"


def dataset_info(name: str) -> DatasetInfo:
    """Returns the facts of a data set.

    Raises:
      ConfigError: no data set has this name.
      DataError: the files of the user's own data set do not say what they are.

    Example:
      >>> dataset_info("camvid").num_classes
      11
    """
    return find_source(name).info


def find_source(name: str) -> Source:
    """Returns where a data set comes from.

    Raises:
      ConfigError: no data set has this name.
      DataError: the files of the user's own data set do not say what they are.
    """
    if name in _SOURCES:
        return _SOURCES[name]
    if name.partition(":")[0] == FOLDER:
        return _own_folder(pathlib.Path(full_name(name).partition(":")[2]).expanduser())
    known = [*list_datasets(), FOLDER]
    raise ConfigError(
        f"there is no data set {name!r}.{near(_OTHER_NAMES.get(name, name), known)} Data sets: "
        f"{', '.join(known)} (your own images, with manual_dir)."
    )


def _own_folder(path: pathlib.Path) -> OwnFolder | Prepared:
    """Returns the user's own images in a folder, or what was prepared from them into it."""
    if (path / MANIFEST).is_file():
        return Prepared(_prepared_info(path))
    file, info = folder.read_folder(path, reserved=(*_SOURCES, FOLDER))
    return OwnFolder(info, file)


def _prepared_info(path: pathlib.Path) -> DatasetInfo:
    try:
        facts = read_json(path / MANIFEST)["info"]
        return DatasetInfo.from_json(facts, prepared=path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path / MANIFEST} does not say what the classes are ({error}); give the folder that "
            "holds dataset.toml, or a data set by its name"
        ) from None
