"""Train a model: `python train.py --config=configs/deeplab.py:data=shapes --workdir=runs/shapes`.

The same command goes on with a run that was stopped or killed. Exit codes: 0 done; 1 an error,
named on stderr; 2 a wrong flag or setting; 3 the loss is not finite; 75 stopped by SIGTERM or
SIGINT, with everything saved.
"""

import logging
import os
import pathlib
import re
import runpy
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags

from flaxseg.errors import ConfigError, FlaxsegError
from flaxseg.host_memory import keep_freed_memory
from flaxseg.training.compilation import enable_compilation_cache
from flaxseg.training.config import did_you_mean, field_names
from flaxseg.training.signals import EXIT_STOPPED

_CONFIG_FILE = str(pathlib.Path(__file__).resolve().parent / "configs" / "deeplab.py")
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,  # put in by parse_flags: as a default here, wrong fields would raise on import
    "The recipe, by default configs/deeplab.py, such as configs/deeplab.py:data=camvid; set any of "
    "its fields with --config.FIELD=VALUE.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; by default runs/MODEL_DATA. A run in it is continued."
)
_MULTI_PROCESS = flags.DEFINE_boolean(
    "multi_process", False, "Join the other processes of a TPU pod or cluster (on every host)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where no cluster says it; see docs/training.md."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Of the run; with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Of this process, counted from 0; with --coordinator."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    "",
    "Folder for compiled programs, by default one in the user's cache; 'off' to keep none.",
)


def main(argv: list[str]) -> int:
    """Run the training that the flags describe; returns the exit code."""
    try:
        if len(argv) > 1:
            raise ConfigError(f"unknown argument {argv[1]!r}; flags begin with --")
        _set_up_logging()
        keep_freed_memory()
        if _CACHE.value != "off":
            enable_compilation_cache(_CACHE.value or None)
        if _MULTI_PROCESS.value or _COORDINATOR.value:
            _join_processes()
        config = _CONFIG.value
        workdir = _WORKDIR.value or f"runs/{config.model.name}_{config.data.name}"

        from flaxseg.training import train_and_evaluate  # slow to import, needless for bad flags

        result = train_and_evaluate(config, workdir)
    except FlaxsegError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted before the first step; there is nothing to save", file=sys.stderr)
        return 130
    return EXIT_STOPPED if result.stopped_by else 0


def _join_processes() -> None:
    """Connect to the other processes; ConfigError where nothing says who they are."""
    given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COORDINATOR.value and None in given:
        raise ConfigError(
            "--coordinator needs --num_processes and --process_id, the same command on each host "
            "but for --process_id, which counts from 0"
        )
    try:
        jax.distributed.initialize(*(value if value != "" else None for value in given))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the processes of the run did not come together: {error}. TPU pods, Slurm and "
            "Kubernetes tell who they are; elsewhere give --coordinator=HOST:PORT of process 0, "
            "--num_processes and --process_id on each host, and let the port through the firewall."
        ) from error


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line as `absl.app` does; mistakes in it end the program with code 2."""
    if not any(_names_config(argument) for argument in argv):
        argv = [argv[0], f"--config={_CONFIG_FILE}", *argv[1:]]
    try:
        # Before the fields of the config: a config that is not there has none.
        left = flags.FLAGS(argv)
        _ = _CONFIG.value.seed
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(_report(_as_config_error(error, argv)))
    return left


def _as_config_error(error: Exception, argv: list[str]) -> ConfigError:
    """What was wrong on the command line, in one message."""
    # What a config file raises is raised once more with its traceback as the message.
    cause, found = error, None
    while cause is not None:
        found = cause if isinstance(cause, ConfigError) else found
        cause = cause.__cause__ or cause.__context__
    if found is not None:
        return found
    if isinstance(error, OSError):
        file = flags.FLAGS["config"].config_filename
        return ConfigError(f"--config={file} can not be read; recipes are in configs/*.py.")
    if isinstance(error, (AttributeError, KeyError)):
        known = field_names(_recipe(argv))
        sections = {field.rsplit(".", 1)[0] for field in known}
        for argument in argv[1:]:
            name = argument.lstrip("-").split("=")[0]
            field = name.removeprefix("config.")
            if name != field and field not in known and field not in sections:
                return ConfigError(
                    f"--{name}: the config has no field {field!r}.{did_you_mean(field, known)}"
                )
    return ConfigError(f"the command line can not be read: {error}")


def _names_config(argument: str) -> bool:
    return re.match(r"--?config(=|$)", argument) is not None


def _recipe(argv: list[str]) -> config_dict.ConfigDict:
    """The config that the command line names, before any of its fields is overridden."""
    last = max(index for index, argument in enumerate(argv) if _names_config(argument))
    _, equals, spec = argv[last].partition("=")
    file, colon, argument = (spec if equals else argv[last + 1]).partition(":")
    get_config = runpy.run_path(file)["get_config"]
    return get_config(argument) if colon else get_config()


def _set_up_logging() -> None:
    """Warnings of flaxseg on stderr; other libraries are heard only where something fails."""
    absl_logging.use_python_logging(quiet=True)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)


def _report(error: FlaxsegError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        # Leaving in good order would wait minutes for the other processes, which wait for this one.
        os._exit(error.exit_code)
    return error.exit_code


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
