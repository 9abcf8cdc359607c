"""`folder`: the user's own images and masks, described by a small file, `dataset.toml`.

The name of such a data set is `folder:PATH`, where PATH is the folder with the file, the file, or
the folder in which the set was prepared.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from flaxseg.classes import IGNORE_LABEL, voc_colors
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.decode import decode_color_label, decode_label
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import Problem
from flaxseg.data.sets.folder_draft import draft
from flaxseg.data.sets.folder_file import (
    FILE_NAME,
    SPLIT_NAMES,
    Color,
    FolderFile,
    is_split_name,
    read_folder_file,
)
from flaxseg.errors import DataError
from flaxseg.folder_walk import files_below
from flaxseg.image_files import ImageFinder, UndecodableError, is_image_name, is_unread_image_name

_USUAL_ORDER = ("train", "val", "valid", "validation", "test")
_MAX_NAMED_COLORS, _MAX_KEPT_COLORS = 12, 1000
_UNKNOWN = 256  # beyond all train ids
_CHUNK = 1 << 20  # pixels looked up at a time, which bounds the memory it takes


def read_folder(path: pathlib.Path, reserved: Iterable[str]) -> tuple[FolderFile, DatasetInfo]:
    """Reads the `dataset.toml` of a folder.

    Args:
      path: the folder, or the file itself under any name.
      reserved: the names of other data sets.

    Raises:
      DataError: it is missing (the message contains a draft), or what it says is impossible.
    """
    file = path if path.is_file() else path / FILE_NAME
    if not path.exists():
        raise DataError(
            f"there is no folder {path} (looked from {pathlib.Path.cwd()}); give the one that "
            f"holds {FILE_NAME}, images/ and masks/"
        )
    if not file.is_file():
        raise DataError(
            f"{path} has no {FILE_NAME}, which names the classes. Add one; this is a draft, made "
            f"from the files there:\n\n{draft(path)}"
        )
    folder = read_folder_file(file, reserved)
    splits = _split_names(folder)
    return folder, _info(folder, splits)


def find_pairs(
    folder: FolderFile, info: DatasetInfo
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    """Finds the images and masks of each split.

    Returns:
      The pairs of each split, sorted by name or in the order of its list, and what is wrong: images
      without a mask, masks without an image, and lines of lists that are of no use.
    """
    problems: list[Problem] = []
    decode = decode_label if folder.mask_colors is None else _ColorLabel(folder.mask_colors)
    if folder.splits:
        found = {
            split: list(_listed(folder, split, file, problems))
            for split, file in folder.splits.items()
        }
    elif info.splits == ("train",) or folder.val_share:
        found = _held_out(folder, list(_matched(folder, "", problems)))
    else:
        found = {split: list(_matched(folder, split, problems)) for split in info.splits}
    pairs = {
        split: [Pair(f"{split}/{name}", image, mask, decode) for name, image, mask in found[split]]
        for split in info.splits
    }
    for split, of_split in pairs.items():
        if not of_split and not any(problem.split == split for problem in problems):
            problems.append(Problem("files", f"{folder.path}: split {split!r} is empty", split))
    return pairs, problems


def listing_digest(folder: FolderFile, info: DatasetInfo) -> str:
    """Returns a digest of `dataset.toml` and of the names, sizes and times of all files; it changes
    whenever the set should be prepared again.
    """
    pairs, problems = find_pairs(folder, info)
    root = str(folder.path.parent)
    digest = hashlib.sha256(folder.path.read_bytes())
    for problem in problems:
        digest.update(f"{problem}\n".replace(root, "").encode())
    for of_split in pairs.values():
        for pair in of_split:
            digest.update(f"{pair.id}\n".encode())
            for path in (pair.image, pair.label):
                try:
                    status = path.stat()
                    found = f"{status.st_size} bytes of {status.st_mtime_ns}"
                except OSError:
                    found = "missing"
                digest.update(f"{str(path).replace(root, '')} {found}\n".encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _ColorLabel:
    """Decodes the bytes of a mask of colours to train ids, uint8 `[H, W]`, 255 where ignored."""

    colors: Mapping[Color, int]

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """Returns the train id of each colour as a number, or `_UNKNOWN`; uint16 [2**24]."""
        table = np.full(1 << 24, _UNKNOWN, np.uint16)
        for color, number in self.colors.items():
            table[_packed(np.array(color, np.uint8))] = number
        return table

    def __call__(self, encoded: bytes) -> np.ndarray:
        pixels = decode_color_label(encoded)
        ids = np.empty(pixels.shape[:2], np.uint8)
        unknown = []
        rows = max(1, _CHUNK // pixels.shape[1])
        for start in range(0, len(pixels), rows):
            packed = _packed(pixels[start : start + rows])
            found = self._ids[packed]
            if (found == _UNKNOWN).any():
                unknown.append(packed[found == _UNKNOWN])
            ids[start : start + rows] = found
        if unknown:
            raise _unknown_colors(np.concatenate(unknown), len(self.colors))
        return ids


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Returns colours `[..., 3]` as numbers 0xrrggbb, uint32 `[...]`."""
    red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def _unknown_colors(packed: np.ndarray, num_known: int) -> UndecodableError:
    """Returns the error for colours, as numbers `[N]`, that are not in the map."""
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    colors = {f"#{values[i]:06x}": int(counts[i]) for i in order[:_MAX_KEPT_COLORS]}
    named = ", ".join(f"{c} ({n} pixels)" for c, n in list(colors.items())[:_MAX_NAMED_COLORS])
    more = len(values) - _MAX_NAMED_COLORS
    if more > 0:
        named += f" and {more} more (perhaps smoothed edges: draw masks without anti-aliasing)"
    return UndecodableError(
        f"label colours outside the map: {named}; {num_known} colours are known",
        "unknown_colors",
        {"colors": colors, "pixels": len(packed)},
    )


def _info(folder: FolderFile, splits: tuple[str, ...]) -> DatasetInfo:
    eval_split = folder.eval_split
    if eval_split and eval_split not in splits:
        raise DataError(
            f"{folder.path}: eval_split is {eval_split!r}; the splits are {', '.join(splits)}"
        )
    if not eval_split:
        eval_split = next((s for s in _USUAL_ORDER[1:] if s in splits), splits[-1])
    num_classes = len(folder.class_names)
    as_is = {**{i: i for i in range(num_classes)}, IGNORE_LABEL: IGNORE_LABEL}
    return DatasetInfo(
        name=folder.name,
        version="1.0.0",
        description=folder.description,
        class_names=folder.class_names,
        class_colors=folder.class_colors or voc_colors(num_classes),
        label_map=folder.ids if folder.mask_colors is None else as_is,
        splits=splits,
        split_sizes={},
        eval_split=eval_split,
        license=folder.license,
        citation=folder.citation,
        homepage=folder.homepage,
    )


def _split_names(folder: FolderFile) -> tuple[str, ...]:
    """Returns the names of the splits, the one to train on first: those of `[splits]`, else the
    folders among the images, else train and what is held out of it.
    """
    if folder.splits:
        return _in_usual_order(folder.splits)
    missing = [str(path) for path in (folder.images, folder.masks) if not path.is_dir()]
    if missing:
        raise DataError(
            f"{folder.path}: there is no folder {' and no folder '.join(missing)}; set images = "
            '"..." and masks = "...", or name lists under [splits]'
        )
    if folder.val_share:
        return ("train", "val")
    names = [
        path.name
        for path in folder.images.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    ]
    if not names or not any((folder.masks / name).is_dir() for name in names):
        return ("train",)
    loose = [path.name for path in folder.images.iterdir() if is_image_name(path)]
    if loose:
        raise DataError(
            f"{folder.images} holds images, such as {min(loose)}, beside the folders "
            f"{', '.join(sorted(names))}; move them into the folder of a split, or set "
            "val_share to treat all of them as one set"
        )
    bad = sorted(name for name in names if not is_split_name(name))
    if bad:
        raise DataError(
            f"{folder.images}: the folder {bad[0]!r} cannot name a split; {SPLIT_NAMES}; or set "
            "val_share to treat all images as one set"
        )
    return _in_usual_order(names)


def _in_usual_order(names: Iterable[str]) -> tuple[str, ...]:
    known = [name for name in _USUAL_ORDER if name in names]
    return (*known, *(name for name in names if name not in known))


def _held_out(folder: FolderFile, found: list) -> dict[str, list]:
    """Puts a share of the images, chosen by a digest of their names, into "val"."""
    if not folder.val_share:
        return {"train": found}
    by_digest = sorted(found, key=lambda item: hashlib.sha256(item[0].encode()).digest())
    number = round(folder.val_share * len(found)) or min(1, len(found) - 1)
    held_out = {item[0] for item in by_digest[:number]}
    return {
        "train": [item for item in found if item[0] not in held_out],
        "val": [item for item in found if item[0] in held_out],
    }


def _matched(
    folder: FolderFile, split: str, problems: list[Problem]
) -> Iterator[tuple[str, pathlib.Path, pathlib.Path]]:
    """Yields (name, image, mask) for the files of one name in the two folders of a split."""
    roots = (folder.images / split, folder.masks / split)
    images = _by_name(roots[0], folder.image_suffix, "image", split, problems)
    masks = _by_name(roots[1], folder.mask_suffix, "mask", split, problems)
    if images and masks and not images.keys() & masks.keys():
        problems.append(_no_partners(folder, split, images, masks))
        return
    for name in sorted(images.keys() | masks.keys()):
        if name not in masks:
            wanted = roots[1] / f"{name}{folder.mask_suffix}.png"
            message = f"{images[name]}: the image has no mask (looked for {wanted})"
            problems.append(
                Problem("missing_file", message, split, files=(str(images[name]), str(wanted)))
            )
        elif name not in images:
            message = f"{masks[name]}: the mask has no image"
            problems.append(Problem("orphan", message, split, files=(str(masks[name]),)))
        else:
            yield name, images[name], masks[name]


def _by_name(
    root: pathlib.Path, suffix: str, what: str, split: str, problems: list[Problem]
) -> dict[str, pathlib.Path]:
    """Returns the image files below a folder by their path in it, without suffix and extension."""
    found: dict[str, pathlib.Path] = {}
    for path in files_below(root):
        if is_unread_image_name(path):
            message = f"{path}: {path.suffix} files are not read; convert it to PNG or JPEG"
            problems.append(Problem("undecodable", message, split, files=(str(path),)))
        if not is_image_name(path):  # anything else is ignored
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if not name.endswith(suffix):
            message = f"{path}: the name of the {what} does not end in {suffix!r}"
            problems.append(Problem("orphan", message, split, files=(str(path),)))
            continue
        name = name[: len(name) - len(suffix)]
        if name in found:
            message = f"{path}: there is another {what} of this name: {found[name]}"
            files = (str(path), str(found[name]))
            problems.append(Problem("duplicate_id", message, split, files=files))
            continue
        found[name] = path
    return found


def _no_partners(
    folder: FolderFile, split: str, images: Mapping[str, pathlib.Path], masks: Mapping
) -> Problem:
    """Returns one problem for a split in which no image has a mask, instead of thousands."""
    image, mask = min(images), min(masks)
    advice = "the names of an image and its mask must be equal up to the extension"
    for other in sorted(masks):
        if other.startswith(image):
            advice = f'set mask_suffix = "{other[len(image) :]}"'
            break
        if image.startswith(other):
            advice = f'set image_suffix = "{image[len(other) :]}"'
            break
    message = (
        f"{folder.path}: {split or 'train'}: none of {len(images)} images has a mask, and none "
        f"of {len(masks)} masks an image, such as {images[image]} and {masks[mask]}; {advice}"
    )
    return Problem("files", message, split or "train", files=(str(images[image]),))


def _listed(
    folder: FolderFile, split: str, file: pathlib.Path, problems: list[Problem]
) -> Iterator[tuple[str, pathlib.Path, pathlib.Path]]:
    """Yields (name, image, mask) for each line of a list file."""

    def wrong(message: str) -> None:
        problems.append(Problem("files", f"{file}{message}", split, files=(str(file),)))

    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        wrong(f": the list of split {split!r} cannot be read: {error}")
        return
    names: set[str] = set()
    finder = ImageFinder()
    for number, line in enumerate(lines, start=1):
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if not words:
            continue
        if len(words) > 2:
            wrong(f", line {number}: wanted 'IMAGE MASK' or 'NAME', got {line!r}; where names "
                  "hold spaces, put a tab between image and mask")  # fmt: skip
            continue
        if len(words) == 2:
            image, mask = (folder.path.parent / word for word in words)
        else:
            image = _with_extension(folder.images, words[0], folder.image_suffix, finder)
            mask = _with_extension(folder.masks, words[0], folder.mask_suffix, finder)
        name = _without_extension(words[0])
        if name in names:
            wrong(f", line {number}: {words[0]!r} is in the list twice")
            continue
        names.add(name)
        yield name, image, mask


def _with_extension(
    root: pathlib.Path, word: str, suffix: str, finder: ImageFinder
) -> pathlib.Path:
    """Returns the file that a name in a list means, with or without an extension."""
    named = root / word
    if named.is_file():
        return named
    stem = root / f"{_without_extension(word)}{suffix}"
    return finder.find(stem) or stem.with_name(f"{stem.name}.png")


def _without_extension(word: str) -> str:
    path = pathlib.PurePosixPath(word)
    return path.with_suffix("").as_posix() if is_image_name(path) else path.as_posix()
