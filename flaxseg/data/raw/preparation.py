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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from flaxseg.data.progress import Progress
from flaxseg.data.raw import download
from flaxseg.data.raw.pairs import Pair, readers
from flaxseg.data.raw.problems import Problem, as_problems, problem_kinds, raise_problems
from flaxseg.data.raw.report import Report
from flaxseg.data.raw.verification import examine
from flaxseg.data.sets import catalog
from flaxseg.data.sets.catalog import MANIFEST
from flaxseg.data.sets.info import DatasetInfo
from flaxseg.data.sets.segmentation import EncodedExample
from flaxseg.errors import DataError, NotPreparedError

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
      left_out: number of pairs that could not be used, where that was allowed.
      info: of one's own pictures, the facts as `DatasetInfo.to_json` gives them; else None.
      listing: of one's own pictures, a digest of which files there were; else "".
    """

    name: str
    version: str
    splits: dict[str, int]
    source: str
    files: dict[str, tuple[int, str]]
    fingerprint: str
    left_out: int = 0
    info: dict[str, Any] | None = None
    listing: str = ""


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
    allow_problems: str = "",
) -> pathlib.Path:
    """Prepares a data set, unless that is done already; one's own pictures also anew, when their
    files have changed.

    Args:
      name: of the data set, see `list_datasets`; `"folder:PATH"` for one's own pictures.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      manual_dir: the folder with the published files; None or "" generates or downloads them.
      progress: show progress on stderr.
      allow_problems: kinds of problems, comma separated or "all", that do not stop it: pairs that
        can not be used are left out.

    Returns:
      The folder of the prepared data set.

    Raises:
      DataError: the name is unknown; files are missing, damaged, or do not fit together (all of
        them listed); a download failed; or `data_dir` can not be written to.
    """
    name = catalog.full_name(name, manual_dir)
    entry = catalog.find_entry(name)
    allowed = problem_kinds(allow_problems)
    data_dir = as_data_dir(data_dir)
    target = prepared_dir(entry.info, data_dir)
    if _is_complete(target, entry):
        return target
    if entry.info.prepared is not None:
        raise DataError(f"{target} is damaged; prepare it again from the pictures")
    name = entry.info.name
    with _explained(name, data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with _locked(data_dir / f".{name}.lock"):
            if _is_complete(target, entry):  # another process was faster
                return target
            _clear_leftovers(name, data_dir)
            _check_replaceable(entry, target)
            staging = pathlib.Path(tempfile.mkdtemp(prefix=f".preparing-{name}-", dir=data_dir))
            try:
                found = _find_examples(entry, data_dir, manual_dir, staging, progress, allowed)
                written = _write(entry, found, staging, progress)
                _write_manifest(written, entry, found)
                target.parent.mkdir(parents=True, exist_ok=True)
                written.chmod(0o755)
                shutil.rmtree(target, ignore_errors=True)  # a damaged or old copy of ours
                written.rename(target)
                _sync_folder(target.parent)
                shutil.rmtree(_downloads(data_dir, name), ignore_errors=True)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return target


def is_prepared(name: str, data_dir: PathLike | None = None) -> bool:
    """Returns whether a data set is completely prepared in `data_dir`, from the files of today if
    they are one's own; raises DataError for an unknown name.
    """
    entry = catalog.find_entry(name)
    return _is_complete(prepared_dir(entry.info, as_data_dir(data_dir)), entry)


def read_manifest(name: str, data_dir: PathLike | None = None) -> Manifest:
    """Returns the manifest of a prepared data set.

    Raises:
      NotPreparedError: it is not prepared.
      DataError: a file is missing or has another size than when it was written; or one's own
        classes have changed since.
    """
    entry = catalog.find_entry(name)
    info = entry.info
    data_dir = as_data_dir(data_dir)
    target = prepared_dir(info, data_dir)
    manifest = _load_manifest(target)
    if manifest is not None and entry.source is not None:
        _check_same_source(manifest, entry, target)
        if manifest.info != info.to_json():
            raise DataError(
                f"{entry.source} says other things of classes and splits than when it was prepared "
                f"in {target}. Prepare it again: python -m flaxseg prepare-data {name} "
                f"--data_dir={data_dir}"
            )
    if manifest is None:
        files = entry.source is None and entry.examples is None
        manual = " --manual_dir=FOLDER_WITH_ITS_FILES" if files else ""
        raise NotPreparedError(
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
      NotPreparedError: it is not prepared.
      DataError: files changed since they were written; all of them are named.
    """
    damage = find_damage(name, data_dir)
    if damage:
        raise DataError(damage)


def find_damage(name: str, data_dir: PathLike | None = None) -> str:
    """Returns a message that names all prepared files whose content changed, or "" if none did.

    Raises:
      NotPreparedError: the data set is not prepared.
      DataError: a file is missing or has another size.
    """
    manifest = read_manifest(name, data_dir)
    target = prepared_dir(catalog.dataset_info(name), as_data_dir(data_dir))
    changed = [
        f"{target / file}: its content changed since it was written (sha256 {found}, wanted "
        f"{wanted})"
        for file, (_, wanted) in manifest.files.items()
        if (found := _sha256(target / file)) != wanted
    ]
    if not changed:
        return ""
    return (
        f"prepared data set {name!r} is damaged:\n  - "
        + "\n  - ".join(changed)
        + f"\nDelete {target} and prepare it again."
    )


def prepared_dir(info: DatasetInfo, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns where the prepared files of a data set belong."""
    return info.prepared or data_dir / info.name / info.version


def as_data_dir(data_dir: PathLike | None) -> pathlib.Path:
    """Returns the folder of prepared data sets that a caller means; None or "" is the default."""
    return pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is to be written.

    Attributes:
      examples: per split, what yields its examples.
      sizes: their numbers.
      source: where they come from.
      left_out: number of pairs that can not be used.
      listing: see `Manifest`.
    """

    examples: dict[str, Callable[[], Iterator[EncodedExample]]]
    sizes: dict[str, int]
    source: str
    left_out: int = 0
    listing: str = ""


def _find_examples(
    entry: catalog.Entry,
    data_dir: pathlib.Path,
    manual_dir: PathLike | None,
    staging: pathlib.Path,
    progress: bool,
    allowed: frozenset[str],
) -> _Found:
    """Finds the examples of each split; all files are checked."""
    name = entry.info.name
    if entry.examples is not None:
        return _Found(entry.examples(), dict(entry.info.split_sizes), "generated")
    listing = entry.listing() if entry.listing else ""
    if entry.source or manual_dir:
        folder = entry.source or pathlib.Path(manual_dir).expanduser()
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
    pairs, known = entry.find_pairs(folder, progress)
    report = check_pairs(entry, pairs, known, source, progress)
    refused = [problem for problem in report.errors if problem.kind not in allowed]
    if refused:
        kinds = ",".join(dict.fromkeys(problem.kind for problem in refused))
        advice += (
            f" To go on all the same, without what can not be used: --allow_problems={kinds} "
            "(train.py: --config.data.allow_problems)."
        )
    raise_problems(name, refused, advice)
    usable = {
        split: [pair for n, pair in enumerate(of_split) if n not in report.unusable[split]]
        for split, of_split in pairs.items()
    }
    empty = [split for split, of_split in usable.items() if not of_split]
    if empty:
        raise DataError(
            f"data set {name!r} can not be prepared: nothing in {', '.join(empty)} can be used"
        )
    sizes = {split: len(of_split) for split, of_split in usable.items()}
    if progress:
        for line in entry.info.differences(sizes):
            print(f"{name}: {line}", file=sys.stderr, flush=True)
    left_out = sum(map(len, pairs.values())) - sum(sizes.values())
    return _Found(readers(usable, folder), sizes, source, left_out, listing)


def _downloads(data_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Where the archives of a data set are kept until it is prepared."""
    return data_dir / ".downloads" / name


def check_pairs(
    entry: catalog.Entry,
    pairs: dict[str, list[Pair]],
    known: Iterable[Problem | str],
    source: str,
    progress: bool,
    num_threads: int | None = None,
) -> Report:
    """Reads all pairs of a data set and reports on them.

    Args:
      entry: of the data set.
      pairs: of each split.
      known: what is wrong with lists and folders.
      source: where the pairs are from.
      progress: show progress on stderr.
      num_threads: see `examine`.
    """
    total = sum(map(len, pairs.values()))
    with Progress(f"checking {entry.info.name}", total, progress) as shown:
        return examine(
            pairs,
            entry.info,
            source=source,
            known=as_problems(known),
            # Part of a published set, for a trial, may lack some of the classes.
            needs_every_class=entry.source is not None,
            advance=shown.advance,
            num_threads=num_threads,
        )


def _write(
    entry: catalog.Entry, found: _Found, staging: pathlib.Path, progress: bool
) -> pathlib.Path:
    """Writes the records below `staging` with TFDS and returns their folder."""
    total = sum(found.sizes.values())
    with Progress(f"writing {entry.info.name}", total, progress) as shown:

        def counted(make: Callable[[], Iterator[EncodedExample]]) -> Callable:
            def counted_make() -> Iterator[EncodedExample]:
                for example in make():
                    yield example
                    shown.advance()

            return counted_make

        builder = entry.builder(
            data_dir=staging / "tfds",
            examples={split: counted(make) for split, make in found.examples.items()},
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


def _write_manifest(folder: pathlib.Path, entry: catalog.Entry, found: _Found) -> None:
    info = entry.info
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
        "splits": found.sizes,
        "source": found.source,
        "files": files,
        "fingerprint": hashlib.sha256(json.dumps(meaning).encode()).hexdigest(),
        "left_out": found.left_out,
        "info": info.to_json() if entry.source is not None else None,
        "listing": found.listing,
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


def _is_complete(target: pathlib.Path, entry: catalog.Entry) -> bool:
    manifest = _load_manifest(target)
    return (
        manifest is not None
        and (manifest.name, manifest.version) == (entry.info.name, entry.info.version)
        and all(
            (target / file).is_file() and (target / file).stat().st_size == size
            for file, (size, _) in manifest.files.items()
        )
        and (entry.listing is None or manifest.listing == entry.listing())
    )


def _clear_leftovers(name: str, data_dir: pathlib.Path) -> None:
    """Removes what killed runs left; only called under the lock."""
    for path in data_dir.glob(f".preparing-{name}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _check_replaceable(entry: catalog.Entry, target: pathlib.Path) -> None:
    """Raises DataError if what is in the place of a data set is not a copy of it."""
    if not target.exists():
        return
    if not (target / MANIFEST).exists() and any(target.iterdir()):
        raise DataError(
            f"{target} holds files that flaxseg did not write, so data set {entry.info.name!r} can "
            "not be prepared there; move them away or give another --data_dir"
        )
    manifest = _load_manifest(target)
    if manifest is not None and entry.source is not None:
        _check_same_source(manifest, entry, target)


def _check_same_source(manifest: Manifest, entry: catalog.Entry, target: pathlib.Path) -> None:
    """Raises DataError where another folder of one's own, of the same name, was prepared."""
    if manifest.source != str(entry.source.resolve()) and pathlib.Path(manifest.source).is_dir():
        raise DataError(
            f"{target} was prepared from {manifest.source}, which has the name "
            f'{entry.info.name!r} too; set another name = "..." in {entry.source}, or give '
            "another --data_dir"
        )


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
