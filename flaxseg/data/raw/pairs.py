"""Pairs the image and label files of a data set, and reads them."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from flaxseg.data.raw.decode import decode_label
from flaxseg.errors import DataError
from flaxseg.image_files import UndecodableError, read_file


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """Holds one image and its label as the bytes of their files.

    Attributes:
      id: unique within the data set.
      image: bytes of an image file.
      label: bytes of an image file that holds raw label ids.
      image_file, label_file: the files they come from, for messages, relative to the folder of the
        data set; "" when generated.
    """

    id: str
    image: bytes
    label: bytes
    image_file: str = ""
    label_file: str = ""


class File(Protocol):
    """Stands for a path or a file in an archive; `str` gives its name for messages."""

    def read_bytes(self) -> bytes:
        """Reads the whole file; raises OSError, or UndecodableError if its archive is damaged."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Holds an image file and its label file.

    Attributes:
      id: the name of the pair, unique among the splits that repeat no other split.
      image, label: the files.
      decode: turns the bytes of the label file into raw ids, `[H, W]`; raises UndecodableError.
      as_stored: whether the label fits the image's pixels as they are stored, whatever EXIF says.
    """

    id: str
    image: File
    label: File
    decode: Callable[[bytes], np.ndarray] = decode_label
    as_stored: bool = False

    def image_bytes(self) -> bytes:
        """Reads the image file."""
        return _read(self.image)

    def label_bytes(self) -> bytes:
        """Reads the label file."""
        return _read(self.label)

    def read(self, root: pathlib.Path | None = None) -> EncodedExample:
        """Reads both files; a label of another form is converted to a PNG of ids.

        Args:
          root: the folder of the data set. Its files are named relative to it, so that the example
            does not depend on where the data set is.

        Raises:
          DataError: a file has changed since the pair was checked.
        """
        try:
            label = self.label_bytes()
            if self.decode is not decode_label:
                label = _as_png(self.decode(label))
            image = self.image_bytes()
        except UndecodableError as error:
            raise DataError(
                f"the files of {self.id!r}, {self.image} and {self.label}, changed while the data "
                f"set was prepared: {error}"
            ) from None
        return EncodedExample(
            self.id, image, label, _place(self.image, root), _place(self.label, root)
        )


def readers(
    pairs: dict[str, Sequence[Pair]], root: pathlib.Path | None = None
) -> dict[str, Callable[[], Iterator[EncodedExample]]]:
    """Returns, for each split, a function that reads its pairs; `root` as in `Pair.read`."""

    def reader(of_split: Sequence[Pair]) -> Callable[[], Iterator[EncodedExample]]:
        return lambda: (pair.read(root) for pair in of_split)

    return {split: reader(of_split) for split, of_split in pairs.items()}


def _read(file: File) -> bytes:
    return read_file(file) if isinstance(file, pathlib.Path) else file.read_bytes()


def _place(file: File, root: pathlib.Path | None) -> str:
    """Returns the name of a file, on disk or in an archive, relative to the root."""
    return str(file) if root is None else str(file).removeprefix(f"{root}{os.sep}")


def _as_png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()
