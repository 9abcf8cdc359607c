"""Reads what the header of a TIFF says about its samples, without trusting it."""

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

BITS, COMPRESSION, PHOTOMETRIC = 258, 259, 262
ORIENTATION, BANDS, EXTRA_BANDS, SAMPLE_FORMAT = 274, 277, 338, 339

WHITE_IS_ZERO = 0
"""The value of `PHOTOMETRIC` of a grey image that stores white as 0."""

LOSSY_COMPRESSIONS = (6, 7, 34712, 50001)
"""The values of `COMPRESSION` that stand for JPEG (old and new), JPEG 2000 and WebP."""

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_TAGS = 65_535
_CUT_OFF = "the header of the TIFF is cut off"
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8,
               13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

# Photometric interpretation -> number of bands, their possible bits, and those beside an alpha.
_READ = {
    WHITE_IS_ZERO: (1, (1, 2, 4, 8), ()),
    1: (1, (1, 2, 4, 8, 16), (8,)),  # grey
    2: (3, (8, 16), (8, 16)),  # RGB
    3: (1, (1, 2, 4, 8), ()),  # palette
    5: (4, (8, 16), ()),  # CMYK
    6: (3, (8,), ()),  # YCbCr
}
_ALPHA = ((1,), (2,))  # premultiplied or not
_FORMATS = {2: " (signed)", 3: " (floating point)"}


def is_tiff(encoded: bytes) -> bool:
    """Returns whether a file begins as a TIFF or BigTIFF does."""
    return encoded.startswith(_STARTS)


def read_tags(encoded: bytes) -> dict[int, tuple[int, ...]]:
    """Reads the tags of the first image that hold unsigned integers.

    Raises:
      ValueError: the header is cut off, or its tags claim more bytes than the file has, which
        would fill the memory of a decoder that believes them.
    """
    order, claimed, tags = _order(encoded), 0, {}
    for tag in _tags(encoded):
        claimed += tag.size
        if claimed > len(encoded):
            raise ValueError(f"the tags of the TIFF claim more than its {len(encoded)} bytes")
        if tag.kind in _INTEGERS:
            content = encoded[tag.start : tag.start + tag.size]
            if len(content) < tag.size:
                raise ValueError(_CUT_OFF)
            tags[tag.number] = struct.unpack(f"{order}{tag.length}{_INTEGERS[tag.kind]}", content)
    return tags


def bytes_to_load(exif: bytes) -> int:
    """Returns how many bytes a decoder copies that loads all tags of an EXIF block."""
    total = 0
    with contextlib.suppress(ValueError):  # cut off: the decoder ends there as well
        for tag in _tags(exif):
            total += tag.size if tag.start + tag.size <= len(exif) else 0
    return total


class _Tag(NamedTuple):
    number: int
    kind: int  # of numbers
    length: int
    size: int  # bytes
    start: int


def _tags(encoded: bytes) -> Iterator[_Tag]:
    order = _order(encoded)
    place, counter, entry = ("Q", "Q", "HHQ8s") if b"+" in encoded[2:4] else ("I", "H", "HHI4s")
    try:
        (at,) = struct.unpack_from(order + place, encoded, 8 if place == "Q" else 4)
        (number,) = struct.unpack_from(order + counter, encoded, at)
        at += struct.calcsize(order + counter)
        if number > _MAX_TAGS:
            raise ValueError(f"the TIFF claims {number} tags; refused")
        for _ in range(number):
            tag, kind, count, value = struct.unpack_from(order + entry, encoded, at)
            at += struct.calcsize(order + entry)
            size, start = count * _TYPE_BYTES.get(kind, 1), at - len(value)
            if size > len(value):
                (start,) = struct.unpack(order + place, value)
            yield _Tag(tag, kind, count, size, start)
    except struct.error:
        raise ValueError(_CUT_OFF) from None


def _order(encoded: bytes) -> str:
    return "<" if encoded.startswith(b"II") else ">"


def complaint(tags: Mapping[int, Sequence[int]]) -> str | None:
    """Returns why the bands of a TIFF cannot be read as an image, and what to give; or None.

    A band beyond grey or colours counts as alpha only if the file declares it as alpha.
    """
    photometric = (*tags.get(PHOTOMETRIC, ()), WHITE_IS_ZERO)[0]
    number = (*tags.get(BANDS, ()), 1)[0]
    bits = set(tags.get(BITS, (1,)))
    formats = set(tags.get(SAMPLE_FORMAT, (1,)))
    extra = tuple(tags.get(EXTRA_BANDS, ()))
    colors, depths, depths_beside_alpha = _READ.get(photometric, (0, (), ()))
    alpha = number == colors + 1 and extra in _ALPHA
    if alpha:
        depths = depths_beside_alpha
    if (number == colors or alpha) and len(bits) == 1 and bits <= {*depths} and formats == {1}:
        return None
    noun = "1 band" if number == 1 else f"{number} bands"
    depth = " and ".join(map(str, sorted(bits))) + " bit" + ("" if bits == {1} else "s")
    found = f"a TIFF of {noun} of {depth}{_FORMATS.get(max(formats), '')}"
    if number not in (1, 3, 4) or (number == 4 and not alpha and colors != 4):
        undeclared = number == 4 and colors == 3
        why = ", the fourth of which is not declared as alpha" if undeclared else ""
        return f"{found}{why}; give 3 (red, green and blue) or 1 (grey)"
    if formats != {1} or not bits <= {8, 16}:
        return f"{found}; give 8 or 16 bits (unsigned integers)"
    return (
        f"{found} with photometric interpretation {photometric}, which is not read; give grey, "
        "palette or RGB"
    )
