"""Checks a data set by its name: its files, or what was prepared from them."""

import functools
import pathlib

import numpy as np

from flaxseg.data.prepared.manifest import as_data_dir, find_damage, read_manifest
from flaxseg.data.prepared.records import Records, open_split
from flaxseg.data.raw.decode import decode_label
from flaxseg.data.raw.findings import Report
from flaxseg.data.raw.problems import Problem
from flaxseg.data.raw.verification import examine
from flaxseg.data.sets import catalog
from flaxseg.data.sets.data_sources import Generated, OwnFolder, Published
from flaxseg.errors import DataError, NotPreparedError
from flaxseg.image_files import UndecodableError
from flaxseg.paths import PathLike
from flaxseg.progress import Progress


def verify_data(
    name: str,
    manual_dir: PathLike | None = None,
    data_dir: PathLike | None = None,
    *,
    progress: bool = True,
    num_threads: int | None = None,
) -> Report:
    """Reads a whole data set and reports everything that is wrong with it, and what it holds.

    Args:
      name: of the data set, see `list_datasets`; `"folder:PATH"` for the user's own images.
      manual_dir: the folder with the published files, which need not be prepared; without it the
        prepared records in `data_dir` are checked.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      progress: show progress on stderr.
      num_threads: decode in so many threads; as many as there are cores (at most 32) if None.

    Returns:
      The report; `report.errors` is empty if all is well.

    Raises:
      ConfigError: there is no such data set.
      DataError: nothing of it can be found.
    """
    source = catalog.find_source(catalog.full_name(name, manual_dir))
    if isinstance(source, OwnFolder):
        return source.files().check(progress, num_threads)
    if manual_dir and isinstance(source, Published):
        return source.files(pathlib.Path(manual_dir).expanduser()).check(progress, num_threads)
    if manual_dir and isinstance(source, Generated):
        raise DataError(f"data set {name!r} is not made of files; leave manual_dir out")
    try:
        damage = find_damage(name, data_dir)
    except NotPreparedError as error:
        raise NotPreparedError(f"{error}\nOr check its files: --manual_dir=FOLDER") from None
    splits = read_manifest(name, data_dir).splits
    stored = {}
    for split in splits:
        records = open_split(name, split, data_dir)
        stored[split] = [_StoredPair(records, number) for number in range(len(records))]
    with Progress(f"checking {source.info.name}", sum(splits.values()), enabled=progress) as shown:
        return examine(
            stored,
            source.info,
            source=str(source.info.prepared or as_data_dir(data_dir).resolve() / source.info.name),
            known=[Problem("files", damage)] if damage else [],
            advance=shown.advance,
            num_threads=num_threads,
        )


class _StoredPair:
    """Reads an image and its label from a prepared data set."""

    as_stored = True

    def __init__(self, records: Records, number: int):
        self._records = records
        self._number = number

    @functools.cached_property
    def id(self) -> str:
        try:
            return self._stored("id").decode()
        except UndecodableError:
            return f"number {self._number}"

    @property
    def image(self) -> str:
        return f"image of record {self.id!r}"

    @property
    def label(self) -> str:
        return f"label of record {self.id!r}"

    def image_bytes(self) -> bytes:
        return self._stored("image")

    def label_bytes(self) -> bytes:
        return self._stored("label")

    def decode(self, encoded: bytes) -> np.ndarray:
        return decode_label(encoded)

    def _stored(self, what: str) -> bytes:
        try:
            return self._records.encoded(self._number)[what]
        except DataError as error:
            raise UndecodableError(str(error)) from None
