"""Makes a data set ready to read: checks every file, writes ArrayRecord, and shows it only once it
is complete.

Everything is written to a hidden folder beside the final place and moved there by one rename, after
a manifest with the size and digest of each file was added. Killed at any moment, it leaves nothing
that looks prepared, and the next call clears away what is left.
"""

import contextlib
import fcntl
import io
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from flaxseg.data.prepared.builder import SegmentationBuilder
from flaxseg.data.prepared.manifest import (
    as_data_dir,
    check_same_folder,
    is_complete,
    load_manifest,
    prepare_command,
    prepared_dir,
    write_manifest,
)
from flaxseg.data.raw.pairs import EncodedExample
from flaxseg.data.raw.problems import problem_kinds
from flaxseg.data.sets import catalog
from flaxseg.data.sets.catalog import MANIFEST
from flaxseg.data.sets.data_sources import Examples, OwnFolder, Prepared, Request, Source
from flaxseg.errors import DataError
from flaxseg.files import make_folder, replace_folder
from flaxseg.paths import PathLike
from flaxseg.progress import Progress


def prepare(
    name: str,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
    progress: bool = True,
    allow_problems: str = "",
) -> pathlib.Path:
    """Prepares a data set unless that is done already; the user's own images are prepared again if
    their files have changed.

    Args:
      name: of the data set, see `list_datasets`; `"folder:PATH"` for the user's own images.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      manual_dir: the folder with the published files; None or "" generates or downloads them.
      progress: show progress on stderr.
      allow_problems: kinds of problems, comma separated or "all", that are no reason to stop: pairs
        that cannot be used are left out.

    Returns:
      The folder of the prepared data set.

    Raises:
      ConfigError: no data set or kind of problem has this name.
      DataError: files are missing, damaged, or do not fit together (all of them are listed); a
        download failed; or `data_dir` cannot be written to.
    """
    name = catalog.full_name(name, manual_dir)
    source = catalog.find_source(name)
    allowed = problem_kinds(allow_problems)
    data_dir = as_data_dir(data_dir)
    target = prepared_dir(source.info, data_dir)
    if is_complete(target, source):
        return target
    if isinstance(source, Prepared):
        raise DataError(f"{target} is damaged; prepare it again from the images")
    folder = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    command = prepare_command(name, data_dir, manual_dir)
    name = source.info.name
    request = Request(folder, data_dir / ".downloads" / name, command, allowed, progress)
    with _explained(name, data_dir):
        make_folder(data_dir)
        with _locked(data_dir / f".{name}.lock"):
            if not is_complete(target, source):  # else another process was faster
                _prepare(source, request, data_dir, target)
    return target


def _prepare(
    source: Source, request: Request, data_dir: pathlib.Path, target: pathlib.Path
) -> None:
    """Prepares a data set under its lock."""
    name = source.info.name
    for path in data_dir.glob(f".preparing-{name}-*"):  # of killed processes
        shutil.rmtree(path, ignore_errors=True)
    _check_replaceable(source, target)
    staging = pathlib.Path(tempfile.mkdtemp(prefix=f".preparing-{name}-", dir=data_dir))
    try:
        found = _find_examples(source, request)
        written = _write(source, found, staging, request.progress)
        write_manifest(written, source, found)
        make_folder(target.parent)
        written.chmod(0o755)
        replace_folder(written, target)  # a damaged or old copy of ours
        shutil.rmtree(request.download_dir, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _find_examples(source: Source, request: Request) -> Examples:
    """Finds the examples of each split and prints what is missing: splits, images, classes."""
    found, info = source.find(request), source.info
    lines = [*info.differences(found.sizes)]
    absent = found.absent.get(info.train_split)
    if absent:
        lines.append(f"no pixel of {', '.join(map(repr, absent))} in {info.train_split}")
    if request.progress:
        for line in lines:
            print(f"{info.name}: {line}", file=sys.stderr, flush=True)
    return found


def _write(source: Source, found: Examples, staging: pathlib.Path, progress: bool) -> pathlib.Path:
    """Writes the records below `staging` with TFDS and returns their folder."""
    name, total = source.info.name, sum(found.sizes.values())
    with Progress(f"writing {name}", total, enabled=progress) as shown:

        def counted(read: Callable[[], Iterator[EncodedExample]]) -> Callable:
            def read_counted() -> Iterator[EncodedExample]:
                for example in read():
                    yield example
                    shown.advance()

            return read_counted

        builder = SegmentationBuilder(
            source.info,
            {split: counted(read) for split, read in found.readers.items()},
            staging / "tfds",
            "folder" if isinstance(source, OwnFolder) else name,  # TFDS allows fewer names
        )
        tfds.display_progress_bar(False)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports on stdout
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
        except RuntimeError as error:  # how the ArrayRecord writer reports a failed write
            raise OSError(str(error)) from error
        finally:
            tfds.display_progress_bar(True)
    return pathlib.Path(builder.data_dir)


def _check_replaceable(source: Source, target: pathlib.Path) -> None:
    """Raises DataError if what is in the place of a data set is not a copy of it."""
    if not target.exists():
        return
    if not (target / MANIFEST).exists() and any(target.iterdir()):
        raise DataError(
            f"{target} holds files that flaxseg did not write, so data set {source.info.name!r} "
            "cannot be prepared there; move them away or give another --data_dir"
        )
    manifest = load_manifest(target)
    if manifest is not None and isinstance(source, OwnFolder):
        check_same_folder(manifest, source, target)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time prepare a data set; the lock is free again when its holder ends,
    however it ends.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explained(name: str, data_dir: pathlib.Path) -> Iterator[None]:
    """Turns what goes wrong while writing into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        where = error.filename or data_dir
        raise DataError(
            f"data set {name!r} could not be written below {data_dir}: {error.strerror or error} "
            f"({where}). {_free_space(data_dir)}Give a folder that you may write to with "
            "--data_dir (train: --config.data.dir) or FLAXSEG_DATA; nothing half done is left."
        ) from error


def _free_space(data_dir: pathlib.Path) -> str:
    try:
        return f"{shutil.disk_usage(data_dir).free / 2**20:.0f} MiB are free there. "
    except OSError:
        return ""
