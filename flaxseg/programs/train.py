"""`flaxseg train`: trains a model by a recipe, or continues a run.

The flags of the config and of the processes are absl's, for ml_collections reads the fields of a
recipe from the command line by them.
"""

import logging
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flaxseg.errors import ConfigError, near
from flaxseg.paths import local_folder
from flaxseg.programs.recipe_list import find_recipe, load_recipe, recipe_names, table

if TYPE_CHECKING:
    from absl import flags
    from ml_collections import config_dict

NAME = "train"
SUMMARY = "train a model by a recipe, or continue a run"

_USAGE = """usage: {command} RECIPE [--config.FIELD=VALUE ...] [--workdir=DIR]

Trains a model by a recipe. The same command again continues a run that was stopped or killed.

RECIPE (or --config=RECIPE) is a name, with choices after a colon, or a file of your own:
{names}
'flaxseg recipes' says more about them, and 'flaxseg config RECIPE' prints all fields.

flags:
{flags}
fields that are set most often:
{fields}
exit codes: 0 done; 1 an error, named on stderr; 2 a wrong flag or setting; 3 the loss is not
finite; 4 the run hung, or lost one of its processes; 75 stopped by SIGTERM or SIGINT, with
everything saved, so that the same command continues

examples:
{examples}"""

_FLAGS = {
    "workdir": "folder of the run, by default runs/MODEL_DATA; a run in it is continued",
    "multi_process": "join the other processes of a TPU pod or cluster (give it on every host)",
    "coordinator": "HOST:PORT of process 0, where no cluster says it; see docs/training.md",
    "num_processes": "number of processes of the run; with --coordinator",
    "process_id": "number of this process, counted from 0; with --coordinator",
    "compilation_cache": "folder for compiled programs, by default in the user's cache; off: none",
}

FIELDS = {
    "steps": "optimizer steps of the whole run",
    "batch_size": "images per step, over all devices and processes",
    "dtype": "of the computation: float32 or bfloat16",
    "data.dir": "where prepared data sets are kept",
    "data.manual_dir": "the data set as its authors publish it, or your own images",
    "data.crop_size": "height and width of the crops, such as 321,321",
    "init.backbone": "weights of the backbone: a name, a file, or nothing for random ones",
    "init.model": "a saved model or another run to start from",
    "model.backbone": "'flaxseg models' lists them",
    "optimizer.learning_rate": "at the beginning",
    "optimizer.accumulate_steps": "parts that each batch is cut into, when memory is short",
    "eval.every_steps": "steps between evaluations",
    "checkpoint.every_steps": "steps between checkpoints",
}

_EXAMPLES = """  {command} deeplab:data=shapes --workdir=runs/shapes    # downloads nothing
  {command} deeplab:data=camvid --workdir=runs/camvid    # downloads CamVid and weights
  {command} fcn:variant=8s,data=folder --config.data.manual_dir=MY_IMAGES --workdir=runs/mine"""


def main(arguments: Sequence[str], command: str = "flaxseg train") -> int:
    """Runs the command and returns the exit code.

    Args:
      arguments: those after the name of the command.
      command: how the user calls it, for the help.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(help_text(command))
        return 0
    if not arguments:
        examples = _EXAMPLES.format(command=command)
        print(f"{table()}\n\nName a recipe to train by it:\n{examples}", flush=True)
        raise ConfigError(f"no recipe is given\nSee: {command} --help")
    config, given = parse_command_line(arguments)
    wanted = local_folder(given.compilation_cache)
    if wanted:
        raise ConfigError(
            f"--compilation_cache is {given.compilation_cache!r}; it must be {wanted}"
        )
    _set_up_logging()
    # Slow to import, and needless for a wrong flag.
    from flaxseg.training.compilation import enable_compilation_cache

    if given.compilation_cache != "off":
        enable_compilation_cache(given.compilation_cache or None)
    from flaxseg.training import train_and_evaluate
    from flaxseg.training.assemble import default_workdir
    from flaxseg.training.signals import EXIT_STOPPED

    if given.multi_process or given.coordinator:
        _join_processes(given.coordinator, given.num_processes, given.process_id)
    result = train_and_evaluate(config, given.workdir or default_workdir(config))
    return EXIT_STOPPED if result.stopped_by else 0


def help_text(command: str) -> str:
    """Returns the help: the recipes, the flags, and the fields that are set most often."""
    names = textwrap.indent(textwrap.fill(", ".join(recipe_names()), width=90), "  ")
    return _USAGE.format(
        command=command,
        names=names,
        flags="".join(f"  --{name:<18} {meaning}\n" for name, meaning in _FLAGS.items()),
        fields="".join(f"  --config.{name:<27} {text}\n" for name, text in FIELDS.items()),
        examples=_EXAMPLES.format(command=command),
    )


def parse_command_line(
    arguments: Sequence[str],
) -> "tuple[config_dict.ConfigDict, flags.FlagValues]":
    """Returns the config, with the fields set as the arguments say, and the flags beside it.

    Args:
      arguments: the recipe, as the first one or as `--config=RECIPE`, and flags.

    Raises:
      ConfigError: there is no such recipe, field or flag, or a value is not possible.
    """
    from absl import flags
    from ml_collections import config_flags

    recipe, others = _take_recipe(arguments)
    command_line = ["flaxseg", f"--config={find_recipe(recipe)}", *others]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=command_line)
    for name in ("workdir", "coordinator", "compilation_cache"):
        flags.DEFINE_string(name, "", _FLAGS[name], flag_values=values)
    for name in ("num_processes", "process_id"):
        flags.DEFINE_integer(name, None, _FLAGS[name], flag_values=values)
    flags.DEFINE_boolean("multi_process", False, _FLAGS["multi_process"], flag_values=values)
    try:
        left = values(command_line)[1:]
        _ = values.config.seed  # what a recipe raised is raised when its config is used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise _as_config_error(error, recipe, others) from error
    if left:
        raise ConfigError(f"unknown argument {left[0]!r}; flags begin with --")
    return values.config, values


def _take_recipe(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the recipe that the arguments name, and the other arguments."""
    others, recipes = [], []
    rest = iter(arguments)
    for number, argument in enumerate(rest):
        if re.match("--?config=", argument):
            recipes.append(argument.partition("=")[2])
        elif re.fullmatch("--?config", argument):
            recipes.append(next(rest, ""))
        elif number == 0 and not argument.startswith("-"):
            recipes.append(argument)
        else:
            others.append(argument)
    if len(recipes) != 1:
        given = "no recipe is given" if not recipes else f"{len(recipes)} recipes are given"
        raise ConfigError(
            f"{given}; give one as the first argument, such as deeplab:data=shapes, or as "
            "--config=RECIPE. 'flaxseg recipes' lists all."
        )
    return recipes[0], others


def _as_config_error(error: Exception, recipe: str, others: Sequence[str]) -> ConfigError:
    """Returns what was wrong on the command line as one error."""
    # What a recipe raises, ml_collections raises once more with the traceback as its message.
    cause, found = error, None
    while cause is not None:
        found = cause if isinstance(cause, ConfigError) else found
        cause = cause.__cause__ or cause.__context__
    if found is not None:
        return found
    if isinstance(error, (AttributeError, KeyError)):
        from flaxseg.training.config import field_names

        known = field_names(load_recipe(recipe))
        sections = {field.rsplit(".", 1)[0] for field in known}
        for argument in others:
            name = argument.lstrip("-").split("=")[0]
            field = name.removeprefix("config.")
            if name != field and field not in known and field not in sections:
                return ConfigError(
                    f"--{name}: the config has no field {field!r}.{near(field, known)}"
                )
    return ConfigError(f"the command line cannot be read: {error}")


def _join_processes(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Connects to the other processes of the run.

    Raises:
      ConfigError: a number is missing, or the processes cannot find each other.
    """
    import jax

    if coordinator and None in (num_processes, process_id):
        raise ConfigError(
            "--coordinator needs --num_processes and --process_id, the same command on each host "
            "but for --process_id, which counts from 0"
        )
    # JAX's own handling of SIGTERM would take the place of `flaxseg.training.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator or None, num_processes, process_id)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the processes of the run cannot connect: {error}. TPU pods, Slurm and Kubernetes "
            "tell the processes who they are; elsewhere give --coordinator=HOST:PORT of process 0, "
            "--num_processes and --process_id on each host, and let the port through the firewall."
        ) from error


def _set_up_logging() -> None:
    """Shows warnings of flaxseg on stderr, and of other libraries only errors."""
    from absl import logging as absl_logging

    absl_logging.use_python_logging(quiet=True)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
