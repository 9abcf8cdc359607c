"""Writes encoded examples as ArrayRecord files by a TFDS builder, without TensorFlow."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.pairs import EncodedExample

SHARD_BYTES = 256 * 2**20
"""The size in bytes from which on a further file of records is begun."""


class _Info(tfds.core.DatasetInfo):
    """Describes a data set that TFDS itself does not publish."""

    def initialize_from_bucket(self) -> None:
        """Does nothing. TFDS would make a temporary folder for what it has published, and leave
        it behind."""


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the examples of one data set.

    Args:
      info: the facts of the data set.
      examples: for each split, a function that yields its examples.
      data_dir: the folder to write to.
      name: begins the names of the files; letters, digits and "_".
    """

    # TFDS would look beside the code for files of checksums and tags, with a package that it does
    # not require.
    code_path = None

    def __init__(
        self,
        info: DatasetInfo,
        examples: Mapping[str, Callable[[], Iterator[EncodedExample]]],
        data_dir: pathlib.Path,
        name: str,
    ):
        self.name = name
        self.VERSION = tfds.core.Version(info.version)
        self._facts = info
        self._examples = examples
        super().__init__(file_format="array_record", data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=self._facts.description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
                    "label": tfds.features.Image(
                        shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                    "image_file": tfds.features.Text(),
                    "label_file": tfds.features.Text(),
                }
            ),
            homepage=self._facts.homepage,
            citation=self._facts.citation,
            license=self._facts.license,
            disable_shuffling=True,  # records keep the order of the published lists
        )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        """Writes the records of each split one by one.

        TFDS's own writer collects a split in memory to sort it, and needs TensorFlow for more than
        1000 MiB.
        """
        del dl_manager, download_config
        written = [self._write_split(split, make) for split, make in self._examples.items()]
        self.info.set_splits(tfds.core.splits.SplitDict(written))

    def _write_split(
        self, split: str, make: Callable[[], Iterator[EncodedExample]]
    ) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split)
        folder = self.data_path
        features = self.info.features
        serializer = ExampleSerializer(features.get_serialized_info())
        lengths: list[int] = []
        num_bytes, left, writer = 0, 0, None
        for example in make():
            encoded = features.encode_example(dataclasses.asdict(example))
            # Otherwise the order of the features, and so the digest, differs between processes.
            record = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
            if writer is None or left <= 0:
                if writer is not None:
                    writer.close()
                path = folder / _unfinished(split, len(lengths))
                writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
                lengths.append(0)
                left = SHARD_BYTES
            writer.write(record)
            lengths[-1] += 1
            num_bytes += len(record)
            left -= len(record)
        assert writer is not None, f"split {split} has no example"
        writer.close()
        for number in range(len(lengths)):  # their names hold how many there are
            path = template.sharded_filepath(shard_index=number, num_shards=len(lengths))
            (folder / _unfinished(split, number)).rename(path)
        return tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=num_bytes, filename_template=template
        )

    def _split_generators(self, dl_manager):
        raise NotImplementedError("examples are written by _download_and_prepare")

    _generate_examples = _split_generators


def _unfinished(split: str, number: int) -> str:
    return f"{split}-{number:05d}.unfinished"
