"""Prepares data sets as ArrayRecord files by TFDS, once, and streams them by Grain, without
TensorFlow.

Example:
  >>> flaxseg.data.prepare("shapes")                                # doctest: +SKIP
  >>> records = flaxseg.data.open_split("shapes", "val")            # doctest: +SKIP
  >>> records[0]["image"].shape                                     # doctest: +SKIP
  (96, 128, 3)
"""

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.prepared.manifest import (
    Manifest,
    check_trainable,
    default_data_dir,
    is_prepared,
    read_manifest,
    verify_prepared,
)
from flaxseg.data.prepared.preparation import prepare
from flaxseg.data.prepared.records import (
    Record,
    Records,
    check_split,
    chosen_split,
    open_split,
)
from flaxseg.data.prepared.set_check import verify_data
from flaxseg.data.raw.dataset_info import DatasetInfo
from flaxseg.data.raw.findings import Report, Statistics
from flaxseg.data.raw.problems import Problem, problem_kinds
from flaxseg.data.raw.split_names import split_for, split_names
from flaxseg.data.sets.catalog import dataset_info, full_name, list_datasets
from flaxseg.data.sets.cityscapes import to_label_ids as cityscapes_label_ids
from flaxseg.data.stream.augmentation import Augmentation, augment
from flaxseg.data.stream.decoded_cache import CachedRecords
from flaxseg.data.stream.pipeline import STREAM_RULES, TrainBatches, train_batches

__all__ = [
    "IGNORE_LABEL",
    "STREAM_RULES",
    "Augmentation",
    "CachedRecords",
    "DatasetInfo",
    "Manifest",
    "Problem",
    "Record",
    "Records",
    "Report",
    "Statistics",
    "TrainBatches",
    "augment",
    "check_split",
    "check_trainable",
    "chosen_split",
    "cityscapes_label_ids",
    "dataset_info",
    "default_data_dir",
    "full_name",
    "is_prepared",
    "list_datasets",
    "open_split",
    "prepare",
    "problem_kinds",
    "read_manifest",
    "split_for",
    "split_names",
    "train_batches",
    "verify_data",
    "verify_prepared",
]
