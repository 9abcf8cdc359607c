"""Reads the lists and pairs in text fields of a config: `a, b` and `key=value, key=value`."""

import math
from typing import TypeVar

from flaxseg.errors import ConfigError
from flaxseg.settings import is_finite

Number = TypeVar("Number", int, float)


def names_in(text: str) -> tuple[str, ...]:
    """Returns the names in a field that holds several.

    >>> names_in("head, backbone/layer1_*")
    ('head', 'backbone/layer1_*')
    """
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def pairs_in(text: str) -> dict[str, str]:
    """Returns the pairs in a field that holds several.

    >>> pairs_in("variant=v3, data=camvid")
    {'variant': 'v3', 'data': 'camvid'}

    Raises:
      ConfigError: a part is not a pair, or a key comes twice.
    """
    pairs: dict[str, str] = {}
    for part in names_in(text):
        key, equals, value = (word.strip() for word in part.rpartition("="))
        if not (key and equals and value):
            raise ConfigError(f"{part!r} is not understood; write key=value, key=value")
        if key in pairs:
            raise ConfigError(f"{key!r} comes twice in {text!r}; write it once")
        pairs[key] = value
    return pairs


def numbers_in(text: str, kind: type[Number]) -> dict[str, Number]:
    """Returns the numbers in a field that holds pairs.

    >>> numbers_in("head/conv=0.1, *classifier=10", float)
    {'head/conv': 0.1, '*classifier': 10.0}

    Raises:
      ConfigError: as for `pairs_in`, or a value is not a finite number of this kind.
    """
    numbers = {}
    for key, value in pairs_in(text).items():
        try:
            numbers[key] = kind(value)
        except ValueError:
            numbers[key] = math.nan
        if not is_finite(numbers[key]):
            words = {int: "a whole number", float: "a number"}
            raise ConfigError(f"{key!r} is {value!r}; it must be {words[kind]}")
    return numbers
