"""Brings texts into the characters that the font of all drawings has.

Pillow's own font, which every installation has, knows little more than ASCII, and draws a box for
any other character. Fonts of all scripts would be larger than this library.
"""

import functools
import logging
import unicodedata
from collections.abc import Iterable

from anyascii import anyascii
from PIL import ImageFont

from flaxseg.errors import listed

_log = logging.getLogger(__name__)

_NO_CHARACTER = "\uffff"


def drawable(text: str) -> str:
    """Returns a text with Latin letters in place of the characters that the font lacks.

    >>> drawable("road, дорога, 道路")
    'road, doroga, DaoLu'
    """
    return "".join(_drawable(character) for character in unicodedata.normalize("NFC", text))


def drawable_names(class_names: Iterable[object]) -> tuple[str, ...]:
    """Returns `drawable` names of classes; a warning says, once for each list, which are others."""
    return _drawable_names(tuple(map(str, class_names)))


@functools.lru_cache(maxsize=16)
def _drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(map(drawable, class_names))
    pairs = zip(class_names, names, strict=True)
    changed = [f"{name} as {drawn}" for name, drawn in pairs if name != drawn]
    if changed:
        _log.warning(
            "the font of drawings lacks characters of these class names; they are drawn in Latin "
            "letters: %s",
            listed(changed),
        )
    return names


@functools.lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    if _drawn(character) != _drawn(_NO_CHARACTER):
        return character
    # Marks that have no letter of their own belong to the letter before them.
    is_mark = unicodedata.category(character) in ("Mn", "Mc", "Cf")
    return anyascii(character) or ("" if is_mark else "?")


@functools.lru_cache(maxsize=4096)
def _drawn(character: str) -> tuple[tuple[int, int], bytes]:
    mask = ImageFont.load_default(size=20).getmask(character)
    return mask.size, bytes(mask)
