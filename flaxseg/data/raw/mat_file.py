"""Reads numeric arrays from MATLAB's MAT-files of version 5, in bounded memory.

Labels need two-dimensional arrays of integers, alone or in a structure, and nothing else. SciPy's
reader is not used: it allocates whatever sizes a file states, and its 1.17 ends the process by a
segmentation fault on files with a few damaged bytes. Reference: MATLAB MAT-File Format, The
MathWorks, chapter 1 (level 5).
"""

import math
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from flaxseg.errors import listed
from flaxseg.image_files import MAX_PIXELS, UndecodableError

_MATRIX, _COMPRESSED = 14, 15
# Data types of elements, as little-endian NumPy types.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4"}
_TYPES |= {9: "f8", 12: "i8", 13: "u8"}
_STRUCT = 2
_NUMERIC = frozenset(range(6, 16))  # double to uint64
_COMPLEX_FLAG = 0x0800


def read_mat_array(
    content: bytes, name: str, field: str | None = None, max_bytes: int = 2 * MAX_PIXELS
) -> np.ndarray:
    """Reads a two-dimensional array of whole numbers.

    Args:
      content: the bytes of the file.
      name: the name of the variable.
      field: the wanted field, where the variable is a structure of size 1x1.
      max_bytes: refuse a file that unpacks to more.

    Returns:
      uint16 `[H, W]`.

    Raises:
      UndecodableError: it is not such a file, is damaged or too large, lacks the variable, or holds
        something other than whole numbers from 0 to 65535.

    Example:
      `read_mat_array(path.read_bytes(), "GTcls", "Segmentation")` reads a label of SBD.
    """
    try:
        return _read(content, name, field, max_bytes)
    except UndecodableError:
        raise
    except (struct.error, ValueError) as error:  # elements are missing or too short
        raise UndecodableError(f"a damaged MAT-file: {error}") from None


def _read(content: bytes, name: str, field: str | None, max_bytes: int) -> np.ndarray:
    if content[:10] == b"MATLAB 7.3":
        raise UndecodableError("a MAT-file of version 7.3; save it with -v7")
    if len(content) < 136 or content[124:128] not in (b"\0\1IM", b"\1\0MI"):
        start = bytes(content[:8])
        raise UndecodableError(f"not a MAT-file of version 5 (it starts with {start!r})")
    order = "<" if content[126:128] == b"IM" else ">"
    left = max_bytes
    found = []
    for element in _elements(content[128:], order):
        if element.kind == _COMPRESSED:
            unpacked = _inflate(element.content, left)
            left -= len(unpacked)
            element = next(_elements(unpacked, order), None)
        if element is not None and element.kind == _MATRIX and element.content:
            matrix = _matrix(element.content, order)
            found.append(matrix.name)
            if matrix.name == name:
                if field is not None:
                    matrix = _field(matrix, field, order)
                return _numbers(matrix, order)
    raise UndecodableError(f"no variable {name!r} in the MAT-file; it has {listed(found)}")


class _Element(NamedTuple):
    kind: int
    content: bytes


def _elements(content: bytes, order: str) -> Iterator[_Element]:
    """Yields the consecutive data elements."""
    position = 0
    while position + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}2L", content, position)
        if kind >> 16:  # a short element has its four bytes within the tag
            size, kind, start = kind >> 16, kind & 0xFFFF, position + 4
            after = position + 8
            if size > 4:
                raise UndecodableError("a damaged MAT-file: a short element of more than 4 bytes")
        else:
            start = position + 8
            after = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(content):
            raise UndecodableError("the MAT-file ends early")
        yield _Element(kind, content[start : start + size])
        position = after


def _inflate(content: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(content, max(limit, 0) + 1)
    except zlib.error as error:
        raise UndecodableError(f"a damaged MAT-file: {error}") from None
    if len(unpacked) > limit:
        raise UndecodableError("the MAT-file unpacks to more than the limit")
    return unpacked


class _Matrix(NamedTuple):
    name: str
    type_class: int
    is_complex: bool
    shape: tuple[int, ...]
    data: tuple[_Element, ...]


def _matrix(content: bytes, order: str) -> _Matrix:
    flags, dimensions, name, *data = _elements(content, order)
    (word,) = struct.unpack_from(f"{order}L", flags.content)
    shape = struct.unpack(f"{order}{len(dimensions.content) // 4}l", dimensions.content)
    return _Matrix(
        name.content.decode("latin-1"), word & 0xFF, bool(word & _COMPLEX_FLAG), shape, tuple(data)
    )


def _field(matrix: _Matrix, field: str, order: str) -> _Matrix:
    if matrix.type_class != _STRUCT or math.prod(matrix.shape) != 1 or len(matrix.data) < 2:
        raise UndecodableError(f"{matrix.name!r} in the MAT-file is no structure of size 1x1")
    (length,) = struct.unpack_from(f"{order}l", matrix.data[0].content)
    words = matrix.data[1].content
    if length < 1:
        raise UndecodableError("a damaged MAT-file: names of no length")
    names = [
        words[i : i + length].partition(b"\0")[0].decode("latin-1")
        for i in range(0, len(words), length)
    ]
    values = matrix.data[2:]
    if field not in names or names.index(field) >= len(values):
        raise UndecodableError(
            f"{matrix.name!r} in the MAT-file has no field {field!r}; it has {listed(names)}"
        )
    element = values[names.index(field)]
    if element.kind != _MATRIX or not element.content:
        raise UndecodableError(f"{field!r} in the MAT-file is empty")
    return _matrix(element.content, order)


def _numbers(matrix: _Matrix, order: str) -> np.ndarray:
    if matrix.type_class not in _NUMERIC or matrix.is_complex or not matrix.data:
        raise UndecodableError("the MAT-file holds no array of real numbers where the label is")
    element = matrix.data[0]
    if element.kind not in _TYPES:
        raise UndecodableError(f"a damaged MAT-file: data of type {element.kind}")
    kind = np.dtype(order + _TYPES[element.kind])
    wanted = math.prod(matrix.shape) * kind.itemsize
    if len(matrix.shape) != 2 or min(matrix.shape) < 1 or len(element.content) != wanted:
        raise UndecodableError(
            f"a damaged MAT-file: {len(element.content)} bytes for an array of {matrix.shape}"
        )
    values = np.frombuffer(element.content, kind).reshape(matrix.shape, order="F")
    whole = values.astype(np.uint16) if values.min() >= 0 and values.max() <= 65535 else None
    if whole is None or (kind.kind == "f" and not np.array_equal(whole, values)):
        raise UndecodableError("the label in the MAT-file holds other than ids from 0 to 65535")
    return np.ascontiguousarray(whole)
