"""Reads and writes the manifest of a prepared data set: which files it has, and what they hold."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
from typing import Any

from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.problems import problem_kinds
from flaxseg.data.raw.split_names import split_names
from flaxseg.data.sets import catalog
from flaxseg.data.sets.catalog import MANIFEST
from flaxseg.data.sets.data_sources import Examples, OwnFolder, Published, Source
from flaxseg.errors import ConfigError, DataError, NotPreparedError
from flaxseg.files import write_text
from flaxseg.json_text import Form, has_form, read_json
from flaxseg.paths import PathLike, is_readable, readable

_FORMAT = 1
_FORMS: dict[str, Form] = {
    **dict.fromkeys(("name", "version", "source", "fingerprint", "listing"), str),
    "splits": {"": int},
    "files": {"": (int, str)},
    "left_out": int,
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes the files that `prepare` wrote.

    Attributes:
      name, version: of the data set.
      splits: the number of records in each split.
      source: where the images came from.
      files: the name of each file -> (size in bytes, sha256 in hex).
      fingerprint: a digest of the records and of what their labels mean; equal where training
        would see equal data.
      left_out: the number of pairs that could not be used, where that was allowed.
      info: of the user's own images, the facts as `DatasetInfo.to_json` gives them; else None.
      listing: of the user's own images, a digest of which files there were; else "".
      absent: of the user's own images, the classes without a pixel in each split.
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
    absent: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def default_data_dir() -> pathlib.Path:
    """Returns the folder of prepared data sets unless another is given: `$FLAXSEG_DATA`, else
    `data` in the current folder.
    """
    return pathlib.Path(os.environ.get("FLAXSEG_DATA") or "data")


def as_data_dir(data_dir: PathLike | None) -> pathlib.Path:
    """Returns the folder of prepared data sets that a caller means; None or "" is the default.

    Raises:
      ConfigError: its path is not UTF-8, which files of records need.
    """
    folder = pathlib.Path(data_dir).expanduser() if data_dir else default_data_dir()
    if not is_readable(folder.resolve()):
        raise ConfigError(
            f"the folder of prepared data, {readable(folder.resolve())}, has a path that is not "
            "UTF-8; give another with --data_dir (train: --config.data.dir) or FLAXSEG_DATA"
        )
    return folder


def prepared_dir(info: DatasetInfo, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns where the prepared files of a data set belong."""
    return info.prepared or data_dir / info.name / info.version


def is_prepared(name: str, data_dir: PathLike | None = None) -> bool:
    """Returns whether a data set is completely prepared in `data_dir`; the user's own images must
    also be unchanged since.

    Raises:
      ConfigError: no data set has this name.
    """
    source = catalog.find_source(name)
    return is_complete(prepared_dir(source.info, as_data_dir(data_dir)), source)


def is_complete(folder: pathlib.Path, source: Source) -> bool:
    """Returns whether a folder holds all that was prepared, from the files of now."""
    manifest = load_manifest(folder)
    return (
        manifest is not None
        and (manifest.name, manifest.version) == (source.info.name, source.info.version)
        and all(_size(folder / file) == size for file, (size, _) in manifest.files.items())
        and (not isinstance(source, OwnFolder) or manifest.listing == source.listing())
    )


def read_manifest(name: str, data_dir: PathLike | None = None) -> Manifest:
    """Returns the manifest of a prepared data set.

    Raises:
      ConfigError: no data set has this name.
      NotPreparedError: it is not prepared.
      DataError: a file is missing or has another size than when it was written; or the user's own
        classes have changed since.
    """
    source = catalog.find_source(name)
    data_dir = as_data_dir(data_dir)
    folder = prepared_dir(source.info, data_dir)
    manifest = load_manifest(folder)
    again = f"Prepare it again: {prepare_command(name, data_dir)}"
    if manifest is None:
        manual = " --manual_dir=FOLDER_WITH_ITS_FILES" if isinstance(source, Published) else ""
        raise NotPreparedError(
            f"data set {name!r} is not prepared in {data_dir} (looked for {folder}). Prepare it "
            f"with: {prepare_command(name, data_dir)}{manual}"
        )
    if isinstance(source, OwnFolder):
        check_same_folder(manifest, source, folder)
        if manifest.info != source.info.to_json():
            raise DataError(
                f"the classes or splits in {source.folder} have changed since it was prepared in "
                f"{folder}. {again}"
            )
    for file, (size, _) in manifest.files.items():
        found = _size(folder / file)
        if found != size:
            raise DataError(
                f"prepared data set {name!r} is damaged: {folder / file} "
                + ("is missing" if found is None else f"has {found} bytes instead of {size}")
                + f". {again}"
            )
    return manifest


def prepare_command(name: str, data_dir: pathlib.Path, manual_dir: PathLike | None = None) -> str:
    """Returns what prepares a data set, for a shell."""
    words = ["python", "-m", "flaxseg", "prepare-data", name, f"--data_dir={data_dir}"]
    if manual_dir and not name.startswith(catalog.FOLDER):
        words.append(f"--manual_dir={manual_dir}")
    return shlex.join(words)


def check_trainable(
    name: str, split: str, data_dir: PathLike | None = None, allow_problems: str = ""
) -> None:
    """Checks that every class is there to be learned where the user's own images are trained on.

    Args:
      name, split, data_dir: as for `open_split`.
      allow_problems: as for `prepare`; "absent_class" allows it.

    Raises:
      DataError: the data set is not prepared, or lacks a class in the split.
    """
    absent_in = read_manifest(name, data_dir).absent
    parts = split_names(catalog.dataset_info(name).in_own_names(split))
    absent = [
        kind
        for kind in absent_in.get(parts[0], [])
        if all(kind in absent_in.get(part, []) for part in parts)
    ]
    if absent and "absent_class" not in problem_kinds(allow_problems):
        what = "class" if len(absent) == 1 else f"{len(absent)} classes"
        raise DataError(
            f"data set {name!r}: no pixel of {what} {', '.join(map(repr, absent))} in {split}; a "
            "class that is not in the images trained on cannot be learned. Add images of it, or "
            "train without: --config.data.allow_problems=absent_class"
        )


def verify_prepared(name: str, data_dir: PathLike | None = None) -> None:
    """Reads every prepared file again and compares its digest with the manifest.

    Raises:
      NotPreparedError: the data set is not prepared.
      DataError: files have changed since they were written; all of them are named.
    """
    damage = find_damage(name, data_dir)
    if damage:
        raise DataError(damage)


def find_damage(name: str, data_dir: PathLike | None = None) -> str:
    """Returns a message that names all prepared files whose content has changed, "" if none has.

    Raises:
      NotPreparedError: the data set is not prepared.
      DataError: a file is missing or has another size.
    """
    manifest = read_manifest(name, data_dir)
    folder = prepared_dir(catalog.dataset_info(name), as_data_dir(data_dir))
    changed = [
        f"\n  - {folder / file}: its content changed since it was written (sha256 {found}, wanted "
        f"{wanted})"
        for file, (_, wanted) in manifest.files.items()
        if (found := _sha256(folder / file)) != wanted
    ]
    if not changed:
        return ""
    return (
        f"prepared data set {name!r} is damaged:{''.join(changed)}\nDelete {folder} and prepare it "
        "again."
    )


def check_same_folder(manifest: Manifest, source: OwnFolder, prepared: pathlib.Path) -> None:
    """Raises DataError where another folder of the user's, of the same name, was prepared."""
    if (
        manifest.source != readable(source.folder.resolve())
        and pathlib.Path(manifest.source).is_dir()
    ):
        raise DataError(
            f"{prepared} was prepared from {manifest.source}, which has the name "
            f'{source.info.name!r} too; set another name = "..." in {source.folder}, or give '
            "another --data_dir"
        )


def write_manifest(folder: pathlib.Path, source: Source, found: Examples) -> None:
    """Describes the files of a folder in its manifest."""
    info = source.info
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
    manifest = Manifest(
        name=info.name,
        version=info.version,
        splits=found.sizes,
        source=found.source,
        files=files,
        fingerprint=hashlib.sha256(json.dumps(meaning).encode()).hexdigest(),
        left_out=found.left_out,
        info=info.to_json() if isinstance(source, OwnFolder) else None,
        listing=found.listing,
        absent=dict(found.absent),
    )
    content = {"format": _FORMAT, **dataclasses.asdict(manifest)}
    write_text(folder / MANIFEST, json.dumps(content, indent=2))


def load_manifest(folder: pathlib.Path) -> Manifest | None:
    """Returns the manifest in a folder, or None where this version understands none."""
    try:
        content = read_json(folder / MANIFEST)
        if content.pop("format") != _FORMAT:
            return None
        if not all(has_form(content[name], form) for name, form in _FORMS.items()):
            return None
        files = {name: (size, digest) for name, (size, digest) in content["files"].items()}
        # No record is shorter than a byte.
        total = sum(size for size, _ in files.values() if size >= 0)
        if not all(0 < number <= total for number in content["splits"].values()):
            return None
        return Manifest(**{**content, "files": files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _size(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
