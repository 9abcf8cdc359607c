"""Shows how far a piece of work is: a bar on a terminal, a few plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

import tqdm


class Progress:
    """Shows the progress of counted work on stderr.

    Args:
      what: what is being done, such as "checking camvid".
      total: number of items, or of bytes where `unit` is "B"; None if it is not known.
      unit: what is counted, in the singular, such as "image"; "B" counts bytes.
      done: items that were done before.
      enabled: False shows nothing.
      stream: where to write; stderr by default. A bar is drawn where it is a terminal.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str = "image",
        *,
        done: int = 0,
        enabled: bool = True,
        stream: TextIO | None = None,
    ):
        self._what, self._total, self._unit = what, total, unit
        self._stream = stream or sys.stderr
        self._done = self._shown = done
        terminal = self._stream.isatty()
        self._plain = enabled and not terminal
        self._bar = None
        if enabled and terminal:
            self._bar = tqdm.tqdm(
                desc=what,
                total=total,
                initial=done,
                unit=unit if unit == "B" else f" {unit}s",
                unit_scale=unit == "B",
                file=self._stream,
                dynamic_ncols=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the bar, or prints the last count where it has not been printed."""
        if self._bar is not None:
            with _unheard():
                self._bar.close()
        elif self._plain and self._done > self._shown:
            self._print()

    def advance(self, number: int = 1) -> None:
        """Counts `number` more items as done."""
        self.show(self._done + number)

    def show(self, done: int, total: int | None = None) -> None:
        """Sets how many items are done, and of how many where that has changed."""
        self._total = self._total if total is None else total
        self._done = done
        if self._bar is not None:
            self._bar.total = self._total
            with _unheard():
                self._bar.update(done - self._bar.n)
        elif self._plain and (done == self._total or done - self._shown >= self._interval()):
            self._print()

    def note(self, text: str) -> None:
        """Writes a remark behind the bar, in place of the last one."""
        if self._bar is not None:
            with _unheard():
                self._bar.set_postfix_str(text)

    def print(self, text: str) -> None:
        """Prints a line of output on stdout, above the bar."""
        tqdm.tqdm.write(text, file=sys.stdout)

    def say(self, text: str) -> None:
        """Prints a remark on stderr, above the bar."""
        with _unheard():
            tqdm.tqdm.write(text, file=self._stream)

    def _interval(self) -> int:
        """Returns the items between two plain lines: a quarter of all, or 32 MiB."""
        return max(1, self._total // 4) if self._total else 32 << 20

    def _print(self) -> None:
        self._shown = self._done
        of_total = f" of {self._total}" if self._total else ""
        unit = self._unit if self._unit == "B" else f"{self._unit}s"
        print_line(f"{self._what}: {self._done}{of_total} {unit}", self._stream)


def print_line(text: str, stream: TextIO) -> None:
    """Prints a line; a terminal that is gone, or a full disk under a log, is no reason to stop."""
    with _unheard():
        print(text, file=stream, flush=True)


def _unheard() -> contextlib.AbstractContextManager:
    return contextlib.suppress(OSError, ValueError)  # ValueError: the stream is closed


@contextlib.contextmanager
def several(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `show(what, done, total)`, which draws a bar for each kind of work.

    Args:
      unit: what is counted, in the singular.
    """
    shown: dict[str, Progress] = {}
    with contextlib.ExitStack() as stack:

        def show(what: str, done: int, total: int) -> None:
            if what not in shown:
                shown[what] = stack.enter_context(Progress(what, total, unit))
            shown[what].show(done, total)

        yield show
