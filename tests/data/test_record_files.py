"""The files of records: written one by one in bounded memory, in order, however many they are."""

import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from published_files import png
from tensorflow_datasets.proto import tf_example_pb2

from flaxseg.data.prepared import builder as builder_module
from flaxseg.data.prepared import records
from flaxseg.data.raw.pairs import EncodedExample
from flaxseg.data.sets import shapes


def write(folder, examples):
    builder = builder_module.SegmentationBuilder(
        shapes.INFO, {"train": lambda: iter(examples)}, folder, "shapes"
    )
    tfds.display_progress_bar(False)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return builder.data_path


@pytest.mark.parametrize("shard_bytes", [1, 2000, 1 << 20])
def test_records_keep_their_order_in_any_number_of_files(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(builder_module, "SHARD_BYTES", shard_bytes)
    label = png(np.zeros((2, 2), np.uint8))
    sizes = np.random.default_rng(0).integers(100, 900, 25)
    examples = [
        EncodedExample(str(i), bytes([i]) * int(size), label) for i, size in enumerate(sizes)
    ]
    folder = write(tmp_path, examples)
    files = sorted(path.name for path in folder.glob("*array_record*"))
    assert not list(folder.glob("*unfinished*"))
    number = len(files)
    assert files == [f"shapes-train.array_record-{i:05d}-of-{number:05d}" for i in range(number)]
    assert {1: number == 25, 2000: 5 <= number <= 12, 1 << 20: number == 1}[shard_bytes]
    for split, wanted in (("train", examples), ("train[7:19]", examples[7:19])):
        source = records._open_source(folder, split)
        assert [source[i] for i in range(len(source))] == [
            {
                "id": e.id.encode(),
                "image": e.image,
                "label": e.label,
                "image_file": b"",
                "label_file": b"",
            }
            for e in wanted
        ]
    info = tfds.builder_from_directory(folder).info.splits["train"]
    assert info.num_examples == 25
    assert info.num_bytes > sizes.sum()


def test_a_split_is_not_collected_in_memory(tmp_path):
    """50 records of 1 MB each need the memory of a few."""

    def examples():
        rng = np.random.default_rng(0)
        for i in range(50):
            yield EncodedExample(str(i), rng.bytes(1_000_000), b"label")

    tracemalloc.start()
    try:
        write(tmp_path, examples())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000


def test_records_are_the_same_bytes_in_every_process(tmp_path):
    """Protobuf's own order of features changes with the process, and the digest with it."""
    label = png(np.zeros((2, 2), np.uint8))
    folder = write(tmp_path, [EncodedExample("a", label, label, "image.png", "label.png")])
    (path,) = folder.glob("*array_record*")
    (raw,) = array_record_module.ArrayRecordReader(str(path)).read_all()
    ordered = tf_example_pb2.Example.FromString(raw).SerializeToString(deterministic=True)
    assert raw == ordered
