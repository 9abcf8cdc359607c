"""`python -m flaxseg predict`."""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.programs import arguments
from flaxseg.programs.output import Bar, output_folder

NAME = "predict"
SUMMARY = "write masks, overlays, probabilities or a submission for pictures"
TEXT = """Writes what a saved model predicts for pictures.

For each picture DIR gets NAME_mask.png, whose pixel values are the class indices (with a palette,
so that it can be looked at), and NAME_overlay.png, the picture tinted by class, with a legend; with
--save also or only NAME_probabilities.npz. With --submission DIR gets what the evaluation server of
a data set wants. JPEG, PNG, WebP, BMP, TIFF, PPM and GIF of any size are read; pictures with an
EXIF orientation are turned upright, and so are their masks. A picture that can not be read does not
stop the others; it is named at the end, and the exit code is 1.

What is done is noted in DIR/predictions.jsonl: the same command again leaves it alone and does the
rest, and pictures that changed or were predicted by another model or in another way.

Each new picture size is compiled once, which takes seconds. For many sizes, set
JAX_COMPILATION_CACHE_DIR to a folder to keep the compiled programs, or bound their number with
--pad_multiple.
"""
EPILOG = """examples:
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg predict photos/ --model=runs/camvid --out=masks --save=mask,probabilities
  python -m flaxseg predict 'photos/**/*.jpg' more/*.png --model=runs/camvid --out=masks
  find photos -newer masks -name '*.jpg' | python -m flaxseg predict - --model=m --out=masks
  python -m flaxseg predict leftImg8bit/test --model=m --out=sent --submission=cityscapes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB|-",
        help="picture files, folders, patterns; - reads a list of files from standard input, one a "
        "line",
    )
    arguments.model(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--save",
        metavar="KIND,...",
        help="what to write: mask, overlay, probabilities (default: mask,overlay)",
    )
    parser.add_argument(
        "--top_classes",
        "--top-classes",
        type=arguments.at_least(1),
        metavar="K",
        help="of each pixel, save the probabilities of the K likeliest classes only",
    )
    parser.add_argument(
        "--submission",
        choices=("cityscapes", "voc", "ade20k"),
        metavar="SERVER",
        help="write for the evaluation server of cityscapes, voc or ade20k, in place of --save",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="do again what is done already, too"
    )
    parser.add_argument(
        "--pad_multiple",
        "--pad-multiple",
        type=arguments.at_least(1),
        default=1,
        metavar="N",
        help="pad pictures right and bottom to multiples of N with the model's mean colour: fewer "
        "sizes to compile, but classes can change, mostly near that border; 513 is DeepLab's "
        "canvas for pictures up to 513 x 513 (default: 1, off)",
    )
    arguments.output_stride(parser)
    arguments.protocol(parser)
    arguments.crf(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.crf.options import describe_crf
    from flaxseg.inference import Segmenter
    from flaxseg.programs.prediction.image_folder import predict_pictures
    from flaxseg.programs.prediction.prediction_record import PredictionRecord

    crf = arguments.crf_of(args)
    padding = {"pad_multiple": args.pad_multiple} if args.pad_multiple > 1 else {}
    protocol = arguments.protocol_of(args, "--pad_multiple", **padding)
    card = flaxseg.read_model_card(args.model)
    tasks, writer = _plan(args, card)
    record = PredictionRecord(
        args.out,
        {
            "flaxseg": flaxseg.__version__,
            **{key: card[key] for key in ("model", "options", "normalization", "weights")},
            **{key: list(card[key]) for key in ("class_names", "class_colors")},
            "output_stride": args.output_stride,
            "protocol": protocol.describe(),
            "crf": describe_crf(crf) if crf else None,
            "top_classes": args.top_classes,
            "submission": args.submission,
        },
    )
    output_folder(args.out)
    done_before = [
        task for task in tasks if not args.overwrite and record.is_done(task.source, task.files)
    ]
    if done_before:
        print(
            f"{len(done_before)} of {len(tasks)} pictures were done before, by the same model and "
            "in the same way; --overwrite does them again"
        )
        before = {task.source for task in done_before}
        tasks = [task for task in tasks if task.source not in before]
    failed = []
    if tasks:
        model, variables = arguments.load_model(args)
        with Bar(len(tasks), "predicting", "picture") as bar:
            results = predict_pictures(
                Segmenter(model, variables, protocol, crf=crf),
                tasks,
                writer,
                record=record,
                on_new_size=lambda size: bar.say(
                    f"compiling for {size[0]} x {size[1]} (height x width)"
                ),
            )
            for done, result in enumerate(results, start=1):
                if result.error is not None:
                    failed.append(result)
                else:
                    notes = f"  ({'; '.join(result.notes)})" if result.notes else ""
                    bar.print(f"{result.task.source}{notes}")
                    for path in result.task.files.values():
                        bar.print(f"  {path}")
                bar.show(done)
        print(f"{len(tasks) - len(failed)} of {len(tasks)} pictures done; results in {args.out}")
    if failed:
        lines = [_failure(result) for result in failed]
        raise DataError("\n".join([f"{len(failed)} of {len(tasks)} pictures failed:", *lines]))
    if args.submission:
        _say_how_to_submit(args, len(tasks) + len(done_before))
    return 0


def _plan(args: argparse.Namespace, card: dict) -> tuple[list, object]:
    """The tasks, and what writes their files."""
    from flaxseg.programs.prediction.image_folder import PictureTask, find_pictures, plan_pictures
    from flaxseg.programs.prediction.prediction_files import FileWriter, parse_kinds

    if args.submission and (args.save or args.top_classes):
        flag = "--save" if args.save else "--top_classes"
        raise ConfigError(f"{flag} does not go with --submission; run predict twice.")
    kinds = parse_kinds(args.save or "mask,overlay")
    if args.top_classes and "probabilities" not in kinds:
        raise ConfigError("--top_classes is for probabilities; add --save=mask,probabilities.")
    if args.top_classes and args.top_classes > card["num_classes"]:
        raise ConfigError(
            f"--top_classes is {args.top_classes} and the model has {card['num_classes']} classes."
        )
    if not args.submission:
        found = find_pictures(*_inputs(args.pictures, args.out))
        writer = FileWriter(card["class_names"], card["class_colors"], args.top_classes)
        return plan_pictures(found, args.out, kinds), writer
    from flaxseg.programs.prediction.submissions import KIND, SUBMISSIONS

    submission = SUBMISSIONS[args.submission]
    submission.check_classes(card["class_names"])
    found = find_pictures(*_inputs(args.pictures, args.out))
    files = submission.files(list(found), pathlib.Path(args.out).absolute())
    return [PictureTask(source, {KIND: file}) for source, file in files.items()], submission


def _inputs(pictures: Sequence[str], out: str) -> tuple[list[str], str, list[str]]:
    """The arguments of `find_pictures`; a `-` among the pictures is the list on standard input."""
    if "-" not in pictures:
        return list(pictures), out, []
    lines = os.fsdecode(sys.stdin.buffer.read()).split("\n")
    listed = [line.removesuffix("\r") for line in lines if line.strip()]
    if not listed:
        raise DataError("the list on standard input is empty; give a path on each line.")
    return [text for text in pictures if text != "-"], out, listed


def _say_how_to_submit(args: argparse.Namespace, number: int) -> None:
    from flaxseg.programs.prediction.submissions import SUBMISSIONS

    submission = SUBMISSIONS[args.submission]
    sizes = ", ".join(f"{split} has {size}" for split, size in submission.sizes.items())
    print(f"{number} results; the server wants one for each picture of the split ({sizes})")
    print("pack them with")
    print(f"  {submission.pack.format(out=shlex.quote(args.out))}")


def _failure(result) -> str:
    """'  street.jpg: image file is truncated'; the path is not said twice."""
    message = str(result.error)
    return (
        f"  {message if str(result.task.source) in message else f'{result.task.source}: {message}'}"
    )
