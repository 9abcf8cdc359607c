"""The command line: `python -m flaxseg COMMAND`; what the commands do is in `flaxseg.programs`.

Exit codes: 0 done; 1 an error that is named on stderr; 2 wrong flags or settings; 130 interrupted.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence

import flaxseg
from flaxseg.errors import ConfigError, FlaxsegError
from flaxseg.host_memory import keep_freed_memory
from flaxseg.programs import COMMANDS

_INTERRUPTED = 130

_EPILOG = """examples:
  python -m flaxseg prepare-data camvid --manual_dir=downloads/CamVid
  python -m flaxseg evaluate runs/camvid --data=camvid --split=test --out=runs/camvid/test
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg models

'python -m flaxseg COMMAND --help' explains a command. Training: python train.py --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
      argv: the arguments after the program's name; those of the process by default.
    """
    try:
        args = _parser().parse_args(argv)
        keep_freed_memory()
        return args.run(args)
    except FlaxsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `... | head`; the flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError, with what might have been meant, in place of leaving the process."""

    def error(self, message: str) -> None:
        match = re.search(r"invalid choice: '([^']*)'", message)
        if match:
            known = self._choices()
            message = f"there is no command {match[1]!r}; commands: {', '.join(known)}."
            message += _near(match[1], known)
        elif message.startswith("unrecognized arguments:"):
            known = [name for action in self._all_actions() for name in action.option_strings]
            unknown = message.split(": ", 1)[1].split()
            message += "".join(_near(word.split("=")[0], known) for word in unknown)
        raise ConfigError(f"{message}\nSee: {self.prog} --help")

    def _choices(self) -> list[str]:
        return [
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name in action.choices
        ]

    def _all_actions(self) -> list[argparse.Action]:
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                actions += [
                    inner for parser in action.choices.values() for inner in parser._actions
                ]
        return actions


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m flaxseg",
        description="Evaluates and applies saved segmentation models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flaxseg {flaxseg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        added = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.TEXT,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
