"""`folder`: the user's own images and masks, described by a small file, `dataset.toml`.

The name of such a data set is `folder:PATH`, where PATH is the folder with the file, the file, or
the folder in which the set was prepared.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flaxseg.classes import IGNORE_LABEL, voc_colors
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.decode import decode_label
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.raw.problems import Problem
from flaxseg.data.raw.split_names import TEST, TRAIN, VAL, in_usual_order, own_name, role, split_for
from flaxseg.data.sets.folder_colors import ColorLabel
from flaxseg.data.sets.folder_draft import draft
from flaxseg.data.sets.folder_file import (
    FILE_NAME,
    SPLIT_NAMES,
    FolderFile,
    is_split_name,
    read_folder_file,
)
from flaxseg.data.sets.folder_pairs import (
    Found,
    image_files,
    is_one_folder,
    likely_endings,
    listed,
    mask_files,
    matched,
    without_suffix,
)
from flaxseg.errors import DataError
from flaxseg.folder_walk import is_hidden
from flaxseg.image_files import is_image_name


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
    return folder, _info(folder, _split_names(folder))


def find_pairs(
    folder: FolderFile, info: DatasetInfo
) -> tuple[dict[str, list[Pair]], list[Problem]]:
    """Finds the images and masks of each split that has masks.

    Returns:
      The pairs of each split, sorted by name or in the order of its list, and what is wrong: images
      without a mask, masks without an image, and lines of lists that are of no use.
    """
    problems = [_left_out(folder, split, files) for split, files in info.optional.items()]
    decode = decode_label if folder.mask_colors is None else ColorLabel(folder.mask_colors)
    splits = [split for split in info.splits if split not in info.optional]
    if folder.splits:
        lists = ((split, folder.splits[split]) for split in splits)
        found = {split: list(listed(folder, split, file, problems)) for split, file in lists}
    elif info.splits == ("train",) or folder.val_share:
        found = _held_out(folder, list(matched(folder, "", problems)))
    else:
        found = {split: list(matched(folder, split, problems)) for split in splits}
        problems += _masks_of_no_split(folder, info.splits)
    problems += _shared_masks(found)
    pairs = {
        split: [Pair(f"{split}/{name}", image, mask, decode) for name, image, mask in found[split]]
        for split in splits
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


def _info(folder: FolderFile, splits: tuple[str, ...]) -> DatasetInfo:
    unlabelled = _unlabelled(folder, splits)
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
        eval_split=_eval_split(folder, splits, unlabelled),
        license=folder.license,
        citation=folder.citation,
        homepage=folder.homepage,
        optional=unlabelled,
    )


def _eval_split(folder: FolderFile, splits: tuple[str, ...], unlabelled: Iterable[str]) -> str:
    """Returns the split that is evaluated on unless another is named; "" if none is clear."""
    if folder.eval_split:
        named = own_name(folder.eval_split, splits)
        if named not in splits:
            raise DataError(
                f"{folder.path}: eval_split is {folder.eval_split!r}; the splits are "
                f"{', '.join(splits)}"
            )
        return named
    labelled = [split for split in splits if split not in unlabelled]
    for wanted in (VAL, TEST):
        if any(role(split) == wanted for split in labelled):
            return split_for(wanted, labelled)
    return labelled[0] if len(labelled) == 1 else ""


def _unlabelled(folder: FolderFile, splits: tuple[str, ...]) -> dict[str, str]:
    """Returns the splits without any mask, and the files that they lack.

    A split by whose name masks are wanted, to train or to validate, is not one of them; nor is any
    if no split has masks.
    """
    if not folder.splits and (folder.val_share or splits == ("train",)):
        return {}
    named = own_name(folder.eval_split, splits)
    found = {
        split: f"any mask of {folder.splits[split].name}"
        if split in folder.splits
        else f"{folder.masks.name}/{split}"
        for split in splits
        if role(split) not in (TRAIN, VAL) and split != named and not _has_masks(folder, split)
    }
    return found if len(found) < len(splits) else {}


def _has_masks(folder: FolderFile, split: str) -> bool:
    """Returns whether at least one image of a split has a mask, or whether it has no images."""
    if split not in folder.splits:
        return any(mask_files(folder, split)) or not any(image_files(folder.images / split))
    found = list(listed(folder, split, folder.splits[split], []))
    return any(os.path.isfile(mask) for _, _, mask in found) or not found


def _left_out(folder: FolderFile, split: str, files: str) -> Problem:
    message = (
        f"{folder.path}: split {split!r} is left out, because {files} is missing; without masks it "
        "can be neither trained nor evaluated on"
    )
    return Problem("unlabelled_split", message, split, is_error=False)


def _split_names(folder: FolderFile) -> tuple[str, ...]:
    """Returns the names of the splits: those of `[splits]`, else the folders among the images, else
    train and what is held out of it.
    """
    if folder.splits:
        return in_usual_order(folder.splits)
    missing = [str(path) for path in (folder.images, folder.masks) if not path.is_dir()]
    if missing:
        raise DataError(
            f"{folder.path}: there is no folder {' and no folder '.join(missing)}; set images = "
            '"..." and masks = "...", or name lists under [splits]'
        )
    _check_endings(folder)
    if folder.val_share:
        return ("train", "val")
    names = sorted(_folders_of_splits(folder))
    if not any((folder.masks / name).is_dir() for name in names):
        return ("train",)
    loose = [path.name for path in folder.images.iterdir() if is_image_name(path)]
    if loose:
        raise DataError(
            f"{folder.images} holds images, such as {min(loose)}, beside the folders "
            f"{', '.join(names)}; move them into the folder of a split, or set "
            "val_share to treat all of them as one set"
        )
    bad = [name for name in names if not is_split_name(name)]
    if bad:
        raise DataError(
            f"{folder.images}: the folder {bad[0]!r} cannot name a split; {SPLIT_NAMES}; or set "
            "val_share to treat all images as one set"
        )
    return in_usual_order(names)


def _folders_of_splits(folder: FolderFile) -> Iterator[str]:
    """Yields the names of the folders among the images that hold some, or should by their name."""
    for path in _subfolders(folder.images, folder.masks):
        in_split = image_files(path, without=folder.masks), mask_files(folder, path.name)
        if role(path.name) or any(map(any, in_split)):
            yield path.name


def _subfolders(root: pathlib.Path, other: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folders in `root` but hidden ones and `other`."""
    for path in sorted(root.iterdir()):
        is_other = os.path.realpath(path) == os.path.realpath(other)
        if path.is_dir() and not is_hidden(path.name) and not is_other:
            yield path


def _check_endings(folder: FolderFile) -> None:
    """Raises DataError where images and masks are in one folder and nothing tells them apart."""
    if not is_one_folder(folder) or folder.image_suffix != folder.mask_suffix:
        return
    names = [
        without_suffix(path.relative_to(folder.images).as_posix())
        for path in image_files(folder.images)
    ]
    _, ending = likely_endings(names, names, in_one_folder=True) or ("", "")
    advice = (
        f'set mask_suffix = "{ending}"'
        if ending
        else "set mask_suffix to the ending of the names of masks, or move the masks into a folder "
        "of their own"
    )
    raise DataError(
        f"{folder.path}: images and masks are one folder, {folder.images}, so every image would be "
        f"its own mask; {advice}"
    )


def _masks_of_no_split(folder: FolderFile, splits: Iterable[str]) -> Iterator[Problem]:
    """Yields a problem for each folder of masks beside which there is no folder of images."""
    for path in _subfolders(folder.masks, folder.images):
        if path.name not in splits and any(mask_files(folder, path.name)):
            message = f"{path} holds masks, and there is no folder {folder.images / path.name}"
            yield Problem("orphan", message, files=(str(path),))


def _shared_masks(found: Mapping[str, Sequence[Found]]) -> Iterator[Problem]:
    """Yields a warning for each mask that is that of two images."""
    first: dict[pathlib.Path, pathlib.Path] = {}
    for split, of_split in found.items():
        for _, image, mask in of_split:
            other = first.setdefault(mask, image)
            if other != image:
                message = f"{mask}: this is the mask of {other} and of {image}"
                files = (str(mask), str(other), str(image))
                yield Problem("shared_label", message, split, files=files, is_error=False)


def _held_out(folder: FolderFile, found: list[Found]) -> dict[str, list[Found]]:
    """Puts a share of the images, chosen by a digest of their names, into "val"."""
    if not folder.val_share:
        return {"train": found}
    by_digest = sorted(found, key=lambda item: hashlib.sha256(item.name.encode()).digest())
    number = round(folder.val_share * len(found)) or min(1, len(found) - 1)
    held_out = {item.name for item in by_digest[:number]}
    return {
        "train": [item for item in found if item.name not in held_out],
        "val": [item for item in found if item.name in held_out],
    }
