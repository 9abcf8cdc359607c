"""Drafts a `dataset.toml` for a folder that has none, from what its masks hold."""

import collections
import itertools
import pathlib

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.decode import decode_color_label, decode_label
from flaxseg.data.raw.label_map import count_ids
from flaxseg.folder_walk import files_below
from flaxseg.image_files import UndecodableError, is_image_name, read_file

_MAX_MASKS = 100  # that are read
_MAX_VALUES = 60  # more cannot be classes
_MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label", "annots", "gt", "trainannot")
_IMAGE_FOLDERS = ("images", "pictures", "imgs", "image", "img", "train")


def draft(root: pathlib.Path) -> str:
    """Returns a `dataset.toml` with the folders and the ids or colours found below `root`."""
    images, masks = _first_folder(root, _IMAGE_FOLDERS), _first_folder(root, _MASK_FOLDERS)
    ids, colors = _values(_some_masks(root / masks))
    use_colors = sum(colors.values()) > sum(ids.values())
    head = [f'images = "{images}"', f'masks = "{masks}"']
    if not _has_splits(root / images, root / masks):
        head.append("val_share = 0.1  # the share of images that is held out for evaluation")
    head.append(f'mask_values = "{"colors" if use_colors else "ids"}"')
    found = {
        value: number for value, number in (colors if use_colors else ids).items()
        if use_colors or value != IGNORE_LABEL or len(ids) <= 2
    }  # fmt: skip
    if not 2 <= len(found) <= _MAX_VALUES:
        head.append("# These classes are an example: the masks do not show which there are.")
        tables = [_table("background", "ids = [0]"), _table("thing", "ids = [1]")]
    else:
        key = "color = {}" if use_colors else "ids = [{}]"
        most = max(found.values())
        tables = [
            _table(
                f"class {number}",
                f"{key.format(list(value) if use_colors else value)}  # in {count} of {most} masks",
            )
            for number, (value, count) in enumerate(sorted(found.items()))
        ]
    return "\n\n".join(["\n".join(head), *tables])


def _values(
    files: list[pathlib.Path],
) -> tuple[collections.Counter[int], collections.Counter[tuple[int, ...]]]:
    """Returns the ids and the colours in masks, each with the number of masks that hold it."""
    ids: collections.Counter[int] = collections.Counter()
    colors: collections.Counter[tuple[int, ...]] = collections.Counter()
    for file in files:
        try:
            encoded = read_file(file)
            try:
                ids.update(count_ids(decode_label(encoded)).keys())
            except UndecodableError as error:
                if error.kind != "color_label":
                    raise
                found = np.unique(decode_color_label(encoded).reshape(-1, 3), axis=0)
                colors.update(tuple(map(int, color)) for color in found[: _MAX_VALUES + 1])
        except (OSError, UndecodableError):
            continue  # verify-data reports broken masks, once there are classes
    return ids, colors


def _table(name: str, line: str) -> str:
    return f'[[classes]]\nname = "{name}"\n{line}'


def _first_folder(root: pathlib.Path, names: tuple[str, ...]) -> str:
    return next((name for name in names if (root / name).is_dir()), names[0])


def _has_splits(images: pathlib.Path, masks: pathlib.Path) -> bool:
    return images.is_dir() and any(
        path.is_dir() and (masks / path.name).is_dir() for path in images.iterdir()
    )


def _some_masks(root: pathlib.Path) -> list[pathlib.Path]:
    masks = (path for path in files_below(root) if is_image_name(path))
    return list(itertools.islice(masks, _MAX_MASKS))
