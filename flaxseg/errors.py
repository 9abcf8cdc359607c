"""Defines the errors for what a user gave or asked for, and the words their messages share.

Each message says what was wrong, the value got, the value wanted, and what to do. The programs
print such a message without a traceback and exit with the code in `exit_code`; anything else that
is raised is a defect of flaxseg and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class FlaxsegError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


class ConfigError(FlaxsegError, ValueError):
    """A setting or a name is unknown, impossible, or in conflict with another one."""

    exit_code = 2


class SettingsError(ConfigError):
    """Some values of a group of settings are wrong; whoever holds them can say where each stands.

    Args:
      problems: the name of each wrong setting, and what to say after its name.

    Attributes:
      problems: the same.

    Examples:
      >>> print(SettingsError([("momentum", "is 1.5; it must be less than 1.")]))
      momentum is 1.5; it must be less than 1.
    """

    def __init__(self, problems: Iterable[tuple[str, str]]):
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{name} {text}" for name, text in self.problems))


class DataError(FlaxsegError):
    """A data set is missing, or one of its files cannot be used."""


class NotPreparedError(DataError):
    """A data set has not been prepared yet."""


class CheckpointError(FlaxsegError):
    """A checkpoint is missing or damaged, or does not fit the run; or its folder cannot be used."""


class WriteError(FlaxsegError, OSError):
    """A file or folder cannot be written: the disk is full, read-only, or a permission is missing.

    It is an `OSError` with the `errno` of its cause, and its message names what was to be written.
    """


class ReadError(FlaxsegError, OSError):
    """A file or folder in a bucket cannot be read: no connection, credentials or permission."""


class WeightsError(FlaxsegError):
    """Weights that were asked for could not be found, read, or fitted to the model."""


class ExportError(FlaxsegError):
    """A model cannot be exported: a package is missing, or the format lacks an operation."""


class NonFiniteLossError(FlaxsegError):
    """The loss or its gradient became infinite or not a number."""

    exit_code = 3


class HungError(FlaxsegError):
    """A run made no progress for so long that it was ended, or one of its processes is gone."""

    exit_code = 4


class MissingPackageError(FlaxsegError, ImportError):
    """A package is missing that only one of the extras of flaxseg brings."""


# Of each extra, the packages by the names that they are imported by.
_EXTRAS = {
    "train": (
        *("absl", "array_record", "cv2", "grain", "huggingface_hub", "ml_collections", "optax"),
        *("orbax", "tensorboardX", "tensorflow_datasets"),
    ),
}


def missing_package(error: ModuleNotFoundError) -> MissingPackageError | None:
    """Returns the error that says which extra brings the package that was not found, or None.

    >>> print(missing_package(ModuleNotFoundError(name="grain.python")))
    the package 'grain' is not installed; it comes with: pip install "flaxseg[train]"
    """
    package = (error.name or "").partition(".")[0]
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return MissingPackageError(
                f"the package {package!r} is not installed; it comes with: "
                f'pip install "flaxseg[{extra}]"'
            )
    return None


def near(name: object, known: Iterable[str]) -> str:
    """Returns a question after the known name nearest to `name`, or "" where none is near.

    >>> near("resnet5O", ["resnet50", "vgg16"])
    " Did you mean 'resnet50'?"
    """
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def listed(items: Iterable[object], most: int = 6) -> str:
    """Returns the first items of a list in words, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    items = [str(item) for item in items]
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
