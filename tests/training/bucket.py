"""A stand-in for Google Cloud Storage behind `etils.epath`: what is under gs:// lies in a folder.

It has what a bucket has and a disk has not: objects that appear whole when they are closed, names
with slashes in place of folders, and no way to append.
"""

import io
import os
import pathlib
import shutil
import urllib.parse

import fsspec
from etils.epath import backend

from flaxseg import paths


class _Object(io.BytesIO):
    """What becomes an object of the bucket when it is closed."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            part = self._path.with_name(f"{self._path.name}.part-{os.getpid()}-{id(self)}")
            part.write_bytes(self.getvalue())
            part.replace(self._path)
        super().close()


class Bucket(fsspec.AbstractFileSystem):
    """Keeps each object as a file of one folder, under its quoted name."""

    protocol = ("gs", "gcs")
    cachable = False

    def __init__(self, root: pathlib.Path):
        super().__init__()
        self.root = pathlib.Path(root)
        self.root.mkdir(exist_ok=True)

    @classmethod
    def _strip_protocol(cls, path):
        return os.fspath(path).removeprefix("gs://").strip("/")

    def names(self) -> list[str]:
        """Returns the names of all objects, with that of the bucket in front."""
        names = [path.name for path in self.root.iterdir() if ".part-" not in path.name]
        return sorted(map(urllib.parse.unquote, names))

    def ls(self, path, detail=True, **options):
        path, found = self._strip_protocol(path), {}
        for key in self.names():
            if key == path:
                found[key] = "file"
            elif key.startswith(f"{path}/") or not path:
                head, slash, _ = key[len(path) :].lstrip("/").partition("/")
                found[f"{path}/{head}".lstrip("/")] = "directory" if slash else "file"
        if not found:
            raise FileNotFoundError(path)
        entries = [
            {"name": name, "type": kind, "size": self._size(name) if kind == "file" else 0}
            for name, kind in found.items()
        ]
        return entries if detail else list(found)

    def _open(self, path, mode="rb", **options):
        if mode == "rb":
            return open(self._file(path), "rb")
        if mode == "wb":
            return _Object(self._file(path))
        raise NotImplementedError(f"a bucket has no mode {mode!r}")

    def cp_file(self, source, target, **options):
        if self._file(source).exists():  # else it is a common part of names
            shutil.copyfile(self._file(source), self._file(target))

    def _rm(self, path):
        self._file(path).unlink(missing_ok=True)

    def mkdir(self, path, create_parents=True, **options):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def _file(self, path) -> pathlib.Path:
        return self.root / urllib.parse.quote(self._strip_protocol(path), safe="")

    def _size(self, path) -> int:
        return self._file(path).stat().st_size


def install(root: pathlib.Path) -> Bucket:
    """Puts the stand-in in place of the real thing, for this process."""
    bucket = Bucket(root)
    backend.fsspec_backend._get_filesystem = lambda name: bucket
    paths._reaches_buckets = lambda: True
    return bucket
