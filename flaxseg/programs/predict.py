"""Implements `python -m flaxseg predict`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.name_list import names_in_list
from flaxseg.programs import arguments
from flaxseg.progress import Progress

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.crf import CrfPreset
    from flaxseg.inference import Protocol, Segmenter
    from flaxseg.programs.prediction.image_run import ImageResult, Writer
    from flaxseg.programs.prediction.image_search import FoundImages
    from flaxseg.programs.prediction.output_names import ImageTask
    from flaxseg.programs.prediction.prediction_record import PredictionRecord

NAME = "predict"
SUMMARY = "write masks, overlays, probabilities or a submission for images"
TEXT = """Writes what a saved model predicts for images.

For each image, DIR gets NAME_mask.png, whose pixel values are class indices (with a palette, so
that they can be seen), and NAME_overlay.png, the image tinted by class, with a legend; with --save
also, or only, NAME_probabilities.npz. With --submission, DIR gets what the evaluation server of a
data set expects. JPEG, PNG, WebP, BMP, TIFF, PPM and GIF of any size are read; what is
done to one beyond decoding, such as transparent pixels laid over white, is printed with it. Images
with an EXIF orientation are turned upright, and so are their masks, but not for a submission. An
image that cannot be read does not stop the others; it is named at the end, and the exit code is 1.

NAME is the name of the image without suffix; of an image in a folder that is given, its path below
that folder. If two images would have one NAME, or a file of that name is there that is not of the
same image, nothing is done.

DIR/predictions.jsonl records what has been done: the same command run again skips it, and does the
rest, along with images that have changed or were predicted by another model or with other settings.

Each new image size is compiled once, which takes seconds. For many sizes, set
JAX_COMPILATION_CACHE_DIR to a folder to keep the compiled programs, or limit their number with
--pad_multiple.
"""
EPILOG = """examples:
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg predict photos/ --model=runs/camvid --out=masks --save=mask,probabilities
  python -m flaxseg predict 'photos/**/*.jpg' more/*.png --model=runs/camvid --out=masks
  find photos -newer masks -name '*.jpg' | python -m flaxseg predict - --root=photos --model=m \\
      --out=masks
  python -m flaxseg predict leftImg8bit/test --model=m --out=sent --submission=cityscapes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE|FOLDER|GLOB|-",
        help="image files, folders, patterns; - reads a list of files from standard input, one per "
        "line or with zero bytes between them",
    )
    arguments.model_flag(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="keep the path of every image below this folder in the names of its results (default: "
        "the path below a folder that is given; of a file, its name alone)",
    )
    parser.add_argument(
        "--save",
        metavar="KIND,...",
        help="what to write: mask, overlay, probabilities (default: mask,overlay)",
    )
    text = "save only the probabilities of the K most likely classes of each pixel"
    arguments.count(parser, "--top_classes", "K", None, text)
    parser.add_argument(
        "--submission",
        choices=("cityscapes", "voc", "ade20k"),
        metavar="SERVER",
        help="write for the evaluation server of cityscapes, voc or ade20k, instead of --save",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="redo images that have been done already"
    )
    text = (
        "pad images on the right and at the bottom to multiples of N with the model's mean colour: "
        "fewer sizes to compile, but classes can change, mostly near that border"
    )
    arguments.count(parser, "--pad_multiple", "N", 1, text)
    arguments.output_stride(parser)
    arguments.protocol(parser)
    arguments.crf(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.programs.prediction.output_names import check_names

    crf = arguments.crf_of(args)
    padding = {"pad_multiple": args.pad_multiple} if args.pad_multiple > 1 else {}
    card = flaxseg.read_model_card(args.model)
    protocol = arguments.protocol_of(args, card, "--pad_multiple", **padding)
    found, tasks, writer = _plan(args, card)
    record = _record(args, card, protocol, crf)
    check_names(tasks, record, root_helps=not args.submission)
    arguments.output_folder(args.out)
    for line in found.left_out:
        print(line)
    to_do = [t for t in tasks if args.overwrite or not record.is_done(t.source, t.files)]
    if len(to_do) < len(tasks):
        print(
            f"{len(tasks) - len(to_do)} of {len(tasks)} images were done before, by the same model "
            "with the same settings; --overwrite redoes them"
        )
    failed = []
    if to_do:
        from flaxseg.inference import Segmenter

        segment = Segmenter(*arguments.load_model(args), protocol, crf=crf)
        failed = _predict(segment, to_do, writer, record)
    _raise_failures(failed, len(to_do), found.missed)
    if args.submission:
        _say_how_to_submit(args, len(tasks))
    return 0


def _plan(args: argparse.Namespace, card: dict) -> "tuple[FoundImages, list[ImageTask], Writer]":
    """Returns the images, the tasks, and what writes their files."""
    from flaxseg.programs.prediction.image_search import find_images
    from flaxseg.programs.prediction.output_names import plan_tasks
    from flaxseg.programs.prediction.prediction_files import FileWriter, parse_kinds

    for name in ("save", "top_classes", "root"):
        if args.submission and getattr(args, name):
            raise ConfigError(f"--{name} cannot be combined with --submission; run predict twice.")
    kinds = parse_kinds(args.save or "mask,overlay")
    if args.top_classes and "probabilities" not in kinds:
        raise ConfigError("--top_classes is for probabilities; add --save=mask,probabilities.")
    if args.top_classes and args.top_classes > card["num_classes"]:
        raise ConfigError(
            f"--top_classes is {args.top_classes} and the model has {card['num_classes']} classes."
        )
    if args.submission:
        from flaxseg.programs.prediction.submissions import SUBMISSIONS

        submission = SUBMISSIONS[args.submission]
        submission.check_classes(card["class_names"])
        found = find_images(*_inputs(args.images), args.out)
        return found, submission.plan_tasks(found.names, args.out), submission
    found = find_images(*_inputs(args.images), args.out, args.root)
    writer = FileWriter(card["class_names"], card["class_colors"], args.top_classes)
    return found, plan_tasks(found.names, args.out, kinds), writer


def _inputs(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the arguments but `-`, and the list on standard input that `-` stands for."""
    if "-" not in images:
        return list(images), []
    names = names_in_list(sys.stdin.buffer.read())
    if not names:
        raise DataError("the list on standard input is empty; give one path per line.")
    return [text for text in images if text != "-"], names


def _record(
    args: argparse.Namespace, card: dict, protocol: "Protocol", crf: "CrfPreset | None"
) -> "PredictionRecord":
    """Opens the record of the output folder for these settings."""
    from flaxseg.crf.options import describe_crf
    from flaxseg.programs.prediction.prediction_record import PredictionRecord

    return PredictionRecord(
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


def _predict(
    segment: "Segmenter",
    tasks: "Sequence[ImageTask]",
    writer: "Writer",
    record: "PredictionRecord",
) -> "list[ImageResult]":
    """Does the tasks, prints what was written, and returns those that failed."""
    from flaxseg.programs.prediction.image_run import predict_images
    from flaxseg.programs.prediction.submissions import Submission

    # The labels of published data sets, which a server compares with, were drawn on stored pixels.
    orientation = "as_stored" if isinstance(writer, Submission) else "upright"
    failed, done = [], 0
    with Progress("predicting", len(tasks)) as bar:
        results = predict_images(
            segment,
            tasks,
            writer,
            record,
            on_new_size=lambda size: bar.say(
                f"compiling for {size[0]} x {size[1]} (height x width)"
            ),
            orientation=orientation,
        )
        try:
            for result in results:
                if result.error is not None:
                    failed.append(result)
                else:
                    done += 1
                    notes = f"  ({'; '.join(result.notes)})" if result.notes else ""
                    bar.print(f"{result.task.source}{notes}")
                    for path in result.task.files.values():
                        bar.print(f"  {path}")
                bar.advance()
        finally:
            bar.print(f"{done} of {len(tasks)} images done; results in {record.folder}")
    return failed


def _raise_failures(failed: "list[ImageResult]", number: int, missed: Sequence[str]) -> None:
    """Raises DataError if images failed, or were meant and could not be taken."""
    lines = []
    if failed:
        lines = [f"{len(failed)} of {number} images failed:", *map(_failure, failed)]
    if missed:
        lines += ["not all images that are there could be taken:", *missed]
    if lines:
        raise DataError("\n".join(lines))


def _failure(result: "ImageResult") -> str:
    """Returns a line such as '  street.jpg: image file is truncated', with the path once."""
    message = str(result.error)
    source = str(result.task.source)
    return f"  {message if source in message else f'{source}: {message}'}"


def _say_how_to_submit(args: argparse.Namespace, number: int) -> None:
    """Prints what the server expects, and the command that packs it."""
    from flaxseg.programs.prediction.submissions import SUBMISSIONS

    submission = SUBMISSIONS[args.submission]
    sizes = ", ".join(f"{split} has {size}" for split, size in submission.sizes.items())
    print(f"{number} results; the server expects one for each image of the split ({sizes})")
    print("pack them with")
    print(f"  {submission.pack.format(out=shlex.quote(args.out))}")
