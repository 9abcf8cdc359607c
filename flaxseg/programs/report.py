"""Implements `python -m flaxseg report`."""

import argparse
import importlib.metadata
import pathlib
import platform
from typing import TYPE_CHECKING

import flaxseg
from flaxseg.errors import ConfigError
from flaxseg.json_lines import read_run_log
from flaxseg.paths import as_path, is_remote
from flaxseg.programs import arguments, measurement

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.programs.report_page import Curve, ReportData

NAME = "report"
SUMMARY = "write a page on what a model does and where it fails"
TEXT = """Evaluates a saved model and writes one self-contained HTML page: scores, training curves,
IoU and accuracy of each class, the confusion matrix, the worst and the best images with truth,
prediction and errors laid over them, the score of every image, settings and environment.

For a training run, data set and split are those that it was evaluated on during training.
"""
EPILOG = """examples:
  python -m flaxseg report runs/camvid
  python -m flaxseg report models/coco --data=voc_segmentation --split=val --out=coco.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.model(parser)
    arguments.data_flag(parser)
    arguments.split(parser, "that of the training")
    measurement.add_arguments(parser)
    text = "show the worst N and the best N images"
    arguments.count(parser, "--num_images", "N", 8, text, least=0)
    parser.add_argument("--out", metavar="FILE", help="the page (default: MODEL/report.html)")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.programs.report_page import write_page

    if is_remote(args.model) and not args.out:
        raise ConfigError(f"{args.model} is in a bucket; say with --out where the page goes")
    out = pathlib.Path(args.out) if args.out else pathlib.Path(args.model) / "report.html"
    flaxseg.read_model_card(args.model)  # before a folder is made
    arguments.output_folder(out.parent)
    found = measurement.measure(args, args.num_images)
    write_page(out, _page(found, as_path(args.model)))
    print(found.metrics.summary())
    arguments.print_written([out])
    return 0


def _page(found: measurement.Measurement, folder: pathlib.Path) -> "ReportData":
    """Returns what the page on a measurement shows."""
    from flaxseg.programs.report_page import ReportData, ReportImage

    card = found.card
    worst, best = (
        [
            ReportImage(s.score.id, s.score.miou, s.record["image"], s.record["label"], s.pred)
            for s in images
        ]
        for images in (found.records.worst, found.records.best)
    )
    details = {
        "Near boundaries": found.boundary.table() if found.boundary else "",
        "Categories and instances": found.cityscapes.table() if found.cityscapes else "",
        "Training settings": card.get("extra", {}).get("config", ""),
        "Model options": card["options"],
        "Environment": _environment(),
    }
    return ReportData(
        f"{card['model']} on {found.info.name} {found.split}",
        list(_facts(found).items()),
        found.metrics,
        found.info.class_names,
        found.info.class_colors,
        _curves(folder),
        worst,
        best,
        [(s.id, s.miou, s.pixel_accuracy) for s in sorted(found.records.scores)],
        {title: value for title, value in details.items() if value},
    )


def _facts(found: measurement.Measurement) -> dict[str, str]:
    """Returns the lines of the summary."""
    card, extra = found.card, found.card.get("extra", {})
    facts = {
        "model": card["model"],
        "backbone": card["options"].get("backbone", ""),
        "parameters": f"{card['weights']['parameters']:,}",
        "data": f"{found.info.name} {found.split}, {found.images} images",
        "protocol": found.protocol,
        "CRF": found.crf or "none",
        "trained for": f"{extra['step']} steps" if "step" in extra else "not known",
        "time": f"{found.seconds / found.images:.3f} s per image, compilation included",
    }
    if found.boundary is not None:
        facts["boundary IoU"] = f"{100 * found.boundary.boundary_iou:.2f} %"
    return facts


def _curves(folder: pathlib.Path) -> "list[Curve]":
    """Returns the curves of a run's log; none if there is no log."""
    from flaxseg.programs.report_page import Curve

    log = folder / "metrics.jsonl"
    if not log.is_file():
        return []
    entries = read_run_log(log)

    def points(kind: str, value: str) -> list[tuple[float, float]]:
        return [
            (entry["step"], entry[value])
            for entry in entries
            if entry["kind"] == kind and entry.get(value) is not None
        ]

    return [
        Curve("Loss", {"loss": points("train", "loss")}),
        Curve(
            "Scores",
            {
                "mIoU": points("eval", "miou"),
                "pixel accuracy": points("eval", "pixel_accuracy"),
                "training accuracy": points("train", "accuracy"),
            },
            percent=True,
        ),
        Curve("Learning rate", {"rate": points("train", "learning_rate")}),
        Curve("Images per second", {"images/s": points("train", "images_per_second")}),
    ]


def _environment() -> dict[str, str]:
    """Returns the versions and devices that the evaluation ran with."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "flaxseg": flaxseg.__version__,
        "Python": platform.python_version(),
        "devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        **{name: importlib.metadata.version(name) for name in packages},
    }
