"""`python -m flaxseg report`."""

import argparse
import importlib.metadata
import json
import pathlib
import platform

import flaxseg
from flaxseg.errors import ConfigError
from flaxseg.programs import arguments, measurement
from flaxseg.programs.output import output_folder

NAME = "report"
SUMMARY = "write a page on what a model does and where it fails"
TEXT = """Evaluates a saved model and writes one HTML page that needs nothing else, not even a
network: scores, training curves, the classes, which of them are taken for which, the worst and the
best pictures with truth, prediction and errors laid over them, the score of every picture, settings
and environment.

For a run, data set and split are those that it was evaluated on in training.
"""
EPILOG = """examples:
  python -m flaxseg report runs/camvid
  python -m flaxseg report models/coco --data=voc_segmentation --split=val --out=coco.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("model", metavar="DIR", help=arguments.MODEL_HELP)
    parser.add_argument("--data", metavar="NAME", help="data set (default: that of the training)")
    parser.add_argument("--split", metavar="NAME", help="default: that of the training")
    measurement.add_arguments(parser)
    parser.add_argument(
        "--num_pictures",
        "--num-pictures",
        type=arguments.at_least(0),
        default=8,
        metavar="N",
        help="the worst N and the best N pictures (default: 8)",
    )
    parser.add_argument("--out", metavar="FILE", help="the page (default: DIR/report.html)")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.programs.report_page import ReportData, ReportPicture, write_page

    out = pathlib.Path(args.out) if args.out else pathlib.Path(args.model) / "report.html"
    extra = flaxseg.read_model_card(args.model).get("extra", {})
    output_folder(out.parent)
    name, split = args.data, args.split
    if name is None:
        name, _, trained_on = str(extra.get("data", "")).rpartition("/")
        split = split or trained_on
    if not name:
        raise ConfigError(
            f"{args.model} does not say what data it was trained on; give --data=NAME."
        )
    found = measurement.measure(args, name, split, args.num_pictures)
    card = found.card

    def shown(pictures) -> list[ReportPicture]:
        return [
            ReportPicture(
                seen.score.id,
                seen.score.miou,
                seen.record["image"],
                seen.record["label"],
                seen.pred,
            )
            for seen in pictures
        ]

    facts = {
        "model": card["model"],
        "backbone": card["options"].get("backbone", ""),
        "parameters": f"{card['weights']['parameters']:,}",
        "data": f"{name} {found.split}, {found.images} pictures",
        "protocol": found.protocol,
        "CRF": found.crf or "none",
        "trained for": f"{extra['step']} steps" if "step" in extra else "not known",
        "time": f"{found.seconds / found.images:.3f} s per picture, compilation included",
    }
    if found.boundary is not None:
        facts["boundary IoU"] = f"{100 * found.boundary.boundary_iou:.2f} %"
    details = {
        "Near boundaries": found.boundary.table() if found.boundary else "",
        "Categories and instances": found.cityscapes.table() if found.cityscapes else "",
        "Settings of the training": extra.get("config", ""),
        "Options of the model": card["options"],
        "Environment": _environment(),
    }
    page = ReportData(
        f"{card['model']} on {name} {found.split}",
        list(facts.items()),
        found.metrics,
        found.info.class_names,
        found.info.class_colors,
        _curves(pathlib.Path(args.model)),
        shown(found.records.worst),
        shown(found.records.best),
        [(s.id, s.miou, s.pixel_accuracy) for s in sorted(found.records.scores)],
        {title: value for title, value in details.items() if value},
    )
    write_page(out, page)
    print(f"{found.metrics.summary()}\nwritten:\n  {out}")
    return 0


def _curves(folder: pathlib.Path) -> list:
    """The curves of a run's log; none where there is no log."""
    from flaxseg.programs.report_page import Curve

    log = folder / "metrics.jsonl"
    if not log.is_file():
        return []
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]

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
                "accuracy in training": points("train", "accuracy"),
            },
            percent=True,
        ),
        Curve("Learning rate", {"rate": points("train", "learning_rate")}),
        Curve("Images per second", {"images/s": points("train", "images_per_second")}),
    ]


def _environment() -> dict[str, str]:
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "flaxseg": flaxseg.__version__,
        "Python": platform.python_version(),
        "devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
        **{name: importlib.metadata.version(name) for name in packages},
    }
