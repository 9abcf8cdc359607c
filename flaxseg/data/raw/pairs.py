"""Picture and label files of a data set, two by two."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from flaxseg.data.raw.decode import UndecodableError, decode_label, read_file
from flaxseg.errors import DataError


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One picture and its label as the bytes of their files.

    Attributes:
      id: unique within the data set.
      image: bytes of a JPEG or PNG.
      label: bytes of a PNG that holds raw label ids.
      image_file, label_file: where the bytes come from, for messages, as a place in the folder of
        the data set; "" when generated.
    """

    id: str
    image: bytes
    label: bytes
    image_file: str = ""
    label_file: str = ""


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
      as_stored: whether the label fits the image's pixels as they are stored, whatever EXIF says.
    """

    id: str
    image: File
    label: File
    decode: Callable[[bytes], np.ndarray] = decode_label
    as_stored: bool = False

    def image_bytes(self) -> bytes:
        """Reads the picture file."""
        return _read(self.image)

    def label_bytes(self) -> bytes:
        """Reads the label file."""
        return _read(self.label)

    def read(self, root: pathlib.Path | None = None) -> EncodedExample:
        """Reads both files; a label that does not store its ids as a PNG is made into one.

        Args:
          root: the folder of the data set. Files in it are named by their place there, so that the
            example is the same wherever the data set lies.

        Raises:
          DataError: a file is not what it was when the pair was checked.
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
    """Returns, per split, a function that reads its pairs one after the other; `root` as for
    `Pair.read`.
    """

    def reader(of_split: Sequence[Pair]) -> Callable[[], Iterator[EncodedExample]]:
        return lambda: (pair.read(root) for pair in of_split)

    return {split: reader(of_split) for split, of_split in pairs.items()}


def _read(file: File) -> bytes:
    return read_file(file) if isinstance(file, pathlib.Path) else file.read_bytes()


def _place(file: File, root: pathlib.Path | None) -> str:
    """The name of a file, also of one in an archive, from the root on."""
    return str(file) if root is None else str(file).removeprefix(f"{root}{os.sep}")


def _as_png(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(ids).save(file, "PNG")
    return file.getvalue()
