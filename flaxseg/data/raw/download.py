"""Downloads published files: continues what was cut off, and checks what has arrived."""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from flaxseg.data.raw.archives import open_zip
from flaxseg.errors import DataError
from flaxseg.files import sync_file
from flaxseg.progress import Progress

MAX_ARCHIVE_BYTES = 4 * 2**30
_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Download:
    """Names a published file.

    Attributes:
      url: http or https; its last part is the file's name.
      digest: what is published of its content: `"md5:..."`, `"sha1:..."`, or `"commit:..."` for the
        zip of a repository, whose bytes may change while the commit that it names does not.
    """

    url: str
    digest: str

    @property
    def name(self) -> str:
        """Returns the name of the file."""
        return self.url.rpartition("/")[2]


def fetch_files(
    files: Sequence[Download], folder: pathlib.Path, what: str, progress: bool = True
) -> None:
    """Downloads files into a folder and checks that they are the published ones.

    Files that are already there are only checked, so a second call continues an interrupted one.

    Args:
      files: what to download.
      folder: where to; made if it is missing.
      what: a name for messages.
      progress: show progress on stderr.

    Raises:
      DataError: a download failed, or a file is not the published one and was deleted.
    """
    for file in files:
        path = folder / file.name
        download(file.url, path, f"{what} {file.name}", progress)
        kind, _, wanted = file.digest.partition(":")
        try:
            found = _digest(path, kind, progress)
            if found != wanted:
                raise DataError(
                    f"{what}: {file.url} is not the published file ({kind} {found}, wanted "
                    f"{wanted}). Nothing of it was used. Try again, or give the folder of a copy "
                    "that you trust with --manual_dir."
                )
        except DataError:
            path.unlink()
            raise


def _digest(path: pathlib.Path, kind: str, progress: bool) -> str:
    if kind == "commit":  # git writes it into the comment of the zips that it makes
        with open_zip(path) as opened:
            return opened.comment.decode("ascii", "replace")
    digest = hashlib.new(kind, usedforsecurity=False)
    with (
        path.open("rb") as file,
        Progress(f"checking {path.name}", path.stat().st_size, "B", enabled=progress) as shown,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            shown.advance(len(chunk))
    return digest.hexdigest()


def download(url: str, path: pathlib.Path, what: str, progress: bool = True) -> None:
    """Downloads a file, and continues an earlier attempt that is kept in `path.part`.

    Args:
      url: http or https.
      path: where the file appears once it is complete; a file that is already there is kept.
      what: a name for messages.
      progress: show progress on stderr.

    Raises:
      DataError: there is no connection, the server refuses, or the file is larger than
        `MAX_ARCHIVE_BYTES`.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue_download(url, part, what, progress)
            break
        except _TransferError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError):
                part.unlink(missing_ok=True)  # the server does not continue it
            if error.final or attempt == _ATTEMPTS:
                raise DataError(
                    f"{what}: {url} could not be downloaded: {error}. Try again (what has arrived "
                    f"is kept in {part.parent}), or get the files another way and give their "
                    "folder with --manual_dir."
                ) from None
        time.sleep(0.2 * 2**attempt)
    part.rename(path)
    _origin_file(part).unlink(missing_ok=True)


class _TransferError(Exception):
    """The connection failed, not the local disk; `final` if another try would not help."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


@contextlib.contextmanager
def _transfer() -> Iterator[None]:
    """Turns errors of the connection into `_TransferError`; those of the local disk are kept."""
    try:
        yield
    except urllib.error.HTTPError as error:
        final = error.code < 500 and error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        raise _TransferError(f"HTTP {error.code} {error.reason}", final) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _TransferError(str(reason) or type(error).__name__) from error


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Identifies the file on the server that a partial download belongs to."""

    url: str
    validator: str  # strong ETag or Last-Modified; without one ("") a download starts over


def _continue_download(url: str, part: pathlib.Path, what: str, progress: bool) -> None:
    origin = _read_origin(part)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "flaxseg"})
    resumable = have > 0 and origin is not None and origin.url == url and origin.validator
    if resumable:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", origin.validator)
    with _transfer():
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    with response:
        if not (resumable and response.status == 206):
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        if (total or 0) > MAX_ARCHIVE_BYTES:
            raise DataError(f"{what}: {url} has {total} bytes, more than {MAX_ARCHIVE_BYTES}")
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if validator.startswith("W/"):  # a weak one does not promise equal bytes
            validator = ""
        _origin_file(part).write_text(json.dumps(dataclasses.asdict(_Origin(url, validator))))
        with (
            part.open("ab" if have else "wb") as file,
            Progress(f"downloading {what}", total, "B", enabled=progress) as shown,
        ):
            shown.advance(have)
            while chunk := _receive(response):
                have += len(chunk)
                if have > MAX_ARCHIVE_BYTES:
                    raise DataError(f"{what}: {url} has more than {MAX_ARCHIVE_BYTES} bytes")
                file.write(chunk)
                shown.advance(len(chunk))
            sync_file(file)
    if total is not None and have != total:
        raise _TransferError(f"the connection ended after {have} of {total} bytes")


def _receive(response: http.client.HTTPResponse) -> bytes:
    with _transfer():
        return response.read1(_CHUNK)


def _origin_file(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + ".json")


def _read_origin(part: pathlib.Path) -> _Origin | None:
    try:
        return _Origin(**json.loads(_origin_file(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
