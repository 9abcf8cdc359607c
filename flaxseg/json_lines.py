"""Reads files of JSON lines, such as the log of a run, of which some may be damaged."""

import json
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from flaxseg.errors import listed
from flaxseg.files import reading
from flaxseg.paths import PathLike, as_path

_log = logging.getLogger(__name__)

Entry = TypeVar("Entry")


def read_run_log(path: PathLike) -> list[dict[str, Any]]:
    """Returns the lines of the `metrics.jsonl` of a run, each with "kind" and "step".

    Damaged lines are left out, see `read_json_lines`.

    Raises:
      OSError: the file cannot be read.
    """
    return read_json_lines(
        path, lambda line: {"kind": str(line["kind"]), "step": int(line["step"]), **line}
    )


def read_json_lines(path: PathLike, parse: Callable[[dict[str, Any]], Entry]) -> list[Entry]:
    """Returns the entries of a file with a JSON object per line; damaged lines are left out.

    A warning names the damaged lines. What follows the last line break is half a line of a program
    that was killed or is still writing; it is left out without a word.

    Args:
      path: the file.
      parse: turns an object into an entry; a line is also damaged where it raises ValueError,
        KeyError, TypeError or AttributeError.

    Raises:
      OSError: the file cannot be read.
    """
    entries, damaged = [], []
    with reading(path):
        lines = as_path(path).read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entries.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            damaged.append(number)
    if damaged:
        lines = "line" if len(damaged) == 1 else "lines"
        _log.warning("%s: %s %s damaged and left out", path, lines, listed(damaged))
    return entries
