"""Rules for the values of settings; each group of settings lists its own and checks them once.

Numbers end up as float32, and counts as int32: a value beyond these is out of range whatever the
setting means.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flaxseg.errors import ConfigError, DataError, SettingsError, near

Made = TypeVar("Made")

Rule = Callable[[Any], str]
"""Returns "" for a good value, else what is wanted, as it stands after "it must be"."""

LARGEST_COUNT = 2**31 - 1
MAX_WORKERS = 1024
"""Threads, or processes, that read."""

LARGEST_SEED = 2**32 - 1
LARGEST_SIDE = 2**16
"""Of an image, in pixels."""

_LARGEST = 3.4028234e38
_SMALLEST = 1.1754944e-38  # above 0 and not a denormal, which devices take for 0

_MAX_SHOWN = 2000  # characters of a problem


def one_of(*known: str) -> Rule:
    """Returns the rule of a choice between names."""

    def rule(value: str) -> str:
        return "" if value in known else f"one of {', '.join(known)}.{near(value, known)}"

    return rule


def member_of(known: Sequence[object]) -> Rule:
    """Returns the rule of a choice between values."""
    return lambda value: "" if value in known else f"one of {', '.join(map(repr, known))}"


def at_least(low: float, most: float = _LARGEST) -> Rule:
    """Returns the rule of a finite number with a smallest value."""

    def rule(value: float) -> str:
        if low <= value <= most:
            return ""
        bound = most if isinstance(most, int) else f"{most:g}"
        return f"at least {low} and at most {bound}" if value > most else f"at least {low}"

    return rule


def count_from(low: int) -> Rule:
    """Returns the rule of a whole number with a smallest value."""
    return at_least(low, LARGEST_COUNT)


def above(low: float) -> Rule:
    """Returns the rule of a finite number above another."""

    def rule(value: float) -> str:
        if low < value <= _LARGEST and value - low >= _SMALLEST:
            return ""
        bounds = f" by {_SMALLEST:g} or more, and at most {_LARGEST:g}" if value > low else ""
        return f"more than {low}{bounds}"

    return rule


def within(low: float, high: float) -> Rule:
    """Returns the rule of a number in ``[low, high)``."""
    return lambda value: "" if low <= value < high else f"at least {low} and less than {high}"


def between(low: float, high: float) -> Rule:
    """Returns the rule of a number in ``[low, high]``."""
    return lambda value: "" if low <= value <= high else f"at least {low} and at most {high}"


def share(value: float) -> str:
    """Returns the rule of a number in ``(0, 1]``."""
    return "" if _SMALLEST <= value <= 1 else "more than 0 and at most 1"


SEEDS = between(0, LARGEST_SEED)
"""The rule of what random numbers begin with."""


def image_size(low: int) -> Rule:
    """Returns the rule of a size with a smallest side."""

    def rule(value: tuple[int, int]) -> str:
        good = len(value) == 2 and all(
            isinstance(side, int) and low <= side <= LARGEST_SIDE for side in value
        )
        wanted = f"(height, width) in pixels, each a whole number from {low} to {LARGEST_SIDE}"
        return "" if good else wanted

    return rule


def broken_rules(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> list[tuple[str, str]]:
    """Returns the problems of `SettingsError`: the settings that break their rule.

    >>> broken_rules({"power": 0.0, "factor": 0.5}, {"power": above(0), "factor": above(0)})
    [('power', 'is 0.0; it must be more than 0')]
    """
    wanted = {name: rule(values[name]) for name, rule in rules.items()}
    return [
        (name, f"is {values[name]!r}; it must be {text}") for name, text in wanted.items() if text
    ]


def check_rules(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raises SettingsError for the settings that break their rule."""
    raise_problems(broken_rules(values, rules))


def raise_problems(problems: list[tuple[str, str]]) -> None:
    """Raises SettingsError where there are problems."""
    if problems:
        raise SettingsError(problems)


class Problems:
    """Collects what is wrong with settings, under the names of the config's fields."""

    def __init__(self):
        self._found: list[str] = []

    def make(
        self,
        section: str,
        function: Callable[..., Made],
        *arguments: Any,
        fields: Mapping[str, str] | None = None,
        **named: Any,
    ) -> Made | None:
        """Returns what `function` makes of its arguments, or None where they are wrong.

        A function that only checks, and returns nothing, counts as having made True.

        Args:
          section: what stands before the name of a setting in the config: "optimizer.".
          function: raises `SettingsError` or another error that says what is wrong.
          *arguments: for it.
          fields: the whole names of settings that stand elsewhere.
          **named: for it.
        """
        fields = fields or {}
        try:
            made = function(*arguments, **named)
            return True if made is None else made
        except SettingsError as error:
            for name, text in error.problems:
                self._found.append(f"{fields.get(name, f'{section}{name}')} {text}")
        except (ConfigError, DataError) as error:
            self._found.append(f"{section.rstrip('.')}: {error}")
        return None

    def raise_all(self) -> None:
        """Raises ConfigError with all problems, if there are any."""
        raise_listed(self._found)


def raise_listed(problems: list[str]) -> None:
    """Raises ConfigError that lists the problems of a config, if there are any."""
    found = [_shortened(problem) for problem in dict.fromkeys(problems)]
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError(f"{count} in the config:\n" + "\n".join(f"  - {p}" for p in found))


def is_finite(value: float) -> bool:
    """Returns whether a number is finite as float32."""
    return -_LARGEST <= value <= _LARGEST


def _shortened(problem: str) -> str:
    """Returns a problem without the middle of an endless value in it."""
    half = _MAX_SHOWN // 2
    return problem if len(problem) <= _MAX_SHOWN else f"{problem[:half]} ... {problem[-half:]}"
