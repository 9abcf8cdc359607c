"""What a run shows while it goes: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm


class Progress:
    """The progress of the steps of a run."""

    def __init__(self, total: int, *, stream: TextIO | None = None, enabled: bool = True):
        """
        Args:
          total: steps of the run.
          stream: where to write; stderr by default. A bar is drawn where it is a terminal.
          enabled: False shows nothing (all processes but the first).
        """
        self._stream = stream or sys.stderr
        self._total, self._enabled = total, enabled
        self._first, self._began = 0, time.perf_counter()
        self._bar = None

    def start(self, done: int) -> None:
        """Begin to count, at `done` steps; before it there are only lines."""
        self._first, self._began = done, time.perf_counter()
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=done,
                unit="step",
                file=self._stream,
                dynamic_ncols=True,
            )

    def restart_clock(self, step: int) -> None:
        """Leave out of the ETA what came before, such as the compilation of the first step."""
        self._first, self._began = step, time.perf_counter()

    def advance(self, step: int) -> None:
        """Note that `step` steps were given to the device."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a log point.

        Args:
          step: steps done.
          values: "loss", "learning_rate", "images_per_second", "data_wait" (share of the time).
        """
        text = (
            f"loss {values['loss']:.4f}, lr {values['learning_rate']:.2e}, "
            f"{values['images_per_second']:.1f} images/s, data wait {values['data_wait']:.0%}"
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=True)
        else:
            self.say(f"step {step}/{self._total}: {text}, ETA {format_seconds(self._left(step))}")

    def say(self, text: str) -> None:
        """Print lines of their own, above the bar where there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _left(self, step: int) -> float:
        """Seconds to the end at the pace of this start, its evaluations and saves included."""
        done = max(step - self._first, 1)
        return (time.perf_counter() - self._began) / done * (self._total - step)


def format_seconds(seconds: float) -> str:
    """`1:02:03` or `02:03`.

    >>> format_seconds(3723), format_seconds(65)
    ('1:02:03', '01:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
