"""Folders that can be written to, and progress bars."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import tqdm

from flaxseg.errors import DataError


def output_folder(path: str) -> pathlib.Path:
    """The folder, made if need be; that it can be written to is tried before any work is done."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".flaxseg-{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"can not write to the output folder {folder}: {error.strerror or error}; choose "
            "another --out."
        ) from error
    return folder


class Bar:
    """A progress bar on stderr where that is a terminal, a few plain lines elsewhere."""

    def __init__(self, total: int, what: str, unit: str):
        self._total, self._what, self._unit = total, what, unit
        self._shown = 0
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm.tqdm(total=total, desc=what, unit=unit, file=sys.stderr) if terminal else None
        )

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int | None = None) -> None:
        """Sets how many are done, and of how many where that has changed."""
        self._total = self._total if total is None else total
        if self._bar is not None:
            self._bar.total = self._total
            self._bar.update(done - self._bar.n)
        elif done == self._total or 4 * (done - self._shown) >= self._total:
            self._shown = done
            print(
                f"{self._what}: {done} of {self._total} {self._unit}s", file=sys.stderr, flush=True
            )

    def print(self, text: str) -> None:
        """A line of output, above the bar."""
        # Names of files may hold bytes that are no text.
        tqdm.tqdm.write(text.encode(errors="backslashreplace").decode(), file=sys.stdout)

    def say(self, text: str) -> None:
        """A remark on stderr, above the bar."""
        tqdm.tqdm.write(text, file=sys.stderr)


@contextlib.contextmanager
def bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that shows how many are done of several kinds of work, a bar each, which
    begins when the work does: `show(what, done, total)`."""
    shown: dict[str, Bar] = {}
    with contextlib.ExitStack() as stack:

        def show(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = stack.enter_context(Bar(total, what, unit))
            shown[what].show(done, total)

        yield show
