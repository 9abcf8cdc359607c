"""Finds the image and the mask of each example in a folder of the user's own.

A mask is found by its name alone: below the folder of masks, with the name of its image and
`mask_suffix` at its end. Where that leaves a doubt, as with two files of one name, the example is
left out and reported; no file is ever chosen among several.
"""

import collections
import itertools
import os
import pathlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from flaxseg.data.raw.file_tree import read_lines
from flaxseg.data.raw.problems import Problem
from flaxseg.data.sets.folder_file import FolderFile
from flaxseg.folder_walk import walk
from flaxseg.image_files import UndecodableError, is_image_name, is_unread_image_name
from flaxseg.paths import is_readable

_MAX_COMPARED = 1000  # names from which endings are guessed


class Found(NamedTuple):
    """Holds the files of an example, and its name within its split."""

    name: str
    image: pathlib.Path
    mask: pathlib.Path


def image_files(root: pathlib.Path, without: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields all files below a folder that are images by their suffix, but hidden ones.

    Args:
      root: the folder, which need not exist.
      without: a folder below it that is left out.

    Raises:
      DataError: a folder cannot be read.
    """
    left_out = {os.path.realpath(without)} - {os.path.realpath(root)} if without else set()
    for folder, folders, names in walk(root):
        if os.path.realpath(folder) in left_out:
            folders.clear()
            continue
        for name in names:
            if is_image_name(name) or is_unread_image_name(name):
                yield folder / name


def is_one_folder(folder: FolderFile, split: str = "") -> bool:
    """Returns whether the images and the masks of a split are in one folder."""
    return os.path.realpath(folder.images / split) == os.path.realpath(folder.masks / split)


def mask_files(folder: FolderFile, split: str) -> Iterator[pathlib.Path]:
    """Yields the files of a split's folder that are meant as masks, whatever they are paired by."""
    is_wanted = _is_mask_name if is_one_folder(folder, split) else lambda *_: True
    for path in image_files(folder.masks / split, without=folder.images / split):
        if is_wanted(folder, path):
            yield path


def matched(folder: FolderFile, split: str, problems: list[Problem]) -> Iterator[Found]:
    """Yields the examples of a split that is a folder, by name; "" stands for the whole folder."""
    images = _Names(folder.images / split, "image", folder.image_suffix, split)
    masks = _Names(folder.masks / split, "mask", folder.mask_suffix, split)
    mixed = is_one_folder(folder, split)
    for path in image_files(images.root, without=masks.root):
        if not (mixed and _is_mask_name(folder, path)):
            images.add(path)
    for path in mask_files(folder, split):
        masks.add(path)
    if (images.stems or masks.stems) and not images.names & masks.names:
        problems.append(_no_partners(folder, split, images, masks))
        problems += [p for p in (*images.problems, *masks.problems) if p.kind != "orphan"]
        return
    problems += [*images.problems, *masks.problems]
    for name in sorted(images.names | masks.names):
        image, mask = images.files.get(name), masks.files.get(name)
        if image is not None and mask is not None:
            yield Found(name, image, mask)
        elif image is not None and name not in masks.doubtful:
            message = f"{image}: the image has no mask (looked for {masks.wanted(name)})"
            files = (str(image), masks.wanted(name))
            problems.append(Problem("missing_file", message, split, files=files))
        elif mask is not None and name not in images.doubtful:
            message = f"{mask}: the mask has no image"
            problems.append(Problem("orphan", message, split, files=(str(mask),)))


def listed(
    folder: FolderFile, split: str, file: pathlib.Path, problems: list[Problem]
) -> Iterator[Found]:
    """Yields the examples of a split that is a list, in its order."""

    def wrong(message: str) -> None:
        problems.append(Problem("files", f"{file}{message}", split, files=(str(file),)))

    try:
        lines = read_lines(file)
    except (OSError, UndecodableError) as error:
        wrong(f": the list of split {split!r} cannot be read: {error}")
        return
    index, names = _Index(), set()
    for number, line in enumerate(lines, start=1):
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if not words:
            continue
        if len(words) > 2 or "\0" in line:
            wrong(f", line {number}: wanted 'IMAGE MASK' or 'NAME', got {line[:200]!r}; where "
                  "names hold spaces, put a tab between image and mask")  # fmt: skip
            continue
        name = without_suffix(words[0])
        if name in names:
            wrong(f", line {number}: {words[0]!r} is in the list twice")
            continue
        names.add(name)
        images, masks = (_given if len(words) == 2 else _named)(folder, words, index)
        doubt = _doubt(folder, images, masks)
        if doubt:
            wrong(f", line {number}: {doubt}")
        else:
            yield Found(name, images[0], masks[0])


def _given(
    folder: FolderFile, words: list[str], index: "_Index"
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns the image and the mask of a line that holds both, each as a list of one."""
    image, mask = (index.file(folder.path.parent / word) for word in words)
    return [image], [mask]


def _named(
    folder: FolderFile, words: list[str], index: "_Index"
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Returns the images and the masks that a line with a name, or an image's file, can mean."""
    (word,) = words
    name = without_suffix(word)
    if folder.image_suffix and not index.named(folder.images / f"{name}{folder.image_suffix}"):
        name = name.removesuffix(folder.image_suffix)  # the line holds the whole name of the file

    def found(root: pathlib.Path, ending: str) -> list[pathlib.Path]:
        files = index.named(root / f"{name}{ending}")
        exact = index.file(root / word)
        return [exact] if exact in files else files or [root / f"{name}{ending}.png"]

    return found(folder.images, folder.image_suffix), found(folder.masks, folder.mask_suffix)


def _doubt(folder: FolderFile, images: list[pathlib.Path], masks: list[pathlib.Path]) -> str:
    """Returns why the files of a line of a list cannot be taken for a pair, or ""."""
    for files in (images, masks):
        if len(files) > 1:
            return f"this can mean {' or '.join(map(str, files))}; give one of them in the list"
    if os.path.realpath(images[0]) == os.path.realpath(masks[0]):
        return (
            f"{images[0]} would be its own mask; keep masks in a folder of their own, or set "
            "mask_suffix"
        )
    if not without_suffix(masks[0].name).endswith(folder.mask_suffix):
        return (
            f"the name of the mask {masks[0]} does not end in {folder.mask_suffix!r}, as "
            "mask_suffix says; leave mask_suffix out if every line names its mask"
        )
    return ""


class _Index:
    """Finds files by their names, whatever the case of the suffix; lists each folder once."""

    def __init__(self):
        self._folders: dict[pathlib.Path, dict[str, list[pathlib.Path]]] = {}

    def named(self, path: pathlib.Path) -> list[pathlib.Path]:
        """Returns the images and masks that have this path up to the suffix."""
        folder = path.parent
        if folder not in self._folders:
            found = self._folders[folder] = collections.defaultdict(list)
            for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                if without_suffix(name) != name:
                    found[without_suffix(name)].append(folder / name)
        return self._folders[folder].get(path.name, [])

    def file(self, path: pathlib.Path) -> pathlib.Path:
        """Returns a file by its path, in which the case of the suffix may be another."""
        if os.path.isfile(path):
            return path
        others = self.named(path.with_name(without_suffix(path.name)))
        same = [other for other in others if other.suffix.lower() == path.suffix.lower()]
        return same[0] if len(same) == 1 else path


def without_suffix(name: str) -> str:
    """Returns the name of an image or mask without its suffix; others stay as they are."""
    path = pathlib.PurePosixPath(name)
    return (path.with_suffix("") if is_image_name(path) else path).as_posix()


class _Names:
    """Collects the images or the masks of a split by their names.

    Attributes:
      root: the folder.
      files: name, without ending and suffix -> file.
      doubtful: names that several files have.
      stems: names with their endings -> file.
      problems: what is wrong with files.
    """

    def __init__(self, root: pathlib.Path, what: str, ending: str, split: str):
        self.root = root
        self.files: dict[str, pathlib.Path] = {}
        self.doubtful: set[str] = set()
        self.stems: dict[str, pathlib.Path] = {}
        self.problems: list[Problem] = []
        self._what, self._ending, self._split = what, ending, split

    def add(self, path: pathlib.Path) -> None:
        """Takes a file, or reports why not."""
        if not is_readable(path.relative_to(self.root)):
            return self._wrong("file_name", path, "the name is not UTF-8; rename the file")
        if is_unread_image_name(path):
            text = f"{path.suffix} files are not read; convert it to PNG or JPEG"
            return self._wrong("undecodable", path, text)
        stem = path.relative_to(self.root).with_suffix("").as_posix()
        self.stems[stem] = path
        name = stem.removesuffix(self._ending)
        if not stem.endswith(self._ending):
            text = f"the name of the {self._what} does not end in {self._ending!r}"
            return self._wrong("orphan", path, text)
        if name in self.files or name in self.doubtful:
            self.doubtful.add(name)
            first = self.files.pop(name, None)
            text = f"there is another {self._what} of this name" + (f": {first}" if first else "")
            return self._wrong("duplicate_id", path, text)
        self.files[name] = path
        return None

    @property
    def names(self) -> set[str]:
        """Returns the names of one file or several."""
        return self.files.keys() | self.doubtful

    def wanted(self, name: str) -> str:
        """Returns where a file of this name is looked for."""
        return str(self.root / f"{name}{self._ending}.png")

    def _wrong(self, kind: str, path: pathlib.Path, text: str) -> None:
        self.problems.append(Problem(kind, f"{path}: {text}", self._split, files=(str(path),)))


def _is_mask_name(folder: FolderFile, path: pathlib.Path) -> bool:
    """Returns whether a file beside images is a mask; the longer of two endings counts."""
    is_mask, is_image = (
        path.stem.endswith(ending) for ending in (folder.mask_suffix, folder.image_suffix)
    )
    return is_mask and (not is_image or len(folder.mask_suffix) > len(folder.image_suffix))


def _no_partners(folder: FolderFile, split: str, images: _Names, masks: _Names) -> Problem:
    """Returns one problem for a split in which no image has a mask, instead of thousands."""
    examples = [min(names.stems.values()) for names in (images, masks) if names.stems]
    if not masks.stems:
        what = f"none of {len(images.stems)} images has a mask; there is none in {masks.root}"
        if is_one_folder(folder, split):
            what += f": no name ends in {folder.mask_suffix!r}"
    elif not images.stems:
        what = f"none of {len(masks.stems)} masks has an image; there is none in {images.root}"
    else:
        what = (
            f"none of {len(images.stems)} images has a mask, and none of {len(masks.stems)} masks "
            f"an image, such as {examples[0]} and {examples[1]}; "
        ) + _endings_advice(folder, images.stems, masks.stems)
    message = f"{folder.path}: {split or 'train'}: {what}"
    return Problem("files", message, split or "train", files=tuple(map(str, examples[:1])))


def _endings_advice(folder: FolderFile, images: Collection[str], masks: Collection[str]) -> str:
    endings = likely_endings(images, masks)
    if endings is None:
        return (
            "the names of an image and its mask must be equal up to mask_suffix and the type of "
            "the file; or write lists with a line 'IMAGE MASK' for each pair, see [splits]"
        )
    now = (folder.image_suffix, folder.mask_suffix)
    keys = zip(("image_suffix", "mask_suffix"), endings, now, strict=True)
    return "set " + " and ".join(f'{key} = "{new}"' for key, new, old in keys if new != old)


def likely_endings(
    images: Collection[str], masks: Collection[str], *, in_one_folder: bool = False
) -> tuple[str, str] | None:
    """Guesses in which endings the names of images and masks differ.

    >>> likely_endings(["a_img", "b_img"], ["a_gt", "b_gt"])
    ('_img', '_gt')
    >>> names = ["a", "a_mask", "b", "b_mask"]
    >>> likely_endings(names, names, in_one_folder=True)
    ('', '_mask')

    Args:
      images, masks: names without suffix.
      in_one_folder: whether both are the names of all files of one folder; then only masks have an
        ending.

    Returns:
      The ending of images and that of masks by which most images find a mask, or None.
    """
    some, near = sorted(images)[:50], sorted(masks)[:_MAX_COMPARED]
    masks, found = set(masks), {}
    for image in some[:5]:
        for mask in near:
            equal = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(image, mask, strict=False)
            )
            start = len("".join(letter for letter, _ in equal).rstrip("_-. "))
            endings = image[start:], mask[start:]
            if start and "/" not in "".join(endings) and not (in_one_folder and endings[0]):
                found[endings] = 0
    found.pop(("", ""), None)
    for image_ending, mask_ending in found:
        found[image_ending, mask_ending] = sum(
            name.endswith(image_ending) and name.removesuffix(image_ending) + mask_ending in masks
            for name in some
        )
    best = max(found, key=lambda endings: (found[endings], -len("".join(endings))), default=None)
    enough = len(some) / (3 if in_one_folder else 2)
    return best if best is not None and found[best] >= enough else None
