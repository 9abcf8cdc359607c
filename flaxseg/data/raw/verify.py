"""The check of a data set by its name: of its files, or of what was prepared from them."""

import functools
import pathlib

import numpy as np

from flaxseg.data.raw.preparation import (
    PathLike,
    as_data_dir,
    check_pairs,
    find_damage,
    read_manifest,
)
from flaxseg.data.raw.problems import Problem
from flaxseg.data.raw.report import Report
from flaxseg.data.sets import catalog
from flaxseg.data.stream.decode import UndecodableError, decode_label
from flaxseg.data.stream.records import Records, open_split
from flaxseg.errors import DataError, NotPreparedError


def verify_data(
    name: str,
    manual_dir: PathLike | None = None,
    data_dir: PathLike | None = None,
    *,
    progress: bool = True,
    num_threads: int | None = None,
) -> Report:
    """Reads a whole data set and says everything that is wrong with it, and what it holds.

    Args:
      name: of the data set, see `list_datasets`; `"folder:PATH"` for one's own pictures.
      manual_dir: the folder with the published files, of which nothing needs to be prepared;
        without it the prepared records in `data_dir` are checked.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      progress: show progress on stderr.
      num_threads: decode in so many threads; as many as there are cores (at most 32) if None.

    Returns:
      The report; `report.errors` is empty if all is well.

    Raises:
      ConfigError: there is no such data set.
      DataError: nothing of it can be found.
    """
    entry = catalog.find_entry(catalog.full_name(name, manual_dir))
    folder = entry.source or (pathlib.Path(manual_dir).expanduser() if manual_dir else None)
    if folder is not None and entry.find_pairs is not None:
        pairs, known = entry.find_pairs(folder)
        return check_pairs(entry, pairs, known, str(folder.resolve()), progress, num_threads)
    if manual_dir and entry.find_pairs is None and entry.info.prepared is None:
        raise DataError(f"data set {name!r} is not made of files; leave manual_dir out")
    try:
        damage = find_damage(name, data_dir)
    except NotPreparedError as error:
        raise NotPreparedError(f"{error}\nOr check its files: --manual_dir=FOLDER") from None
    known = [Problem("files", damage)] if damage else []
    stored = {}
    for split in read_manifest(name, data_dir).splits:
        records = open_split(name, split, data_dir)
        stored[split] = [_StoredPair(records, number) for number in range(len(records))]
    source = str(entry.info.prepared or as_data_dir(data_dir).resolve() / entry.info.name)
    return check_pairs(entry, stored, known, source, progress, num_threads)


class _StoredPair:
    """A picture and its label in a prepared data set."""

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
        return f"picture of record {self.id!r}"

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
