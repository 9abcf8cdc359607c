"""What `evaluate` and `report` share: a saved model run over a split."""

import argparse
import dataclasses
import pathlib
import time

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.programs import arguments
from flaxseg.programs.output import Bar


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A model on a split.

    Attributes:
      card: of the model.
      info: of the data set.
      split: its name.
      images: how many.
      protocol: text of the protocol.
      crf: text of the CRF, or None.
      metrics: over all pixels.
      boundary: scores near boundaries, or None where they were not asked for.
      cityscapes: scores of categories and instances, or None where the classes are others.
      records: scores of single pictures, and the pictures worth looking at.
      seconds: that it took, compilation included.
    """

    card: dict
    info: object
    split: str
    images: int
    protocol: str
    crf: str | None
    metrics: object
    boundary: object | None
    cityscapes: object | None
    records: object
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how it is measured."""
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=arguments.at_least(1),
        default=None,
        metavar="N",
        help="images at a time, over all devices (default: 1 per device on CPU, 8 on others)",
    )
    parser.add_argument(
        "--pad_to",
        "--pad-to",
        type=arguments.at_least(1),
        nargs=2,
        metavar=("H", "W"),
        help="put all images on a canvas of this size (DeepLab's 513 513 for VOC): one compilation "
        "where sizes vary; default: each image at its own size",
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
        help="Cityscapes' labels as downloaded, for the IoU weighted by instances (iIoU)",
    )


def measure(
    args: argparse.Namespace, name: str, split: str | None, num_pictures: int | None
) -> Measurement:
    """Runs the model over the split.

    Args:
      args: with the flags of `add_arguments` and `--model`.
      name: of the data set.
      split: of it; the one whose score is reported if None.
      num_pictures: how many pictures of each kind are kept; None scores no single pictures.
    """
    import jax

    from flaxseg import data
    from flaxseg.crf.options import format_crf
    from flaxseg.data.sets import cityscapes
    from flaxseg.evaluation import BoundaryMetrics, RecordScores, evaluate
    from flaxseg.evaluation.cityscapes_scores import InstanceCounts, cityscapes_scores
    from flaxseg.inference import plan_inference

    card = flaxseg.read_model_card(args.model)
    name = data.full_name(name, args.manual_dir)
    info = data.dataset_info(name)
    arguments.check_same_classes(card, info, args.model)
    if args.manual_dir:
        data.prepare(name, args.data_dir, args.manual_dir)
    split = split or info.eval_split
    records = data.open_split(name, split, args.data_dir)
    is_cityscapes = info.class_names == cityscapes.INFO.class_names
    if args.instances and not is_cityscapes:
        raise ConfigError(
            f"--instances is for the classes of Cityscapes; those of {name} are others."
        )
    instance_files = (
        cityscapes.find_instances(pathlib.Path(args.instances), split) if args.instances else {}
    )
    crf = arguments.crf_of(args)
    canvas = {"pad_to": tuple(args.pad_to)} if args.pad_to else {}
    protocol = arguments.protocol_of(args, "--pad_to", **canvas)
    if crf is not None and args.pad_to:
        raise ConfigError(
            "--crf does not go with --pad_to: it would take the border for part of the picture; "
            f"write --protocol='whole(pad_to=({args.pad_to[0]}, {args.pad_to[1]}))', which is run "
            "picture by picture."
        )
    model, variables = arguments.load_model(args)
    devices = jax.local_devices()
    per_device = 1 if devices[0].platform == "cpu" else 8
    plan = plan_inference(
        model,
        variables,
        protocol,
        devices,
        batch_size=args.batch_size or per_device * len(devices),
        crf=crf,
    )
    scores = RecordScores(num_pictures or 0, info.num_classes)
    boundary = BoundaryMetrics(info.num_classes) if args.boundary else None
    instances = InstanceCounts() if args.instances else None

    def see(index, record, pred) -> None:
        if num_pictures is not None:
            scores.see(index, record, pred)
        if boundary is not None:
            boundary.update(record["label"], pred)
        if instances is not None:
            if record["id"] not in instance_files:
                raise DataError(f"{args.instances} has no instanceIds of {record['id']}.")
            file = instance_files[record["id"]]
            instances.update(*cityscapes.read_instances(file), pred, source=str(file))

    started = time.monotonic()
    with Bar(len(records), "evaluating", "image") as bar:
        metrics = evaluate(
            plan.predict_fn,
            records,
            info.num_classes,
            **plan.options,
            progress=lambda done, _: bar.show(done),
            on_prediction=see if num_pictures is not None or boundary or instances else None,
        )
    return Measurement(
        card,
        info,
        split,
        len(records),
        protocol.describe(),
        format_crf(crf) if crf else None,
        metrics,
        boundary.scores() if boundary else None,
        cityscapes_scores(metrics, instances) if is_cityscapes else None,
        scores,
        time.monotonic() - started,
    )
