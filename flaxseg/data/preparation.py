"""Makes a data set ready to read: checks every file, writes ArrayRecord, and shows it only once it
is complete.

Everything is written to a hidden folder beside the place where it belongs and moved there by one
rename, after a manifest with the size and digest of each file was put in. Killed at any moment, it
leaves nothing that looks prepared, and the next call clears away what is left.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from flaxseg.data import catalog, download
from flaxseg.data.builders.segmentation import EncodedExample
from flaxseg.data.info import DatasetInfo
from flaxseg.data.label_map import LabelMap
from flaxseg.data.pairs import Pair, check_pairs, raise_problems, readers
from flaxseg.data.progress import Progress
from flaxseg.errors import DataError

MANIFEST = "flaxseg.json"
_MANIFEST_FORMAT = 1

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `prepare` says about the files that it wrote.

    Attributes:
      name, version: of the data set.
      splits: number of records in each split.
      source: where the pictures came from.
      files: name of each file -> (size in bytes, sha256 in hex).
      fingerprint: digest of the records and of what their labels mean; equal where training would
        see equal data.
    """

    name: str
    version: str
    splits: dict[str, int]
    source: str
    files: dict[str, tuple[int, str]]
    fingerprint: str


def default_data_dir() -> pathlib.Path:
    """Returns where prepared data sets lie if nothing else is said: `$FLAXSEG_DATA`, else `data` in
    the current folder.
    """
    return pathlib.Path(os.environ.get("FLAXSEG_DATA") or "data")


def prepare(
    name: str,
    data_dir: PathLike | None = None,
    manual_dir: PathLike | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Prepares a data set, unless that is done already.

    Args:
      name: of the data set, see `list_datasets`.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      manual_dir: the folder with the published files; None or "" generates or downloads them.
      progress: show progress on stderr.

    Returns:
      The folder of the prepared data set.

    Raises:
      DataError: the name is unknown; files are missing, damaged, or do not fit together (all of
        them listed); a download failed; or `data_dir` can not be written to.
    """
    entry = catalog.find_entry(name)
    data_dir = as_data_dir(data_dir)
    target = prepared_dir(entry.info, data_dir)
    if _is_complete(target, entry.info):
        return target
    with _explained(name, data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with _locked(data_dir / f".{name}.lock"):
            if _is_complete(target, entry.info):  # another process was faster
                return target
            _clear_leftovers(name, data_dir, target)
            staging = pathlib.Path(tempfile.mkdtemp(prefix=f".preparing-{name}-", dir=data_dir))
            try:
                examples, sizes, source = _find_examples(
                    entry, data_dir, manual_dir, staging, progress
                )
                written = _write(entry, examples, sizes, staging, progress)
                _write_manifest(written, entry.info, sizes, source)
                target.parent.mkdir(parents=True, exist_ok=True)
                written.chmod(0o755)
                written.rename(target)
                _sync_folder(target.parent)
                shutil.rmtree(_downloads(data_dir, name), ignore_errors=True)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return target


def is_prepared(name: str, data_dir: PathLike | None = None) -> bool:
    """Returns whether a data set is completely prepared in `data_dir`; raises DataError for an
    unknown name.
    """
    info = catalog.dataset_info(name)
    return _is_complete(prepared_dir(info, as_data_dir(data_dir)), info)


def read_manifest(name: str, data_dir: PathLike | None = None) -> Manifest:
    """Returns the manifest of a prepared data set.

    Raises:
      DataError: it is not prepared, or a file is missing or has another size than when it was
        written.
    """
    info = catalog.dataset_info(name)
    data_dir = as_data_dir(data_dir)
    target = prepared_dir(info, data_dir)
    manifest = _load_manifest(target)
    if manifest is None:
        generated = catalog.find_entry(name).examples is not None
        manual = "" if generated else " --manual_dir=FOLDER_WITH_ITS_FILES"
        raise DataError(
            f"data set {name!r} is not prepared in {data_dir} (looked for {target}). Prepare it "
            f"with: python -m flaxseg prepare-data {name} --data_dir={data_dir}{manual}"
        )
    for file, (size, _) in manifest.files.items():
        path = target / file
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise DataError(
                f"prepared data set {name!r} is damaged: {path} "
                + ("is missing" if found is None else f"has {found} bytes instead of {size}")
                + f". Prepare it again: python -m flaxseg prepare-data {name} --data_dir={data_dir}"
            )
    return manifest


def verify_prepared(name: str, data_dir: PathLike | None = None) -> None:
    """Reads every prepared file again and compares its digest with the manifest.

    Raises:
      DataError: not prepared, or files that changed since, all of them named.
    """
    manifest = read_manifest(name, data_dir)
    target = prepared_dir(catalog.dataset_info(name), as_data_dir(data_dir))
    changed = [
        f"{target / file}: its content changed since it was written (sha256 {found}, wanted "
        f"{wanted})"
        for file, (_, wanted) in manifest.files.items()
        if (found := _sha256(target / file)) != wanted
    ]
    if changed:
        raise DataError(
            f"prepared data set {name!r} is damaged:\n  - "
            + "\n  - ".join(changed)
            + f"\nDelete {target} and prepare it again."
        )


def prepared_dir(info: DatasetInfo, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns where the prepared files of a data set belong."""
    return data_dir / info.name / info.version


def as_data_dir(data_dir: PathLike | None) -> pathlib.Path:
    """Returns the folder of prepared data sets that a caller means; None or "" is the default."""
    return pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()


def _find_examples(
    entry: catalog.Entry,
    data_dir: pathlib.Path,
    manual_dir: PathLike | None,
    staging: pathlib.Path,
    progress: bool,
) -> tuple[dict[str, Callable[[], Iterator[EncodedExample]]], dict[str, int], str]:
    """Returns what yields the examples of each split, their numbers, and where they come from; all
    files are checked.
    """
    name = entry.info.name
    if entry.examples is not None:
        return entry.examples(), dict(entry.info.split_sizes), "generated"
    if manual_dir:
        folder = pathlib.Path(manual_dir).expanduser()
        source = str(folder.resolve())
        advice = f"Mend or replace these files in {folder} and prepare again; nothing was written."
    elif entry.archive is not None:
        archive = entry.archive
        folder = download.fetch_folder(
            archive.url,
            archive.folder,
            archive.git_tree,
            download_dir=data_dir / ".downloads",
            unpack_dir=staging / "unpacked",
            what=name,
            progress=progress,
        )
        source = archive.url
        advice = "The published files are not as expected; give your own copy with --manual_dir."
    elif entry.downloads:
        folder = _downloads(data_dir, name)
        download.fetch_files(entry.downloads, folder, name, progress)
        source = ", ".join(file.url for file in entry.downloads)
        advice = "The published files are not as expected; give your own copy with --manual_dir."
    else:
        raise DataError(
            f"data set {name!r} can not be downloaded by a program. {entry.how_to_get}: "
            f"python -m flaxseg prepare-data {name} --data_dir={data_dir} --manual_dir=FOLDER "
            "(train.py: --config.data.manual_dir)"
        )
    pairs, problems = entry.find_pairs(folder, progress)
    sizes = {split: len(of_split) for split, of_split in pairs.items()}
    if progress:
        for line in entry.info.differences(sizes):
            print(f"{name}: {line}", file=sys.stderr, flush=True)
    problems += _check(name, pairs, entry.info, progress)
    raise_problems(name, problems, advice)
    return readers(pairs), sizes, source


def _downloads(data_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the archives of a data set are kept until it is prepared."""
    return data_dir / ".downloads" / name


def _check(name: str, pairs: dict[str, list[Pair]], info: DatasetInfo, progress: bool) -> list[str]:
    """Checks all pairs; pictures of a split that repeats another one are not looked for in it."""
    first = {split: of_split for split, of_split in pairs.items() if split not in info.repeated}
    again = [{split: of_split} for split, of_split in pairs.items() if split in info.repeated]
    label_map = LabelMap(info.label_map)
    with Progress(f"checking {name}", sum(map(len, pairs.values())), progress) as shown:
        found = [check_pairs(part, label_map, shown.advance) for part in (first, *again)]
    return [problem for of_part in found for problem in of_part]


def _write(
    entry: catalog.Entry,
    examples: dict[str, Callable[[], Iterator[EncodedExample]]],
    sizes: dict[str, int],
    staging: pathlib.Path,
    progress: bool,
) -> pathlib.Path:
    """Writes the records below `staging` with TFDS and returns their folder."""
    with Progress(f"writing {entry.info.name}", sum(sizes.values()), progress) as shown:

        def counted(make: Callable[[], Iterator[EncodedExample]]) -> Callable:
            def counted_make() -> Iterator[EncodedExample]:
                for example in make():
                    yield example
                    shown.advance()

            return counted_make

        builder = entry.builder(
            data_dir=staging / "tfds",
            examples={split: counted(make) for split, make in examples.items()},
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


def _write_manifest(
    folder: pathlib.Path, info: DatasetInfo, sizes: dict[str, int], source: str
) -> None:
    files = {
        path.name: (path.stat().st_size, _sha256(path))
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    meaning = {
        "name": info.name,
        "version": info.version,
        "class_names": info.class_names,
        "label_map": sorted(info.label_map.items()),
        "records": [digest for file, (_, digest) in files.items() if ".array_record" in file],
    }
    content = {
        "format": _MANIFEST_FORMAT,
        "name": info.name,
        "version": info.version,
        "splits": sizes,
        "source": source,
        "files": files,
        "fingerprint": hashlib.sha256(json.dumps(meaning).encode()).hexdigest(),
    }
    path = folder / MANIFEST
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _load_manifest(target: pathlib.Path) -> Manifest | None:
    """Returns the manifest in a folder, or None where this version understands none."""
    try:
        content = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if content.pop("format") != _MANIFEST_FORMAT:
            return None
        files = {
            name: (int(size), str(digest)) for name, (size, digest) in content["files"].items()
        }
        return Manifest(**{**content, "files": files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_complete(target: pathlib.Path, info: DatasetInfo) -> bool:
    manifest = _load_manifest(target)
    return (
        manifest is not None
        and (manifest.name, manifest.version) == (info.name, info.version)
        and all(
            (target / file).is_file() and (target / file).stat().st_size == size
            for file, (size, _) in manifest.files.items()
        )
    )


def _clear_leftovers(name: str, data_dir: pathlib.Path, target: pathlib.Path) -> None:
    """Removes what killed runs left, and a damaged copy of ours; only called under the lock."""
    for path in data_dir.glob(f".preparing-{name}-*"):
        shutil.rmtree(path, ignore_errors=True)
    if not target.exists():
        return
    if not (target / MANIFEST).exists() and any(target.iterdir()):
        raise DataError(
            f"{target} holds files that flaxseg did not write, so data set {name!r} can not be "
            "prepared there; move them away or give another --data_dir"
        )
    shutil.rmtree(target)


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
            "--data_dir (train.py: --config.data.dir) or FLAXSEG_DATA; nothing half done is left."
        ) from error


def _free_space(data_dir: pathlib.Path) -> str:
    try:
        return f"{shutil.disk_usage(data_dir).free / 2**20:.0f} MiB are free there. "
    except OSError:
        return ""


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: pathlib.Path) -> None:
    """Makes a rename or new entry in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
