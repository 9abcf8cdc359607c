"""The errors that flaxseg raises for what a user gave it or asked of it.

Each message says what was wrong, the value got, the value wanted, and what to do. The programs
print such a message without a traceback and exit with the code in `exit_code`; anything else that
is raised is a defect of flaxseg and keeps its traceback.
"""


class FlaxsegError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


class ConfigError(FlaxsegError, ValueError):
    """A setting is unknown, impossible, or in conflict with another one."""

    exit_code = 2


class DataError(FlaxsegError):
    """A data set is missing, or one of its files can not be used."""


class CheckpointError(FlaxsegError):
    """A checkpoint is missing, damaged, or does not fit the run; or it could not be written."""


class WeightsError(FlaxsegError):
    """Weights that were asked for could not be found, read, or fitted to the model."""


class ExportError(FlaxsegError):
    """A model can not be exported: a package is missing, or the format lacks an operation."""


class NonFiniteLossError(FlaxsegError):
    """The loss or its gradient became infinite or not a number."""

    exit_code = 3
