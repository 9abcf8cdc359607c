"""`python -m flaxseg predict`."""

import argparse

import flaxseg
from flaxseg.commands import arguments
from flaxseg.commands.output import Bar, output_folder
from flaxseg.errors import DataError

NAME = "predict"
SUMMARY = "write masks and overlays of pictures"
TEXT = """Writes the masks that a saved model predicts for pictures.

For each picture DIR gets NAME_mask.png, whose pixel values are the class indices (with a palette,
so that it can be looked at), and NAME_overlay.png, the picture tinted by class, with a legend.
JPEG, PNG, WebP, BMP, TIFF, PPM and GIF of any size are read; pictures with an EXIF orientation are
turned upright, and so are their masks. Results of an earlier run are replaced. A picture that can
not be read does not stop the others; it is named at the end, and the exit code is 1.

Each new picture size is compiled once, which takes seconds. For many sizes, set
JAX_COMPILATION_CACHE_DIR to a folder to keep the compiled programs, or bound their number with
--pad_multiple.
"""
EPILOG = """examples:
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg predict photos/ --model=runs/camvid --out=masks
  python -m flaxseg predict 'photos/**/*.jpg' more/*.png --model=runs/camvid --out=masks
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "pictures", nargs="+", metavar="IMAGE|FOLDER|GLOB", help="picture files, folders, patterns"
    )
    arguments.model(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
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
    from flaxseg.evaluation.picture_folder import plan_pictures, predict_pictures

    crf = arguments.crf_of(args)
    padding = {"pad_multiple": args.pad_multiple} if args.pad_multiple > 1 else {}
    protocol = arguments.protocol_of(args, "--pad_multiple", **padding)
    card = flaxseg.read_model_card(args.model)
    tasks = plan_pictures(args.pictures, args.out)
    output_folder(args.out)
    model, variables = arguments.load_model(args)
    failed = []
    with Bar(len(tasks), "predicting", "picture") as bar:
        results = predict_pictures(
            model,
            variables,
            tasks,
            card["class_names"],
            card["class_colors"],
            protocol=protocol,
            crf=crf,
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
                bar.print(f"  {result.task.mask}\n  {result.task.overlay}")
            bar.show(done)
    print(f"{len(tasks) - len(failed)} of {len(tasks)} pictures done; results in {args.out}")
    if not failed:
        return 0
    lines = [_failure(result) for result in failed]
    raise DataError("\n".join([f"{len(failed)} of {len(tasks)} pictures failed:", *lines]))


def _failure(result) -> str:
    """'  street.jpg: image file is truncated'; the path is not said twice."""
    message = str(result.error)
    return (
        f"  {message if str(result.task.source) in message else f'{result.task.source}: {message}'}"
    )
