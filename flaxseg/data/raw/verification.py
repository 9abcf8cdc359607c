"""Checks a whole data set before any of it is used: reads and decodes every file, in many threads,
and lists everything that is wrong at once.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.decode import decode_image
from flaxseg.data.raw.findings import Report, Statistics
from flaxseg.data.raw.label_map import LabelMap, count_ids
from flaxseg.data.raw.problems import UNUSABLE, Problem
from flaxseg.image_files import ImageFile, UndecodableError
from flaxseg.paths import is_readable

_MAX_THREADS = 32
# Images of more pixels than this are decoded one at a time, to bound the memory.
_LARGE = 16 * 1024 * 1024
_one_large_image = threading.Lock()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Checkable(Protocol):
    """Gives an encoded image and its label: a pair of files, or a record of a prepared set.

    Attributes:
      id: its name.
      image, label: the files, or other names, for messages.
      as_stored: whether the label fits the pixels as they are stored, whatever EXIF says.
    """

    id: str
    image: object
    label: object
    as_stored: bool

    def image_bytes(self) -> bytes:
        """Returns the bytes of the image; raises OSError or UndecodableError."""

    def label_bytes(self) -> bytes:
        """Returns the bytes of the label; raises OSError or UndecodableError."""

    def decode(self, encoded: bytes) -> np.ndarray:
        """Decodes the bytes of the label to raw ids, uint8 or uint16 `[H, W]`."""


@dataclasses.dataclass
class _Examined:
    """Holds what was found out about one pair."""

    problems: list[Problem]
    digest: bytes | None = None  # of the pixels, so that other encodings of the image are found too
    size: tuple[int, int] | None = None  # (H, W) of a usable image
    pixels: np.ndarray | None = None  # int64 [256]: pixels of each train id


def examine(
    pairs: Mapping[str, Sequence[Checkable]],
    info: DatasetInfo,
    *,
    source: str = "",
    known: Iterable[Problem] = (),
    trained_on: str = "",
    advance: Callable[[], None] = lambda: None,
    num_threads: int | None = None,
) -> Report:
    """Decodes every image and label, reports everything that is wrong with them, and counts.

    It finds missing files, undecodable ones (with the decoder's message), images that are changed
    when they are read, JPEG, colour and 16-bit labels, images stored turned, sizes that differ,
    label ids outside the map (with pixel counts), names used twice, the same pixels in two splits,
    however they are stored, and classes without a pixel.

    Args:
      pairs: the pairs of each split.
      info: the facts of the data set.
      source: where the files are, for the report.
      known: problems that were found before, in lists and folders.
      trained_on: the split in which a class without a pixel is an error, not a warning.
      advance: called once per pair, in this thread.
      num_threads: the number of decoding threads; one per core (at most 32) if None.

    Returns:
      The problems, those of `known` first and then in the order of the pairs, and the counts.
    """
    problems = list(known)
    statistics = {split: Statistics.zero(info.num_classes) for split in pairs}
    unusable: dict[str, set[int]] = {split: set() for split in pairs}
    seen = _Seen(info.repeated)
    work = [(split, number, pair) for split in pairs for number, pair in enumerate(pairs[split])]
    label_map = LabelMap(info.label_map)
    results = _in_threads(lambda item: _examine_pair(item[2], label_map), work, num_threads)
    for (split, number, pair), examined in zip(work, results, strict=True):
        found = [dataclasses.replace(p, split=split, id=pair.id) for p in examined.problems]
        found += seen.check(split, pair, examined.digest)
        problems += found
        if any(problem.kind in UNUSABLE for problem in found):
            unusable[split].add(number)
        else:
            statistics[split].add(examined.size, examined.pixels)
        advance()
    for split, counted in statistics.items():
        problems += _absent_classes(split, counted, info, split == trained_on)
    return Report(
        name=info.name,
        source=source,
        class_names=info.class_names,
        class_colors=info.class_colors,
        num_pairs={split: len(pairs[split]) for split in pairs},
        problems=tuple(problems),
        statistics=statistics,
        unusable={split: frozenset(numbers) for split, numbers in unusable.items()},
        training_split=info.train_split if info.train_split in pairs else "",
    )


class _Seen:
    """Remembers names and images, and in which split they were."""

    def __init__(self, repeated: Mapping[str, str]):
        self._overlapping = {frozenset(splits) for splits in repeated.items()}
        self._ids: dict[str, list[tuple[str, Checkable]]] = collections.defaultdict(list)
        self._images: dict[bytes, list[tuple[str, Checkable]]] = collections.defaultdict(list)

    def check(self, split: str, pair: Checkable, digest: bytes | None) -> list[Problem]:
        """Returns what of this pair was there before."""
        problems = []
        for other, _ in self._before(self._ids[pair.id], split):
            message = f"{split}: id {pair.id!r} is already used in {other}"
            problems.append(Problem("duplicate_id", message, split, pair.id, (str(pair.image),)))
        self._ids[pair.id].append((split, pair))
        if digest is not None:
            for other, earlier in self._before(self._images[digest], split):
                problems.append(_duplicate(split, pair, other, earlier))
            self._images[digest].append((split, pair))
        return problems

    def _before(
        self, earlier: list[tuple[str, Checkable]], split: str
    ) -> list[tuple[str, Checkable]]:
        """Returns the first earlier pair that counts, one of another split if there is one."""
        counting = [
            (other, pair)
            for other, pair in earlier
            if frozenset((other, split)) not in self._overlapping
        ]
        return sorted(counting, key=lambda item: item[0] == split)[:1]


def _duplicate(split: str, pair: Checkable, other: str, earlier: Checkable) -> Problem:
    files = (str(pair.image), str(earlier.image))
    if other == split:
        message = f"{files[0]}: the same image is in {split} twice: {files[1]}"
        return Problem("duplicate_in_split", message, split, pair.id, files, is_error=False)
    message = f"{files[0]}: the same image is in {other}: {files[1]}"
    return Problem(
        "duplicate_across_splits", message, split, pair.id, files, {"other_split": other}
    )


def _absent_classes(
    split: str, counted: Statistics, info: DatasetInfo, is_error: bool
) -> list[Problem]:
    absent = counted.absent(info.class_names)
    if not absent or not counted.num_images:
        return []
    what = "class" if len(absent) == 1 else f"{len(absent)} classes"
    message = f"{split}: no pixel of {what} {', '.join(map(repr, absent))}"
    if is_error:
        message += "; a class that is not in the training split cannot be learned"
    details = {"classes": absent}
    return [Problem("absent_class", message, split, details=details, is_error=is_error)]


def _examine_pair(pair: Checkable, label_map: LabelMap) -> _Examined:
    """Reads and decodes an image and its label, and compares their sizes."""
    files = (str(pair.image), str(pair.label))
    examined = _Examined(
        [
            Problem("file_name", f"{file}: the name is not UTF-8; rename the file", files=(file,))
            for file in files
            if not is_readable(file)
        ]
    )
    size = raw = None
    image = _read(pair.image_bytes, pair.image, "image", pair, examined.problems)
    if image is not None:
        try:
            size, examined.digest, notes = _decoded(image, pair.as_stored)
        except UndecodableError as error:
            examined.digest = hashlib.sha256(image).digest() if image else None
            examined.problems.append(_undecodable(pair.image, error))
        else:
            examined.problems += _conversions(pair, notes)
    encoded = _read(pair.label_bytes, pair.label, "label", pair, examined.problems)
    if encoded is not None:
        try:
            raw = pair.decode(encoded)
        except UndecodableError as error:
            examined.problems.append(_undecodable(pair.label, error))
    if encoded and encoded == image and (raw is None or raw.min() < raw.max()):
        message = f"{pair.label}: the file of the label is that of the image, {pair.image}"
        examined.problems.append(Problem("image_as_label", message, files=files))
    if size is not None and raw is not None:
        examined.size = size
        if size != raw.shape:
            examined.problems.append(_other_size(pair, size, raw.shape))
    if raw is not None:
        examined.pixels = _check_ids(pair, raw, label_map, examined.problems)
    return examined


def _check_ids(
    pair: Checkable, raw: np.ndarray, label_map: LabelMap, problems: list[Problem]
) -> np.ndarray:
    """Counts the pixels of each train id, int64 [256], and finds ids outside the map."""
    counts = count_ids(raw)
    file = (str(pair.label),)
    unknown = {str(v): n for v, n in counts.items() if v not in label_map.ids}
    deep = f" (the label has {8 * raw.itemsize} bits a pixel)" if raw.itemsize > 1 else ""
    if unknown:
        message = f"{pair.label}: {label_map.complaint(raw)}{deep}"
        problems.append(Problem("unknown_ids", message, files=file, details={"ids": unknown}))
    elif deep:
        message = f"{pair.label}: a label of 16 bits a pixel; all its ids are known and kept"
        problems.append(Problem("deep_label", message, files=file, is_error=False))
    pixels = np.zeros(256, np.int64)
    for value, number in counts.items():
        pixels[label_map.ids.get(value, IGNORE_LABEL)] += number
    if not unknown and not pixels[:IGNORE_LABEL].any():
        message = f"{pair.label}: every pixel is ignored"
        problems.append(Problem("nothing_labelled", message, files=file, is_error=False))
    return pixels


def _read(
    read: Callable[[], bytes], file: object, what: str, pair: Checkable, problems: list[Problem]
) -> bytes | None:
    files = (str(file),)
    try:
        return read()
    except FileNotFoundError:
        message = f"{file}: the {what} of {pair.id!r} is missing"
        problems.append(Problem("missing_file", message, files=files))
    except OSError as error:
        message = f"{file}: the {what} of {pair.id!r} cannot be read: {error.strerror}"
        problems.append(Problem("unreadable", message, files=files))
    except UndecodableError as error:
        problems.append(_undecodable(file, error))
    return None


def _undecodable(file: object, error: UndecodableError) -> Problem:
    return Problem(error.kind, f"{file}: {error}", files=(str(file),), details=error.details)


def _other_size(pair: Checkable, image: tuple[int, ...], label: tuple[int, ...]) -> Problem:
    message = (
        f"{pair.image}: the image has {image[0]} x {image[1]} pixels (H x W) but its label "
        f"{pair.label} has {label[0]} x {label[1]}"
    )
    return Problem(
        "size_mismatch",
        message,
        files=(str(pair.image), str(pair.label)),
        details={"image": list(image), "label": list(label)},
    )


def _conversions(pair: Checkable, notes: Sequence[str]) -> list[Problem]:
    """Returns the warning for an image that is changed when it is read, if it is."""
    if not notes:
        return []
    message = f"{pair.image}: {'; '.join(notes)}"
    return [Problem("converted_image", message, files=(str(pair.image),), is_error=False)]


def _decoded(encoded: bytes, as_stored: bool) -> tuple[tuple[int, int], bytes, tuple[str, ...]]:
    """Returns the (H, W) of an image, the digest of its pixels, and what was done to them."""
    try:
        return _of_image(decode_image(encoded, _LARGE, as_stored=as_stored))
    except UndecodableError as error:
        if "width" not in error.details:
            raise
    with _one_large_image:
        return _of_image(decode_image(encoded, as_stored=as_stored))


def _of_image(image: ImageFile) -> tuple[tuple[int, int], bytes, tuple[str, ...]]:
    pixels = image.pixels
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels)
    return (pixels.shape[0], pixels.shape[1]), digest.digest(), image.notes


def _in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], num_threads: int | None
) -> Iterator[_Result]:
    """Maps `function` over `items` in threads, a few at a time: little is kept in memory, and an
    interruption takes effect soon.
    """
    num_threads = num_threads or min(_MAX_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    waiting: collections.deque[concurrent.futures.Future[_Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
