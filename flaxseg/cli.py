"""The command line: `flaxseg COMMAND`, `python -m flaxseg COMMAND`, and `train.py`.

What the commands do is in `flaxseg.programs`. Exit codes: 0 done; 1 an error that is named on
stderr; 2 wrong flags or settings; 3 a loss that is not finite; 4 a training that hung; 75 one that
a signal stopped; 130 interrupted.
"""

import argparse
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

import flaxseg
from flaxseg.errors import ConfigError, FlaxsegError, HungError, missing_package, near
from flaxseg.host_memory import keep_freed_memory
from flaxseg.paths import any_path, is_remote, local_text
from flaxseg.training.signals import Interrupted, run_program

_INTERRUPTED = 130

_EPILOG = """examples:
  python -m flaxseg recipes
  python -m flaxseg train deeplab:data=camvid --workdir=runs/camvid
  python -m flaxseg evaluate runs/camvid --data=camvid --split=test --out=runs/camvid/test
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks

'python -m flaxseg COMMAND --help' explains a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
      argv: the arguments after the program's name; those of the process by default, which is then
        the command's until its end: see `flaxseg.training.signals`.
    """
    if argv is None and sys.argv[1:2] == ["train"]:
        return run_program(lambda: main(sys.argv[1:]))
    # Of XLA's own lines only those of a crash: it asks for a bug report where compiling takes two
    # minutes, and what a user can mend is raised as an error too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if hasattr(sys.stdout, "reconfigure"):
        # Names of files may hold bytes that are no text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except FlaxsegError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        return _fail(missing)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `... | head`; the flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        os._exit(1)


def _run(argv: Sequence[str]) -> int:
    """Finds the command, lets it read its flags, and runs it; returns the exit code."""
    # It logs a traceback for each of the attempts that it repeats.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Imported once signals and errors are handled, for it takes a moment.
    from flaxseg.programs import COMMANDS

    own_flags = {command.NAME: command for command in COMMANDS if hasattr(command, "main")}
    if argv and argv[0] in own_flags:
        program = _program()
        words = program if program.endswith("train.py") else f"{program} {argv[0]}"
        keep_freed_memory()
        return own_flags[argv[0]].main(argv[1:], words)
    parser = _parser(COMMANDS)
    if not argv:
        print(parser.format_help(), flush=True)
        raise ConfigError("no command is given; they are listed above")
    args = parser.parse_args(argv)
    _check_texts(args)
    keep_freed_memory()
    return args.run(args)


def _check_texts(args: argparse.Namespace) -> None:
    """Raises ConfigError for an argument that no command can take, whatever it means."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                continue
            wanted = (any_path if name == "model" and is_remote(text) else local_text)(text)
            if wanted:
                raise ConfigError(f"{name} is {text!r}; it must be {wanted}")


def _program() -> str:
    """Returns how the user calls this program."""
    called = pathlib.Path(sys.argv[0]).name
    known = {"flaxseg": "flaxseg", "train.py": "python train.py"}
    return known.get(called, "python -m flaxseg")


def _fail(error: FlaxsegError) -> int:
    """Prints an error and returns its exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if _is_one_of_several() or isinstance(error, HungError):
        os._exit(error.exit_code)
    return error.exit_code


def _is_one_of_several() -> bool:
    """Returns whether leaving in good order would wait minutes for other processes to leave."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError, with what might have been meant, in place of leaving the process."""

    def error(self, message: str) -> None:
        match = re.search(r"invalid choice: '([^']*)'", message)
        if match:
            known = self._choices()
            message = f"there is no command {match[1]!r}; commands: {', '.join(known)}."
            message += near(match[1], known)
        elif message.startswith("unrecognized arguments:"):
            known = [name for action in self._all_actions() for name in action.option_strings]
            unknown = message.split(": ", 1)[1].split()
            message += "".join(near(word.split("=")[0], known) for word in unknown)
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


def _parser(all_commands: Sequence[ModuleType]) -> argparse.ArgumentParser:
    program = _program()
    parser = _Parser(
        prog=program,
        description="Trains, evaluates and applies segmentation models.",
        epilog=_EPILOG.replace("python -m flaxseg", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flaxseg {flaxseg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in all_commands:
        if hasattr(command, "main"):  # reads its own flags, and is here for the list alone
            commands.add_parser(command.NAME, help=command.SUMMARY)
            continue
        added = commands.add_parser(
            command.NAME,
            help=command.SUMMARY,
            description=command.TEXT,
            epilog=command.EPILOG.replace("python -m flaxseg", program),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser
