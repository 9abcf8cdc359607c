"""`python -m flaxseg learn-basis`."""

import argparse

from flaxseg.programs import arguments
from flaxseg.programs.output import bars, output_folder

NAME = "learn-basis"
SUMMARY = "learn LRR's bases from labels"
TEXT = """Learns what the masks of each class look like nearby, from the labels of a data
set: the bases that LRR (and any decoder with LearnedBasisDeconv) upsamples with. Windows are cut
out of the training labels, and their principal components per class become the filters. Writes
bases.npz, for --config.init.bases; bases.png, all bases to look at; and report.json. Prints how
many pixels of held-out patches are wrong when they are reconstructed from few bases, beside
bilinear interpolation from as many values.
"""
EPILOG = """examples:
  python -m flaxseg learn-basis --data=camvid --num_bases=10 --out=runs/bases_camvid
  python train.py --config=configs/lrr.py:data=camvid \\
      --config.init.bases=runs/bases_camvid/bases.npz --workdir=runs/lrr
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.data(parser)
    parser.add_argument(
        "--split", metavar="NAME", help="labels to learn from (default: the one to train on)"
    )
    parser.add_argument(
        "--held_out",
        "--held-out",
        metavar="NAME",
        help="split whose patches are reconstructed (default: the one whose score is reported)",
    )
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    parser.add_argument(
        "--num_bases",
        "--num-bases",
        "--num_basis",
        "--num-basis",
        type=arguments.at_least(1),
        default=10,
        metavar="K",
        help="bases of each class (default: 10)",
    )
    parser.add_argument(
        "--patch_size",
        "--patch-size",
        type=arguments.at_least(4),
        default=32,
        metavar="P",
        help="side of the windows in pixels (default: 32)",
    )
    parser.add_argument(
        "--num_patches",
        "--num-patches",
        type=arguments.at_least(2),
        default=10_000,
        metavar="N",
        help="windows of each class to learn from (default: 10000)",
    )
    parser.add_argument(
        "--scale",
        choices=("released", "unit"),
        default="released",
        help="norm of the filters: that of the release, or 1 (default: released)",
    )
    parser.add_argument(
        "--seed", type=arguments.at_least(0), default=0, metavar="N", help="default: 0"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.programs.basis_learning import learn_basis

    args.data = data.full_name(args.data, args.manual_dir)
    out = output_folder(args.out)
    with bars("picture") as show:
        result = learn_basis(
            args.data,
            out,
            split=args.split,
            held_out=args.held_out,
            data_dir=args.data_dir,
            manual_dir=args.manual_dir,
            num_bases=args.num_bases,
            patch_size=args.patch_size,
            num_patches=args.num_patches,
            scale=args.scale,
            seed=args.seed,
            progress=show,
        )
    print(result.text)
    print("\n".join(["written:", *(f"  {path}" for path in result.written)]))
    return 0
