"""Shows how far a run is: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from flaxseg.progress import Progress, print_line


class RunProgress:
    """Shows the steps of a run, its numbers, and when it will be done.

    Args:
      total: steps of the run.
      stream: where to write; stderr by default. A bar is drawn where it is a terminal.
      enabled: False shows nothing (all processes but the first).
    """

    def __init__(self, total: int, *, stream: TextIO | None = None, enabled: bool = True):
        self._stream = stream or sys.stderr
        self._total, self._enabled = total, enabled
        self._first, self._began = 0, time.perf_counter()
        self._bar: Progress | None = None

    def start(self, done: int) -> None:
        """Begins to count, at `done` steps; before it there are only lines."""
        self.restart_clock(done)
        if self._enabled and self._stream.isatty():
            self._bar = Progress("training", self._total, "step", done=done, stream=self._stream)

    def restart_clock(self, step: int) -> None:
        """Leaves out of the ETA what came before, such as the compilation of the first step."""
        self._first, self._began = step, time.perf_counter()

    def advance(self, step: int) -> None:
        """Notes that `step` steps were given to the device."""
        if self._bar is not None:
            self._bar.show(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the numbers of a log point.

        Args:
          step: steps done.
          values: "loss", "learning_rate", "images_per_second", "data_wait" (share of the time).
            Numbers that are not known, such as the speed of a step that was compiled, are nan, and
            are left out.
        """
        formats = {
            "loss": "loss {:.4f}",
            "learning_rate": "lr {:.2e}",
            "images_per_second": "{:.1f} images/s",
            "data_wait": "data wait {:.0%}",
        }
        known = [
            text.format(values[name])
            for name, text in formats.items()
            if math.isfinite(values[name])
        ]
        if self._bar is not None:
            self._bar.note(", ".join(known))
            return
        if step > self._first:
            known.append(f"ETA {format_seconds(self._left(step))}")
        self.say(f"step {step}/{self._total}: {', '.join(known)}")

    def say(self, text: str) -> None:
        """Prints lines of their own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.say(text)
        elif self._enabled:
            print_line(text, self._stream)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> float:
        """Returns the seconds to the end at the pace so far, evaluations and saves included."""
        pace = (time.perf_counter() - self._began) / (step - self._first)
        return pace * (self._total - step)


def format_seconds(seconds: float) -> str:
    """Returns `1:02:03` or `02:03`.

    >>> format_seconds(3723), format_seconds(65)
    ('1:02:03', '01:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
