"""`python -m flaxseg tune-crf`."""

import argparse

import flaxseg
from flaxseg.programs import arguments
from flaxseg.programs.output import bars, output_folder

NAME = "tune-crf"
SUMMARY = "search the parameters of a CRF"
TEXT = """Searches the parameters of a dense CRF for a saved model, as the papers did: all
combinations of some values of w1, sigma_alpha and sigma_beta, then those around the best one. The
smoothness kernel stays as it is. Prints a table, and the text for --crf of evaluate and predict.
"""
EPILOG = """examples:
  python -m flaxseg tune-crf --model=runs/camvid --data=camvid --split=val --out=runs/crf
  python -m flaxseg tune-crf --model=runs/camvid --data=camvid --w1 3 5 --sigma_alpha 40 80 \\
      --sigma_beta 4 --limit=20
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.model(parser)
    arguments.data(parser)
    parser.add_argument("--split", metavar="NAME", help="default: val, or else the one to report")
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.output_stride(parser)
    for name, values, what in (
        ("w1", (3.0, 5.0), "weights of the appearance kernel"),
        ("sigma_alpha", (40.0, 60.0, 80.0), "its standard deviations of places, in pixels"),
        ("sigma_beta", (3.0, 5.0), "its standard deviations of colours, in grey levels"),
    ):
        parser.add_argument(
            f"--{name}",
            *([f"--{name.replace('_', '-')}"] if "_" in name else []),
            type=float,
            nargs="+",
            default=values,
            metavar="X",
            help=f"{what} (default: {' '.join(f'{v:g}' for v in values)})",
        )
    parser.add_argument(
        "--refinements",
        type=arguments.at_least(0),
        default=1,
        metavar="N",
        help="searches around the best, each at half the distance (default: 1)",
    )
    parser.add_argument(
        "--limit",
        type=arguments.at_least(1),
        default=100,
        metavar="N",
        help="pictures, spread over the split (default: 100)",
    )
    arguments.crf(parser, default="deeplab_v2_vgg16")
    parser.add_argument("--out", metavar="DIR", help="folder for crf.json")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.crf.options import format_crf
    from flaxseg.programs.crf_tuning import SEARCHED, tune_crf, write_tuned_crf

    base = arguments.crf_of(args)
    card = flaxseg.read_model_card(args.model)
    args.data = data.full_name(args.data, args.manual_dir)
    info = data.dataset_info(args.data)
    arguments.check_same_classes(card, info, args.model)
    if args.manual_dir:
        data.prepare(args.data, args.data_dir, args.manual_dir)
    split = args.split or ("val" if "val" in info.splits else info.eval_split)
    records = data.open_split(args.data, split, args.data_dir)
    out = output_folder(args.out) if args.out else None
    model, variables = arguments.load_model(args)
    with bars("inference") as show:
        tuned = tune_crf(
            model,
            variables,
            records,
            info.num_classes,
            base,
            {name: getattr(args, name) for name in SEARCHED},
            limit=args.limit,
            refinements=args.refinements,
            progress=show,
        )
    print(f"{card['model']} from {args.model} on {args.data} {split}: {tuned.pictures} images\n")
    print(tuned.table())
    print(f'\nbest: --crf="{format_crf(tuned.best)}"')
    if out is not None:
        print(f"written:\n  {write_tuned_crf(out, tuned)}")
    return 0
