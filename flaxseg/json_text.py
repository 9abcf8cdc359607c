"""Reads JSON that anyone may have written."""

import json
import math
from typing import Any

from flaxseg.files import reading
from flaxseg.paths import PathLike, as_path

MAX_BYTES = 16 * 2**20
"""A larger file is refused before it is read; those of flaxseg have a few kilobytes."""


def read_json(path: PathLike) -> Any:
    """Returns what a JSON file holds.

    Raises:
      OSError: it cannot be read.
      ValueError: as for `parse_json`, or it is too large.
    """
    with reading(path), as_path(path).open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has too many bytes; at most {MAX_BYTES} are read")
    return parse_json(content)


def parse_json(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
      ValueError: it is not JSON, is nested too deeply, or has a number that is not finite.

    >>> parse_json('{"steps": 3}')
    {'steps': 3}
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has the number {text}, which is not finite")
    return value


Form = type | list["Form"] | tuple["Form", ...] | dict[str, "Form"]
"""A type; `[form]` for a list of such values, `(form, form)` for a list of these, and
`{"": form}` for an object whose values have the form."""


def has_form(value: Any, form: Form) -> bool:
    """Returns whether a JSON value has a form.

    >>> has_form({"train": [3, "a"]}, {"": (int, str)})
    True
    """
    if isinstance(form, list):
        return type(value) is list and all(has_form(item, form[0]) for item in value)
    if isinstance(form, tuple):
        return has_form(value, list) and len(value) == len(form) and all(map(has_form, value, form))
    if isinstance(form, dict):
        return type(value) is dict and all(has_form(item, form[""]) for item in value.values())
    return type(value) is form
