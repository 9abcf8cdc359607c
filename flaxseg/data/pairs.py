"""Picture and label files of a data set, and the check of all of them before any is used."""

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from flaxseg.data.builders.segmentation import EncodedExample
from flaxseg.data.decode import UndecodableError, decode_image, decode_label
from flaxseg.data.exif import set_upright
from flaxseg.data.label_map import LabelMap
from flaxseg.errors import DataError

MAX_LISTED_PROBLEMS = 50


class File(Protocol):
    """A path, or a file in an archive; as text it is its name for messages."""

    def read_bytes(self) -> bytes:
        """Reads it whole; raises OSError, or UndecodableError where its archive is damaged."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture file and its label file.

    Attributes:
      id: name of the pair, unique within the splits that repeat no other.
      image, label: the files.
      decode: from the bytes of the label file to raw ids, `[H, W]`; raises UndecodableError.
      as_stored: the label fits the picture's pixels as they are stored, whatever EXIF says.
    """

    id: str
    image: File
    label: File
    decode: Callable[[bytes], np.ndarray] = decode_label
    as_stored: bool = False

    def image_bytes(self) -> bytes:
        """Reads the picture file."""
        encoded = self.image.read_bytes()
        return set_upright(encoded) if self.as_stored else encoded

    def label_bytes(self) -> bytes:
        """Reads the label file."""
        return self.label.read_bytes()

    def read(self) -> EncodedExample:
        """Reads both files; a label that does not store its ids as a PNG is made into one."""
        label = self.label_bytes()
        if self.decode is not decode_label:
            label = _as_png(self.decode(label))
        return EncodedExample(self.id, self.image_bytes(), label, str(self.image), str(self.label))


def check_pairs(
    pairs: dict[str, Sequence[Pair]],
    label_map: LabelMap,
    advance: Callable[[], None] = lambda: None,
    num_threads: int | None = None,
) -> list[str]:
    """Decodes every picture and label and says everything that is wrong with them.

    Found are: missing files, undecodable ones (with the decoder's words), JPEG and colour labels,
    pictures stored turned, sizes that differ, label ids outside the map (with pixel counts), ids
    used twice, and the same picture in two splits.

    Args:
      pairs: the pairs of each split.
      label_map: the ids that labels may hold.
      advance: called once per pair, from this thread.
      num_threads: decode in so many threads; as many as there are cores if None.

    Returns:
      One line per problem, in the order of the pairs; empty if all is well.
    """
    problems: list[str] = []
    first_with_id: dict[str, str] = {}
    first_with_content: dict[bytes, tuple[str, File]] = {}
    work = [(split, pair) for split, of_split in pairs.items() for pair in of_split]
    with concurrent.futures.ThreadPoolExecutor(num_threads or os.cpu_count() or 1) as pool:
        results = pool.map(lambda item: _check_pair(item[1], label_map), work)
        for (split, pair), (digest, found) in zip(work, results, strict=True):
            problems += found
            if pair.id in first_with_id:
                problems.append(
                    f"{split}: id {pair.id!r} is already used in {first_with_id[pair.id]}"
                )
            first_with_id.setdefault(pair.id, split)
            if digest is not None:
                other_split, other = first_with_content.setdefault(digest, (split, pair.image))
                if other_split != split:
                    problems.append(f"{pair.image}: the same picture is in {other_split}: {other}")
            advance()
    return problems


def raise_problems(name: str, problems: Sequence[str], advice: str) -> None:
    """Raises one DataError that lists all problems; does nothing if there is none."""
    if not problems:
        return
    listed = "\n".join(f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS])
    more = len(problems) - MAX_LISTED_PROBLEMS
    if more > 0:
        listed += f"\n  ... and {more} more"
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError(f"data set {name!r} can not be prepared, {number}:\n{listed}\n{advice}")


def readers(
    pairs: dict[str, Sequence[Pair]],
) -> dict[str, Callable[[], Iterator[EncodedExample]]]:
    """Returns, per split, a function that reads its pairs one after the other."""

    def reader(of_split: Sequence[Pair]) -> Callable[[], Iterator[EncodedExample]]:
        return lambda: (pair.read() for pair in of_split)

    return {split: reader(of_split) for split, of_split in pairs.items()}


def _check_pair(pair: Pair, label_map: LabelMap) -> tuple[bytes | None, list[str]]:
    """Returns the digest of the picture file (None if it could not be read) and what is wrong with
    the pair.
    """
    problems: list[str] = []
    image_bytes = _read(pair.image_bytes, pair.image, "picture", pair, problems)
    label_bytes = _read(pair.label_bytes, pair.label, "label", pair, problems)
    image = label = None
    if image_bytes is not None:
        try:
            image = decode_image(image_bytes)
        except UndecodableError as error:
            problems.append(f"{pair.image}: {error}")
    if label_bytes is not None:
        try:
            label = pair.decode(label_bytes)
        except UndecodableError as error:
            problems.append(f"{pair.label}: {error}")
    if image is not None and label is not None and image.shape[:2] != label.shape:
        problems.append(
            f"{pair.image}: the picture has {image.shape[0]} x {image.shape[1]} pixels (H x W) "
            f"but its label {pair.label} has {label.shape[0]} x {label.shape[1]}"
        )
    if label is not None and label_map.unknown_ids(label):
        problems.append(f"{pair.label}: {label_map.complaint(label)}")
    digest = None if image_bytes is None else hashlib.sha256(image_bytes).digest()
    return digest, problems


def _read(
    read: Callable[[], bytes], file: File, what: str, pair: Pair, problems: list[str]
) -> bytes | None:
    try:
        return read()
    except FileNotFoundError:
        problems.append(f"{file}: the {what} of {pair.id!r} is missing")
    except OSError as error:
        problems.append(f"{file}: the {what} of {pair.id!r} can not be read: {error.strerror}")
    except UndecodableError as error:
        problems.append(f"{file}: {error}")
    return None


def _as_png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()
