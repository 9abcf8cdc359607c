"""`python -m flaxseg evaluate`."""

import argparse
import json
import math
import os
import pathlib
import re
import time

import flaxseg
from flaxseg.commands import arguments
from flaxseg.commands.output import Bar, output_folder
from flaxseg.errors import DataError

NAME = "evaluate"
SUMMARY = "measure a model on a data set"
TEXT = """Measures a saved model on a split of a data set: each image whole, at its own size.

Prints IoU, accuracy and pixels of each class, mIoU, pixel accuracy, mean accuracy and
frequency-weighted IoU. With --out it also writes metrics.json, and pictures (image, truth,
prediction, errors) of the first images and of the worst ones. The result does not depend on
--batch_size or the number of devices.
"""
EPILOG = """examples:
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --split=test
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --split=val --out=report
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --batch_size=8 --pad_to 385 481
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --crf=deeplab_v2_vgg16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.model(parser)
    arguments.data(parser)
    parser.add_argument("--split", metavar="NAME", help="default: the one whose score is reported")
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
    parser.add_argument("--out", metavar="DIR", help="folder for metrics.json and pictures")
    parser.add_argument(
        "--num_pictures",
        "--num-pictures",
        type=arguments.at_least(0),
        default=8,
        metavar="N",
        help="pictures of the first N and of the worst N images (default: 8)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import jax

    from flaxseg import data
    from flaxseg.evaluation import RecordScores, evaluate, format_crf, plan_inference

    card = flaxseg.read_model_card(args.model)
    args.data = data.full_name(args.data, args.manual_dir)
    info = data.dataset_info(args.data)
    arguments.check_same_classes(card, info, args.model)
    if args.manual_dir:
        data.prepare(args.data, args.data_dir, args.manual_dir)
    split = args.split or info.eval_split
    records = data.open_split(args.data, split, args.data_dir)
    crf = arguments.crf_of(args)
    canvas = {"pad_to": tuple(args.pad_to)} if args.pad_to else {}
    protocol = arguments.protocol_of(args, "--pad_to", **canvas)
    out = output_folder(args.out) if args.out else None
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
    scores = RecordScores(args.num_pictures, info.num_classes)
    started = time.monotonic()
    with Bar(len(records), "evaluating", "image") as bar:
        metrics = evaluate(
            plan.predict_fn,
            records,
            info.num_classes,
            **plan.options,
            progress=lambda done, _: bar.show(done),
            on_prediction=scores.see if out else None,
        )
    seconds = time.monotonic() - started
    print(f"{card['model']} from {args.model} on {args.data} {split}: {len(records)} images")
    if not protocol.is_plain:
        print(f"protocol: {protocol.describe()}")
    print(f"CRF: {format_crf(crf)}\n" if crf else "")
    print(metrics.table(info.class_names))
    print(
        f"\n{seconds:.1f} s in all, {seconds / len(records):.3f} s per image (compilation included)"
    )
    if out is None:
        print("Give --out=DIR to keep metrics.json and pictures.")
        return 0
    report = {
        "model": card["model"],
        "model_sha256": card["weights"]["sha256"],
        "data": args.data,
        "split": split,
        "images": len(records),
        "protocol": protocol.describe(),
        "output_stride": args.output_stride,
        "crf": format_crf(crf) if crf else None,
        "seconds": round(seconds, 3),
        **metrics.to_dict(info.class_names),
        "records": [
            {"id": s.id, "miou": _number(s.miou), "pixel_accuracy": _number(s.pixel_accuracy)}
            for s in sorted(scores.scores)
        ],
    }
    written = _write_results(out, report, scores, info)
    print("\n".join(["written:", *(f"  {path}" for path in written)]))
    return 0


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_results(out: pathlib.Path, report: dict, scores, info) -> list[pathlib.Path]:
    """Writes metrics.json and the pictures; returns their paths."""
    from flaxseg.evaluation import save_picture, side_by_side

    pictures = {f"first_{seen.score.index:03d}_{_file_name(seen)}": seen for seen in scores.first}
    for rank, seen in enumerate(scores.worst):
        pictures[f"worst_{rank:03d}_{_file_name(seen)}"] = seen
    try:
        # Pictures of an earlier evaluation would be taken for those of this one.
        for old in [*out.glob("first_*.png"), *out.glob("worst_*.png")]:
            old.unlink()
        written = [out / "metrics.json"]
        part = out / ".metrics.json.part"
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        os.replace(part, written[0])
        for name, seen in pictures.items():
            miou = seen.score.miou
            text = "all pixels ignored" if math.isnan(miou) else f"mIoU {100 * miou:.1f} %"
            picture = side_by_side(
                seen.record["image"],
                seen.record["label"],
                seen.pred,
                info.class_names,
                info.class_colors,
                title=f"{seen.score.id}   {text}",
            )
            written.append(out / f"{name}.png")
            save_picture(written[-1], picture)
    except OSError as error:
        raise DataError(f"could not write to {out}: {error.strerror or error}.") from error
    return written


def _file_name(seen) -> str:
    """A record's id with everything but letters, digits, '.', '_' and '-' replaced."""
    return re.sub(r"[^\w.-]+", "_", seen.score.id)[:100]
