"""What a power cut may leave on a disk, at any moment of a piece of Python."""

import contextlib
import os
import pathlib
import stat
import sys
import threading

CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open")


class PowerCuts:
    """Copies what may be left of a folder, before each change that Python makes to it.

    Only what was given to fsync is on the disk for certain: the bytes of a file, the names in a
    folder. What lies between is up to the file system; two images bound it.

    * "synced": names that were not synced are not there, or still the old ones.
    * "journal": all names are there, as a file system with a journal has them after a moment; but
      files that were not synced are empty, or hold what they held when they were.

    Attributes:
      images: folders by kind, in order; equal neighbours are left out.
    """

    def __init__(self, folder: pathlib.Path, target: pathlib.Path, monkeypatch):
        self.images: dict[str, list[pathlib.Path]] = {"synced": [], "journal": []}
        self._folder, self._target = folder, target
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self._open: list[int] = []  # an inode that is open is not given to another file
        self._last: dict[str, dict] = {}
        self._lock, self._here = threading.RLock(), threading.local()
        self._active = False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)
        sys.addaudithook(self._hook)  # cannot be removed, only be made idle

    @contextlib.contextmanager
    def everywhere(self):
        """Takes images of all moments of the block; what is there before is on the disk."""
        for path in [self._folder, *self._folder.rglob("*")]:
            handle = os.open(path, os.O_RDONLY)
            self._note(handle)
            os.close(handle)
        self._active = True
        try:
            yield
            self._take()
        finally:
            self._active = False

    def _sync(self, handle: int) -> None:
        self._fsync(handle)
        path = pathlib.Path(os.readlink(f"/proc/self/fd/{handle}"))
        if self._active and path.is_relative_to(self._folder):
            with self._lock:
                self._note(handle)
            self._take()

    def _note(self, handle: int) -> None:
        """Notes what an open file or folder holds as being on the disk."""
        status = os.fstat(handle)
        self._open.append(os.dup(handle))
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(f"/proc/self/fd/{handle}") as found:
                self._folders[status.st_ino] = {e.name: (e.inode(), e.is_dir()) for e in found}
        else:
            path = f"/proc/self/fd/{handle}"  # it may be open for writing only
            self._files[status.st_ino] = pathlib.Path(path).read_bytes()

    def _hook(self, event: str, arguments: tuple) -> None:
        if self._active and event in CHANGES and not getattr(self._here, "busy", False):
            if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                return
            self._take()

    def _take(self) -> None:
        with self._lock:
            self._here.busy = True
            try:
                for kind, tree in (
                    ("synced", self._synced(self._folder.stat().st_ino)),
                    ("journal", self._journal(self._folder)),
                ):
                    if tree != self._last.get(kind):
                        self._last[kind] = tree
                        image = self._target / f"{kind}_{len(self.images[kind])}"
                        _write(image, tree)
                        self.images[kind].append(image)
            finally:
                self._here.busy = False

    def _synced(self, inode: int) -> dict:
        return {
            name: self._synced(child) if is_folder else self._files.get(child, b"")
            for name, (child, is_folder) in self._folders.get(inode, {}).items()
        }

    def _journal(self, folder: pathlib.Path) -> dict:
        tree = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
            for entry in found:
                path = pathlib.Path(entry.path)
                held = self._files.get(entry.inode(), b"")
                tree[entry.name] = self._journal(path) if entry.is_dir() else held
        return tree


def _write(folder: pathlib.Path, tree: dict) -> None:
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            _write(folder / name, content)
        else:
            (folder / name).write_bytes(content)
