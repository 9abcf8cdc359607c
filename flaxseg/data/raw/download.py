"""Files from the internet: resumed where they were cut off, unpacked without trust, and compared
with what is published.
"""

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from flaxseg.data.progress import Progress
from flaxseg.data.raw.archives import check_zip_member, open_zip
from flaxseg.data.raw.packed_files import check_entry_name
from flaxseg.errors import DataError

MAX_ARCHIVE_BYTES = 4 * 2**30
_CHUNK = 1 << 18
_ATTEMPTS = 4
_TIMEOUT_S = 60.0


def fetch_folder(
    url: str,
    folder: str,
    git_tree: str,
    *,
    download_dir: pathlib.Path,
    unpack_dir: pathlib.Path,
    what: str,
    progress: bool = True,
) -> pathlib.Path:
    """Downloads a zip and unpacks one folder of it.

    Args:
      url: of the zip; http or https.
      folder: name of the folder in the zip, below its single top folder.
      git_tree: the id that git gives to the folder's content; it is compared.
      download_dir: keeps a partial download for the next try; emptied of it when all is well.
      unpack_dir: must not exist; gets the files.
      what: name for messages.
      progress: show progress on stderr.

    Returns:
      The unpacked folder.

    Raises:
      DataError: the download failed, the archive is damaged or hostile, or its content is not what
        was published.
    """
    archive = download_dir / f"{what}.zip"
    download(url, archive, what, progress)
    try:  # a bad archive must not be used again
        unpacked = unzip_folder(archive, folder, unpack_dir)
        found = git_tree_id(unpacked)
        if found != git_tree:
            raise DataError(
                f"{what}: the folder {folder} in the archive from {url} is not the published one "
                f"(git tree {found}, wanted {git_tree}). Nothing of it was used. If you trust "
                "another copy, give its folder with --manual_dir."
            )
    except DataError:
        archive.unlink()
        raise
    archive.unlink()
    return unpacked


@dataclasses.dataclass(frozen=True)
class Download:
    """A published file.

    Attributes:
      url: http or https; its last part is the file's name.
      digest: of its content, as `"md5:..."` or `"sha1:..."`, whichever is published.
    """

    url: str
    digest: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


def fetch_files(
    files: Sequence[Download], folder: pathlib.Path, what: str, progress: bool = True
) -> None:
    """Downloads files into a folder and compares them with what is published.

    A file that is there already is compared only, so a download that was broken off goes on where
    it ended, with the file that was not complete.

    Args:
      files: what to download.
      folder: where to; made if need be.
      what: name for messages.
      progress: show progress on stderr.

    Raises:
      DataError: a download failed, or a file is not the published one; it is deleted then.
    """
    for file in files:
        path = folder / file.name
        download(file.url, path, f"{what} {file.name}", progress)
        kind, _, wanted = file.digest.partition(":")
        found = _digest(path, kind, f"checking {file.name}", progress)
        if found != wanted:
            path.unlink()
            raise DataError(
                f"{what}: {file.url} is not the published file ({kind} {found}, wanted {wanted}). "
                "Nothing of it was used. Try again, or give the folder of a copy that you trust "
                "with --manual_dir."
            )


def _digest(path: pathlib.Path, kind: str, what: str, progress: bool) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with (
        path.open("rb") as file,
        Progress(what, path.stat().st_size, progress, unit="B") as shown,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            shown.advance(len(chunk))
    return digest.hexdigest()


def download(url: str, path: pathlib.Path, what: str, progress: bool = True) -> None:
    """Downloads a file; what an earlier try got is kept in `path.part` and continued.

    Args:
      url: http or https.
      path: of the file; it appears there when it is complete. One that is there already is taken as
        it is.
      what: name for messages.
      progress: show progress on stderr.

    Raises:
      DataError: no connection, a refusal by the server, or a file larger than `MAX_ARCHIVE_BYTES`.
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
                    f"is kept in {part.parent}), or get the files by other means and give their "
                    "folder with --manual_dir."
                ) from None
        time.sleep(0.2 * 2**attempt)
    part.rename(path)
    _origin_file(part).unlink(missing_ok=True)


class _TransferError(Exception):
    """The connection, not the local disk, failed; `final` if another try would not help."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


@contextlib.contextmanager
def _transfer() -> Iterator[None]:
    """Tells errors of the connection from those of the local disk."""
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
    """Which file on the server a partial download belongs to."""

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
            Progress(f"downloading {what}", total, progress, unit="B") as shown,
        ):
            shown.advance(have)
            while chunk := _receive(response):
                have += len(chunk)
                if have > MAX_ARCHIVE_BYTES:
                    raise DataError(f"{what}: {url} has more than {MAX_ARCHIVE_BYTES} bytes")
                file.write(chunk)
                shown.advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
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


def unzip_folder(archive: pathlib.Path, folder: str, target: pathlib.Path) -> pathlib.Path:
    """Unpacks `*/folder/` of a zip to `target/folder`, refusing everything that could write
    elsewhere or fill the disk.

    Args:
      archive: the zip.
      folder: name of the wanted folder, below the single top folder of the zip; nothing else is
        unpacked.
      target: where to put it.

    Returns:
      `target / folder`.

    Raises:
      DataError: not a zip, damaged, absolute paths, `..`, links, devices, too many or too large
        files, or no such folder.
    """
    try:
        with open_zip(archive) as opened:
            members = _wanted_members(archive, opened, folder)
            if sum(member.file_size for member, _ in members) > MAX_ARCHIVE_BYTES:
                raise DataError(f"{archive} unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
            for member, parts in members:
                path = target.joinpath(folder, *parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, path.open("xb") as file:
                    # The stated size was checked; zipfile reads no more than that and compares the
                    # CRC.
                    shutil.copyfileobj(source, file)
                path.chmod(0o755 if (member.external_attr >> 16) & 0o100 else 0o644)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive} is not a zip that can be read: {error}") from None
    return target / folder


def _wanted_members(
    archive: pathlib.Path, opened: zipfile.ZipFile, folder: str
) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """Returns the files below the folder with the parts of their paths in it, after checking all
    names of the archive.
    """
    wanted = []
    for member in opened.infolist():
        parts = check_entry_name(archive, member.filename)
        if len(parts) < 3 or parts[1] != folder or member.is_dir():
            continue
        check_zip_member(archive, member)
        wanted.append((member, parts[2:]))
    if not wanted:
        raise DataError(f"{archive} holds no folder {folder!r}")
    return wanted


def git_tree_id(folder: pathlib.Path) -> str:
    """Returns the id that git (SHA-1) gives to a folder with this content.

    It is a digest of the names, modes and bytes of all files, which is why it can pin the content
    of an archive that is made anew for each download. Reference: Pro Git, chapter 10.2, Git
    Objects.
    """
    entries = []
    for path in folder.iterdir():
        if path.is_dir():
            mode, digest = "40000", bytes.fromhex(git_tree_id(path))
        else:
            mode = "100755" if path.stat().st_mode & 0o100 else "100644"
            content = path.read_bytes()
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).digest()
        # Git sorts folders as if their names ended in a slash.
        key = os.fsencode(path.name) + (b"/" if path.is_dir() else b"")
        entries.append((key, mode.encode() + b" " + os.fsencode(path.name) + b"\0" + digest))
    content = b"".join(entry for _, entry in sorted(entries))
    return hashlib.sha1(b"tree %d\0" % len(content) + content).hexdigest()
