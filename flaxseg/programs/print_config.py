"""`flaxseg config`: prints the config that a training would have."""

import sys
from collections.abc import Sequence

from flaxseg.errors import ConfigError
from flaxseg.programs.train import parse_command_line

NAME = "config"
SUMMARY = "print the config of a recipe, with all its fields"

_HELP = """usage: {command} RECIPE [--config.FIELD=VALUE ...]

Prints every field of the config that 'train' would have with the same arguments, a line each. Any
of them can be set: --config.FIELD=VALUE.

examples:
  {command} deeplab:data=camvid
  {command} pspnet:data=cityscapes --config.optimizer.learning_rate=0.02"""


def main(arguments: Sequence[str], command: str = "flaxseg config") -> int:
    """Runs the command and returns the exit code.

    Args:
      arguments: those after the name of the command.
      command: how the user calls it, for the help.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(_HELP.format(command=command))
        return 0
    if not arguments:
        raise ConfigError(f"no recipe is given; 'flaxseg recipes' lists all\nSee: {command} --help")
    config, _ = parse_command_line(arguments)
    from flaxseg.training.config import flat_fields

    for name, value in flat_fields(config).items():
        sys.stdout.write(f"{name} = {value!r}\n")
    return 0
