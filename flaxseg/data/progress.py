"""How far the preparation of a data set is: a bar on a terminal, a few plain lines elsewhere."""

import sys

import tqdm


class Progress:
    """Counts done items on stderr.

    Args:
      what: what is being done, such as "checking camvid".
      total: number of items, or of bytes where `unit` is "B"; None if not known.
      enabled: False shows nothing.
      unit: what is counted.
    """

    def __init__(self, what: str, total: int | None, enabled: bool = True, unit: str = "pictures"):
        self._what, self._total, self._unit = what, total, unit
        self._done = self._shown = 0
        self._plain = enabled and not sys.stderr.isatty()
        self._bar = None
        if enabled and not self._plain:
            scaled = unit == "B"
            self._bar = tqdm.tqdm(
                desc=what, total=total, unit=unit if scaled else f" {unit}", unit_scale=scaled
            )

    def advance(self, number: int = 1) -> None:
        """Counts `number` more items as done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._plain and self._done - self._shown >= self._step():
            self._print()

    def _step(self) -> int:
        """Items between two plain lines: a quarter of all, or 32 MiB."""
        return max(1, self._total // 4) if self._total else 32 << 20

    def _print(self) -> None:
        self._shown = self._done
        of_total = f" of {self._total}" if self._total else ""
        print(f"{self._what}: {self._done}{of_total} {self._unit}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._plain and self._done > self._shown:
            self._print()
