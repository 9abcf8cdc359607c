"""Runs a saved model over a split, for the commands `evaluate` and `report`."""

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.programs import arguments
from flaxseg.progress import Progress

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.crf import CrfPreset
    from flaxseg.data import DatasetInfo
    from flaxseg.evaluation import RecordScores
    from flaxseg.evaluation.boundary_metrics import BoundaryScores
    from flaxseg.evaluation.cityscapes_scores import CityscapesScores
    from flaxseg.evaluation.metrics import SegmentationMetrics
    from flaxseg.inference import Protocol, Segmenter


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Holds what was measured of a model on a split.

    Attributes:
      card: the card of the model.
      info: the facts of the data set.
      split: the name of the split.
      images: how many images it has.
      protocol: the protocol as text.
      crf: the CRF as text, or None.
      metrics: scores over all pixels.
      boundary: scores near boundaries, or None if they were not asked for.
      cityscapes: scores of categories and instances, or None for other classes.
      records: scores of single images, and the images worth looking at.
      seconds: time taken, compilation included.
    """

    card: dict
    info: "DatasetInfo"
    split: str
    images: int
    protocol: str
    crf: str | None
    metrics: "SegmentationMetrics"
    boundary: "BoundaryScores | None"
    cityscapes: "CityscapesScores | None"
    records: "RecordScores"
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how a model is measured."""
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    text = "images per batch, over all devices (default: 1 per device on CPU, 8 on others)"
    arguments.count(parser, "--batch_size", "N", None, text)
    arguments.flag(
        parser,
        "--pad_to",
        type=arguments.at_least(1),
        nargs=2,
        metavar=("H", "W"),
        help="pad all images to this size (513 513 is DeepLab's for VOC), which compiles once even "
        "if sizes vary (default: each image at its own size)",
    )
    arguments.output_stride(parser)
    arguments.protocol(parser)
    arguments.crf(parser)
    parser.add_argument(
        "--boundary",
        action="store_true",
        help="also measure near boundaries: trimaps, accuracy within 7 pixels, boundary IoU",
    )
    parser.add_argument(
        "--instances",
        metavar="DIR",
        help="the labels of Cityscapes as downloaded, for the instance-weighted IoU (iIoU)",
    )


def measure(args: argparse.Namespace, num_images: int | None) -> Measurement:
    """Runs the model over the split.

    Args:
      args: `model`, `data` and `split`, and the flags of `add_arguments`.
      num_images: how many of the first, the worst and the best images are kept; None scores no
        single images.
    """
    from flaxseg import data
    from flaxseg.crf.options import format_crf
    from flaxseg.data.sets import cityscapes
    from flaxseg.evaluation import evaluate
    from flaxseg.evaluation.cityscapes_scores import cityscapes_scores

    card = flaxseg.read_model_card(args.model)
    name, info = arguments.data_of(args, card)
    own_split = "" if args.data else arguments.split_of_training(card)
    split = data.chosen_split(info, args.split, own_split or info.eval_split)
    records = data.open_split(name, split, args.data_dir)
    is_cityscapes = info.class_names == cityscapes.INFO.class_names
    if args.instances and not is_cityscapes:
        raise ConfigError(
            f"--instances is for the classes of Cityscapes, and {info.name} has other ones."
        )
    scores = _Scores(args, split, num_images, info.num_classes)
    protocol, crf = _protocol_and_crf(args, card)
    segmenter, options = _segmenter(args, protocol, crf)
    started = time.monotonic()
    with Progress("evaluating", len(records)) as bar:
        metrics = evaluate(
            segmenter.run_batch,
            records,
            info.num_classes,
            **options,
            progress=lambda done, _: bar.show(done),
            on_prediction=scores.see if scores.wanted else None,
        )
    return Measurement(
        card,
        info,
        split,
        len(records),
        protocol.describe(),
        format_crf(crf) if crf else None,
        metrics,
        scores.boundary.scores() if scores.boundary else None,
        cityscapes_scores(metrics, scores.instances) if is_cityscapes else None,
        scores.records,
        time.monotonic() - started,
    )


class _Scores:
    """Takes each prediction for all scores beside the confusion matrix that were asked for."""

    def __init__(
        self, args: argparse.Namespace, split: str, num_images: int | None, num_classes: int
    ):
        from flaxseg.data.sets import cityscapes
        from flaxseg.evaluation import BoundaryMetrics, RecordScores
        from flaxseg.evaluation.cityscapes_scores import InstanceCounts

        self.records = RecordScores(num_images or 0, num_classes)
        self.boundary = BoundaryMetrics(num_classes) if args.boundary else None
        self.instances = InstanceCounts() if args.instances else None
        self.wanted = num_images is not None or bool(self.boundary or self.instances)
        self._each = num_images is not None
        self._folder = args.instances
        self._files: Mapping[str, pathlib.Path] = (
            cityscapes.find_instances(pathlib.Path(args.instances), split) if args.instances else {}
        )

    def see(self, index: int, record: Mapping, pred: np.ndarray) -> None:
        """Takes one prediction."""
        from flaxseg.data.sets.cityscapes import read_instances

        if self._each:
            self.records.see(index, record, pred)
        if self.boundary is not None:
            self.boundary.update(record["label"], pred)
        if self.instances is not None:
            if record["id"] not in self._files:
                raise DataError(f"{self._folder} has no instanceIds of {record['id']}.")
            file = self._files[record["id"]]
            self.instances.update(*read_instances(file), pred, source=str(file))


def _protocol_and_crf(args: argparse.Namespace, card: dict) -> "tuple[Protocol, CrfPreset | None]":
    """Returns what `--protocol`, `--pad_to`, `--crf` and the model say."""
    crf = arguments.crf_of(args)
    canvas = {"pad_to": tuple(args.pad_to)} if args.pad_to else {}
    protocol = arguments.protocol_of(args, card, "--pad_to", **canvas)
    if crf is not None and args.pad_to:
        raise ConfigError(
            "--crf cannot be combined with --pad_to: the CRF would take the padding for part of "
            f"the image. Write --protocol='whole(pad_to=({args.pad_to[0]}, {args.pad_to[1]}))', "
            "which runs the images one by one."
        )
    return protocol, crf


def _segmenter(
    args: argparse.Namespace, protocol: "Protocol", crf: "CrfPreset | None"
) -> tuple["Segmenter", dict]:
    """Returns the model with its protocol, and the options with which `evaluate` calls it."""
    import jax

    from flaxseg.inference import Segmenter

    devices = jax.local_devices()
    per_device = 1 if devices[0].platform == "cpu" else 8
    model, variables = arguments.load_model(args)
    segmenter = Segmenter(model, variables, protocol, devices=devices, crf=crf)
    return segmenter, segmenter.batch_options(args.batch_size or per_device * len(devices))
