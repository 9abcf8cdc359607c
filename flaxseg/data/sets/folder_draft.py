"""Drafts a `dataset.toml` for a folder that has none, from what its masks hold."""

import collections
import itertools
import pathlib

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.decode import decode_color_label, decode_label
from flaxseg.data.raw.label_map import count_ids
from flaxseg.data.sets.folder_pairs import image_files, likely_endings, without_suffix
from flaxseg.image_files import UndecodableError, read_file

_MAX_MASKS = 100  # that are read
_MAX_FILES = 5000  # whose names are looked at
_MAX_VALUES = 60  # more cannot be classes
_MASK_FOLDERS = ("masks", "labels", "annotations", "mask", "label", "annots", "gt", "trainannot")
_IMAGE_FOLDERS = ("images", "pictures", "imgs", "image", "img", "train")


def draft(root: pathlib.Path) -> str:
    """Returns a `dataset.toml` with the folders and the ids or colours found below `root`."""
    images, masks, endings = _layout(root)
    head = [f'images = "{images}"', f'masks = "{masks}"']
    if not (root / masks).is_dir():
        head[1] += "  # this folder does not exist yet"
    keys = zip(("image_suffix", "mask_suffix"), endings, strict=True)
    head += [f'{key} = "{ending}"' for key, ending in keys if ending]
    ids, colors = _values(_some_masks(root / masks, endings[1]))
    use_colors = sum(colors.values()) > sum(ids.values())
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


def _layout(root: pathlib.Path) -> tuple[str, str, tuple[str, str]]:
    """Returns the folders of images and masks, and the endings in which their names differ."""
    masks = _first_folder(root, _MASK_FOLDERS)
    if masks is None:
        for folder in (_first_folder(root, _IMAGE_FOLDERS[:-1]), "."):
            names = [] if folder is None else _names(root / folder)
            endings = likely_endings(names, names, in_one_folder=True)
            if folder is not None and endings is not None:
                return folder, folder, endings
    images, masks = _first_folder(root, _IMAGE_FOLDERS) or "images", masks or "masks"
    endings = likely_endings(_names(root / images), _names(root / masks))
    return images, masks, endings or ("", "")


def _first_folder(root: pathlib.Path, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if (root / name).is_dir()), None)


def _names(root: pathlib.Path) -> list[str]:
    """Returns the names of some images or masks, without suffix."""
    some = itertools.islice(image_files(root), _MAX_FILES)
    return [without_suffix(path.relative_to(root).as_posix()) for path in some]


def _has_splits(images: pathlib.Path, masks: pathlib.Path) -> bool:
    return images.is_dir() and any(
        path.is_dir() and (masks / path.name).is_dir() and any(image_files(path))
        for path in images.iterdir()
    )


def _some_masks(root: pathlib.Path, ending: str) -> list[pathlib.Path]:
    found = (path for path in image_files(root) if path.stem.endswith(ending))
    pngs = (path for path in found if path.suffix.lower() == ".png")
    return list(itertools.islice(pngs, _MAX_MASKS))
