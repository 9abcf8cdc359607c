"""Defines the layout of the folder of a run, and lets one process at a time write to it.

workdir/config.json          the config of the last start
        checkpoints/<step>/  see `flaxseg.training.checkpoint`
        model/               the best model by mIoU, as `flaxseg.save_model` writes it
        metrics.jsonl        one line per report
        tensorboard/         event files
        images/step_000600/*.png
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from flaxseg.errors import CheckpointError, ConfigError, listed
from flaxseg.files import names_in, reading, write_text
from flaxseg.paths import any_path, as_path, is_remote, local_folder

_LOCK = ".lock"
# A lock that another host wrote is taken over when its owner has not renewed it for this long.
_STALE_SECONDS = 120.0
_RENEW_SECONDS = 20.0
_LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)


class RunDirectory:
    """Holds the paths of a run.

    Attributes:
      path: the folder, absolute.
    """

    def __init__(self, workdir: str | os.PathLike):
        """
        Args:
          workdir: the folder; nothing is made yet.

        Raises:
          ConfigError: it cannot be one.
        """
        wanted = any_path(workdir) if is_remote(workdir) else local_folder(workdir)
        path = os.path.expanduser(workdir)
        if not wanted and os.path.isdir(os.path.join(path, _LOCK)):
            wanted = f"a folder where {_LOCK} is not a folder itself"
        if wanted:
            raise ConfigError(
                f"the workdir is {os.fspath(workdir)!r}; it must be {wanted}. Give another "
                "--workdir."
            )
        self.path = as_path(path)
        self.config_file = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.images = self.path / "images"
        self._made: list[pathlib.Path] = []

    def create(self) -> None:
        """Makes the folder, or checks that it can be used.

        Raises:
          CheckpointError: nothing can be written there.
        """
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            if is_remote(self.path):
                probe = self.path / f".probe-{os.getpid()}"
                write_text(probe, "")
                probe.unlink()
                return
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"the workdir {self.path} cannot be written to: {_reason(error)}. "
                "Give a --workdir that you may write to, on a disk with room."
            ) from error

    def remove_unused(self) -> None:
        """Removes the folders that `create` made if the run has not begun."""
        if not self._made or self.config_file.exists():
            return
        with contextlib.suppress(OSError):  # what others put there stays, and its folder with it
            (self.path / ".lock").unlink(missing_ok=True)
            for path in (self.checkpoints, *self._made):
                if path.is_dir():
                    path.rmdir()

    def check_checkpoints(self) -> None:
        """Checks that what an earlier run left here has its checkpoints.

        Without them the run would begin anew, and write over the log and the model. A run that was
        killed early has a folder of checkpoints without any in it, but then no model either.

        Raises:
          CheckpointError: they are missing.
        """
        names = names_in(self.path)
        found = [path for path in (self.metrics_file, self.model) if path.name in names]
        # A bucket has no empty folders.
        has_folder = is_remote(self.path) or self.checkpoints.is_dir()
        killed_early = has_folder and self.model not in found
        if found and not killed_early and not self.has_checkpoints():
            raise CheckpointError(
                f"{self.path} holds {listed(path.name for path in found)} of an earlier run, but "
                f"its checkpoints are not in {self.checkpoints}. Put them back to go on with that "
                "run. To begin anew, give another --workdir, or delete this one."
            )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes `config.json`, whole or not at all.

        Raises:
          WriteError: it cannot be written.
        """
        write_text(self.config_file, json.dumps(config, indent=2) + "\n")

    def has_checkpoints(self) -> bool:
        """Returns whether there is anything to go on from."""
        return any(name.isdecimal() for name in names_in(self.checkpoints))

    def image_folder(self, step: int) -> pathlib.Path:
        """Returns where the images of an evaluation belong."""
        return self.images / f"step_{step:06d}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process.

        The kernel frees the lock of a process that was killed. On disks that are shared without a
        common kernel, and in buckets, the owner renews the file, and an owner that stopped doing so
        is gone; that is waited for.

        Raises:
          CheckpointError: another process holds it; names the process.
        """
        path = self.path / _LOCK
        remote = is_remote(path)
        with contextlib.nullcontext() if remote else open(path, "a+") as file:
            self._wait_for(file, path)
            owner = {"host": socket.gethostname(), "pid": os.getpid()}
            if remote:
                self._take_object(path, owner)
            else:
                file.truncate(0)
                file.write(json.dumps(owner))
                file.flush()
            done = threading.Event()
            renewal = threading.Thread(target=_renew, args=(path, owner, done), daemon=True)
            renewal.start()
            try:
                yield
            finally:
                done.set()
                renewal.join()
                if _read_owner(path) == owner:
                    path.unlink() if remote else file.truncate(0)

    def _take_object(self, path: pathlib.Path, owner: Mapping[str, Any]) -> None:
        """Takes the lock in a bucket, where of two that do so at a time the last one has it."""
        write_text(path, json.dumps({**owner, "time": time.time()}))
        time.sleep(_LOOK_SECONDS)
        found = _read_owner(path)
        if found != owner:
            raise CheckpointError(self._in_use(found))

    def _wait_for(self, file: TextIO | None, path: pathlib.Path) -> None:
        """Returns once nobody else holds the lock file; an owner on another host may be dead.

        Raises:
          CheckpointError: the owner is alive.
        """
        locked = _lock(file, path)
        owner, seen, waited = _read_owner(path), _renewed(path), 0.0
        while locked is False or (owner and _may_live(owner, locked)):
            # The kernel of this host knows its processes; those of others give signs of life.
            known = locked is False and (owner is None or owner["host"] == socket.gethostname())
            renewed = _renewed(path)
            left = _STALE_SECONDS - max(time.time() - renewed, waited)
            if known or renewed != seen or (locked is False and left <= 0):
                raise CheckpointError(self._in_use(owner))
            if left <= 0:
                return
            if not waited:
                _log.warning(
                    "process %d on %s held the run in %s %.0f s ago. Waiting at most %.0f s for a "
                    "sign of life; without one, the run is taken over.",
                    *(owner["pid"], owner["host"], self.path, time.time() - renewed, left),
                )
            time.sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
            locked = _lock(file, path) if locked is False else locked
            owner = _read_owner(path)

    def _in_use(self, owner: Mapping[str, Any] | None) -> str:
        who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
        return (
            f"the run in {self.path} is in use by {who}; two processes cannot share it. "
            "Wait for it, stop it, or give another --workdir."
        )


def _reason(error: OSError) -> str:
    return str(error.strerror or error).rstrip(".")


def _lock(file: TextIO | None, path: pathlib.Path) -> bool | None:
    """Locks an open file; returns whether that worked, or None where the disk has no locks."""
    if file is None:
        return None  # a bucket; `_take_object` says who was faster
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        _log.warning(
            "the file system has no locks for %s (%s), so only that file says who uses the run: do "
            "not start it twice at the same moment.",
            *(path, error.strerror or error),
        )
        return None
    return True


def _may_live(owner: Mapping[str, Any], locked: bool | None) -> bool:
    """Returns whether the process that a lock file names may be alive, as far as we can know."""
    if owner["host"] != socket.gethostname():
        return True
    return locked is None and owner["pid"] != os.getpid() and _is_running(owner["pid"])


def _is_running(pid: int) -> bool:
    """Returns whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or none of this system's
        pass
    return True


def _read_owner(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns who wrote the lock file; None for an empty or half-written one."""
    try:
        with reading(path):
            owner = json.loads(path.read_text())
        return {"host": str(owner["host"]), "pid": int(owner["pid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _renewed(path: pathlib.Path) -> float:
    """Returns when the lock file was touched, in seconds since 1970; 0 where there is none."""
    if not is_remote(path):
        return path.stat().st_mtime
    try:
        with reading(path):
            return float(json.loads(path.read_text())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _renew(path: pathlib.Path, owner: Mapping[str, Any], done: threading.Event) -> None:
    """Touches the lock file until `done`; one in a bucket only while it is the owner's."""
    while not done.wait(_RENEW_SECONDS):
        with contextlib.suppress(OSError):
            if not is_remote(path):
                os.utime(path)
            elif _read_owner(path) == owner:
                write_text(path, json.dumps({**owner, "time": time.time()}))
