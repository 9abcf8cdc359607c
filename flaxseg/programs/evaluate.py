"""Implements `python -m flaxseg evaluate`."""

import argparse
import json
import math
import pathlib

from flaxseg.programs import arguments, measurement

NAME = "evaluate"
SUMMARY = "measure a model on a data set"
TEXT = """Measures a saved model on a split of a data set. Each image is run by the model's own
protocol: whole and at its own size, unless it was evaluated in another way in training.

Prints IoU, accuracy and pixels of each class, mIoU, pixel accuracy, mean accuracy and
frequency-weighted IoU; for the classes of Cityscapes also the IoU of its categories. With --out it
also writes metrics.json, confusion_matrix.csv, and panels (image, truth, prediction, errors) of the
first images and of the worst ones. The result does not depend on --batch_size or on the number of
devices. For the protocols of the papers, such as several scales or windows, see --protocol.
"""
EPILOG = """examples:
  python -m flaxseg evaluate runs/camvid
  python -m flaxseg evaluate runs/camvid --data=camvid --split=test
  python -m flaxseg evaluate runs/camvid --data=camvid --split=val --out=report
  python -m flaxseg evaluate runs/holes --data=folder --manual_dir=more_holes
  python -m flaxseg evaluate runs/camvid --data=camvid --batch_size=8 --pad_to 385 481
  python -m flaxseg evaluate runs/camvid --data=camvid --crf=deeplab_v2_vgg16
  python -m flaxseg evaluate runs/pspnet --data=cityscapes --protocol=pspnet_cityscapes_ms
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.model(parser)
    arguments.data_flag(parser)
    arguments.split(parser, "that of the training, or the data set's evaluation split")
    measurement.add_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for metrics.json and panels")
    text = "write panels of the first N and of the worst N images"
    arguments.count(parser, "--num_images", "N", 8, text, least=0)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    out = arguments.output_folder(args.out) if args.out else None
    found = measurement.measure(args, args.num_images if out else None)
    print(
        f"{found.card['model']} from {args.model} on {found.info.name} {found.split}: "
        f"{found.images} images"
    )
    print(f"CRF: {found.crf}\n" if found.crf else "")
    print(found.metrics.table(found.info.class_names))
    if found.boundary is not None:
        print(f"\n{found.boundary.table()}")
    if found.cityscapes is not None:
        print(f"\n{found.cityscapes.table()}")
    print(
        f"\n{found.seconds:.1f} s in all, {found.seconds / found.images:.3f} s per image "
        "(compilation included)"
    )
    if out is None:
        print("Give --out=DIR to keep metrics.json and panels of images.")
        return 0
    written = _write_results(out, _report(found, args.output_stride), found)
    arguments.print_written(written)
    return 0


def _report(found: measurement.Measurement, output_stride: int | None) -> dict:
    """Returns the content of metrics.json."""
    from flaxseg.evaluation.metrics import json_number

    return {
        "model": found.card["model"],
        "backbone": found.card["options"].get("backbone"),
        "parameters": found.card["weights"]["parameters"],
        "step": found.card.get("extra", {}).get("step"),
        "model_sha256": found.card["weights"]["sha256"],
        "data": found.info.name,
        "split": found.split,
        "images": found.images,
        "protocol": found.protocol,
        "output_stride": output_stride,
        "crf": found.crf,
        "seconds": round(found.seconds, 3),
        **found.metrics.to_dict(found.info.class_names),
        **({"boundary": found.boundary.to_dict()} if found.boundary else {}),
        **({"cityscapes": found.cityscapes.to_dict()} if found.cityscapes else {}),
        "records": [
            {
                "id": s.id,
                "miou": json_number(s.miou),
                "pixel_accuracy": json_number(s.pixel_accuracy),
            }
            for s in sorted(found.records.scores)
        ],
    }


def _write_results(
    out: pathlib.Path, report: dict, found: measurement.Measurement
) -> list[pathlib.Path]:
    """Writes metrics.json, confusion_matrix.csv and the panels, and returns their paths."""
    from flaxseg.drawing import save_image, side_by_side
    from flaxseg.files import write_text
    from flaxseg.paths import file_name

    numbered = [
        *(("first", seen.score.index, seen) for seen in found.records.first),
        *(("worst", rank, seen) for rank, seen in enumerate(found.records.worst)),
    ]
    panels = {
        f"{kind}_{number:03d}_{file_name(seen.score.id)}.png": seen
        for kind, number, seen in numbered
    }
    written = [out / "metrics.json", out / "confusion_matrix.csv"]
    _remove_panels(written[0])
    report = {**report, "panels": list(panels)}
    write_text(written[0], json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_text(written[1], found.metrics.matrix_as_csv(found.info.class_names))
    for name, seen in panels.items():
        miou = seen.score.miou
        text = "all pixels ignored" if math.isnan(miou) else f"mIoU {100 * miou:.1f} %"
        panel = side_by_side(
            seen.record["image"],
            seen.record["label"],
            seen.pred,
            found.info.class_names,
            found.info.class_colors,
            title=f"{seen.score.id}   {text}",
        )
        written.append(out / name)
        save_image(written[-1], panel)
    return written


def _remove_panels(metrics: pathlib.Path) -> None:
    """Removes the panels of an earlier evaluation, which would be taken for those of this one."""
    from flaxseg.files import writing
    from flaxseg.json_text import read_json

    try:
        panels = [pathlib.Path(name).name for name in read_json(metrics)["panels"]]
    except (OSError, ValueError, KeyError, TypeError):
        return  # there is none
    for name in panels:
        with writing(metrics.parent / name):
            (metrics.parent / name).unlink(missing_ok=True)
