"""Gives random access to the decoded records of a prepared split."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import SupportsIndex, TypedDict, overload

import numpy as np
import tensorflow_datasets as tfds

from flaxseg.data.prepared.manifest import (
    as_data_dir,
    prepare_command,
    prepared_dir,
    read_manifest,
)
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.decode import decode_image, decode_label
from flaxseg.data.raw.label_map import LabelMap
from flaxseg.data.raw.split_names import split_names
from flaxseg.data.sets import catalog
from flaxseg.errors import ConfigError, DataError, near
from flaxseg.image_files import UndecodableError
from flaxseg.paths import PathLike


class Record(TypedDict):
    """Holds an image, its label in train ids (255 is ignore), and its name."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    label: np.ndarray  # uint8 [H, W]
    id: str


class Records(Sequence):
    """Holds the records of a split in the order of the published list; decodes at each access.

    It can be pickled and read from many threads.

    Attributes:
      info: the facts of the data set.
      split: the split, or parts of splits, as given to `open_split`.
      fingerprint: a digest of the data set's records and of what their labels mean.
    """

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        folder: pathlib.Path,
        length: int,
        fingerprint: str,
        stored: str | None = None,
    ):
        self.info = info
        self.split = split
        self.fingerprint = fingerprint
        self._folder = folder
        self._length = length
        self._stored = stored or split  # in the names of the splits that have files
        self._label_map = LabelMap(info.label_map)
        self._source = None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index):
        """Returns record `index`, or a list of records for a slice.

        Raises:
          IndexError: there is no such record.
          DataError: the record is damaged; the message names the data set, split, id and file.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        number = index.__index__()
        if not -self._length <= number < self._length:
            raise IndexError(f"record {number} of {self._length} in {self.info.name}/{self.split}")
        return self._decode(self._read(number % self._length))

    def encoded(self, number: int) -> dict[str, bytes]:
        """Returns what record `number` stores: "image", "label", "id", "image_file", "label_file".

        Raises:
          DataError: the files are not as they were written.
        """
        return self._read(number)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(self._length))

    def __repr__(self) -> str:
        return (
            f"Records({self.info.name!r}, {self.split!r}, {self._length} records, {self._folder})"
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_source": None}  # open files do not travel to other processes

    def _read(self, number: int) -> dict[str, bytes]:
        try:
            if self._source is None:
                self._source = _open_source(self._folder, self._stored)
            return self._source[number]
        except Exception as error:
            # The readers raise many types; whatever it is, the files are not as they were written.
            raise DataError(
                f"record {number} of {self.info.name}/{self.split} cannot be read from "
                f"{self._folder}: {error}. Delete {self._folder} and prepare the data set again."
            ) from error

    def _decode(self, encoded: dict[str, bytes]) -> Record:
        name = encoded["id"].decode()
        try:
            # An orientation that the label does not follow was refused before it was stored.
            image = decode_image(encoded["image"], as_stored=True).pixels
        except UndecodableError as error:
            raise self._bad(name, encoded["image_file"], "image", str(error)) from None
        try:
            label = self._label_map.apply(decode_label(encoded["label"]))
        except ValueError as error:  # also UndecodableError
            raise self._bad(name, encoded["label_file"], "label", str(error)) from None
        if image.shape[:2] != label.shape:
            sizes = f"the image has {image.shape[:2]} pixels (H, W) but the label {label.shape}"
            raise self._bad(name, encoded["label_file"], "label", sizes)
        return {"image": image, "label": label, "id": name}

    def _bad(self, name: str, file: bytes, what: str, reason: str) -> DataError:
        made_from = f" (made from {file.decode()})" if file else ""
        return DataError(
            f"{self.info.name}/{self.split}: the {what} of record {name!r}{made_from} cannot be "
            f"used: {reason}. Correct its file, delete {self._folder} and prepare it again."
        )


def open_split(name: str, split: str, data_dir: PathLike | None = None) -> Records:
    """Opens a split of a prepared data set.

    Args:
      name: of the data set.
      split: one of `dataset_info(name).splits`, or parts of them as TFDS writes them:
        `"train[:4]"`, `"train[10%:]"`, `"train+val"`.
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".

    Returns:
      A sequence of `{"image": uint8 [H, W, 3], "label": uint8 [H, W], "id": str}`.

    Raises:
      ConfigError: the data set or the split is unknown, or the part of a split is empty.
      NotPreparedError: the data set is not prepared; the message says how to do that.
      DataError: files are damaged.
    """
    info = catalog.dataset_info(name)
    split = _in_own_names(info, split)
    manifest = read_manifest(name, data_dir)
    folder = prepared_dir(info, as_data_dir(data_dir)).resolve()
    for part in split_names(split):
        if not all(stored in manifest.splits for stored in info.combined.get(part, (part,))):
            raise DataError(
                f"split {part!r} of data set {name!r} was left out when it was prepared, because "
                f"{info.optional.get(part, 'its files')} was missing. Add it to the others, "
                f"delete {folder} and prepare the data set again: "
                f"{prepare_command(name, as_data_dir(data_dir))}"
            )
    stored = _stored_parts(info, split, manifest.splits)
    length = manifest.splits.get(stored)
    if length is None:
        length = _length_of_parts(folder, stored, manifest.splits, split)
    return Records(info, split, folder, length, manifest.fingerprint, stored)


def check_split(info: DatasetInfo, split: str) -> str:
    """Returns a spec of splits in the data set's own names.

    Raises:
      ConfigError: the spec cannot be read, or the data set, prepared or not, lacks its splits.
    """
    split = _in_own_names(info, split)
    try:
        for part in split.split("+"):
            tfds.core.ReadInstruction.from_spec(part.strip())
    except (AssertionError, ValueError) as error:
        raise _no_part(split, str(error), info.split_sizes) from None
    return split


def _in_own_names(info: DatasetInfo, split: str) -> str:
    split = info.in_own_names(split)
    for part in split_names(split):
        if part not in info.splits:
            raise ConfigError(
                f"data set {info.name!r} has no split {part!r}; its splits: "
                f"{', '.join(info.splits)}.{near(part, info.splits)}"
            )
    return split


def chosen_split(info: DatasetInfo, split: str | None, usual: str, flag: str = "--split") -> str:
    """Returns the split that a user gave, in the data set's own names, or else the usual one.

    Raises:
      ConfigError: there is no such split; or none was given, and `usual` is "".
    """
    if not (split or usual):
        raise ConfigError(
            f"none of the splits of data set {info.name!r} is clearly meant for this by its name: "
            f"{', '.join(info.splits)}; choose with {flag}"
        )
    return check_split(info, split or usual)


def _stored_parts(info: DatasetInfo, split: str, sizes: Mapping[str, int]) -> str:
    """Rewrites parts of combined splits as parts of stored ones: "trainval" as "train+val".

    Example: "trainval[2:]" is "train[2:3]+val[0:2]" for 3 and 2 records.
    """
    written = []
    for part in map(str.strip, split.split("+")):
        name, bracket, _ = part.partition("[")
        members = info.combined.get(name.strip())
        if members is None:
            written.append(part)
        elif not bracket:
            written += members
        else:
            total = sum(sizes[member] for member in members)
            known = {name: tfds.core.SplitInfo(name, [total], 0)}
            try:
                (piece,) = tfds.core.ReadInstruction.from_spec(part).to_absolute(known)
            except (AssertionError, ValueError) as error:
                raise _no_part(split, str(error), sizes) from None
            start = 0
            for member in members:
                first = max((piece.from_ or 0) - start, 0)
                last = min((total if piece.to is None else piece.to) - start, sizes[member])
                if first < last:
                    written.append(f"{member}[{first}:{last}]")
                start += sizes[member]
    if not written:
        raise _no_part(split, "there is no record in it", sizes)
    return "+".join(written)


def _length_of_parts(
    folder: pathlib.Path, stored: str, sizes: Mapping[str, int], split: str
) -> int:
    try:
        length = tfds.builder_from_directory(folder).info.splits[stored].num_examples
        if length > 0:
            return length
        reason = "there is no record in it"
    except (AssertionError, ValueError) as error:  # TFDS cannot read it, or it goes beyond the end
        reason = str(error)
    raise _no_part(split, reason, sizes)


def _no_part(split: str, reason: str, sizes: Mapping[str, int]) -> ConfigError:
    known = ", ".join(f"{name} ({size} records)" for name, size in sizes.items())
    return ConfigError(
        f"{split!r} is no part of a split: {reason.splitlines()[0]}. Write one as 'train[:100]', "
        f"'train[10%:]' or 'train+val'. There are {known}."
    )


def _open_source(folder: pathlib.Path, split: str) -> Sequence[dict[str, bytes]]:
    """Opens the ArrayRecord files; TFDS parses the records but does not decode the images."""
    skip = tfds.decode.SkipDecoding()
    return tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": skip, "label": skip}
    )
