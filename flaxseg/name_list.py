"""Reads lists of file names, as editors and programs write them."""

import os

from flaxseg.errors import DataError

_UTF_8_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def names_in_list(content: bytes) -> list[str]:
    r"""Returns the names in a list: one per line, or with zero bytes between them (`find -print0`).

    Names are bytes to the system; those that are not UTF-8 are kept as `os.fsdecode` has them.
    Empty lines and a byte order mark are left out.

    >>> names_in_list(b"\xef\xbb\xbfa.png\r\nwith space.png\r\n")
    ['a.png', 'with space.png']
    >>> names_in_list(b"a.png\x00b.png\x00")
    ['a.png', 'b.png']

    Raises:
      DataError: the list is in UTF-16.
    """
    if content.startswith(_UTF_16_MARKS) or _has_zeros_in_turn(content):
        raise DataError("the list is in UTF-16; save it as UTF-8, with one name per line.")
    text = os.fsdecode(content.removeprefix(_UTF_8_MARK))
    if "\0" in text:
        return [name for name in text.split("\0") if name.strip()]
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _has_zeros_in_turn(content: bytes) -> bool:
    """Returns whether every second byte of the start is zero, as in UTF-16 without a mark."""
    start = content[:64]
    pairs = len(start) // 2
    return pairs > 2 and pairs in (start[::2].count(0), start[1::2].count(0))
