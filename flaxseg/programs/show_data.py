"""Implements `python -m flaxseg show-data`."""

import argparse
import os
import pathlib
from typing import TYPE_CHECKING, Any

from flaxseg.programs import arguments
from flaxseg.programs.recipe_list import load_recipe
from flaxseg.settings import LARGEST_SEED

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.data import Augmentation

NAME = "show-data"
SUMMARY = "draw augmented training examples"
TEXT = """Draws a contact sheet of what training would see: the first examples of the stream after
random scaling, cropping, flipping and colour jitter, each beside a copy with its label laid over
it. Labels that are shifted, swapped or missing are obvious there, so look at it before training.

--config takes the settings of a recipe; flags given here override them.
"""
EPILOG = """examples:
  python -m flaxseg show-data camvid --config=deeplab:data=camvid --out=sheet.png
  python -m flaxseg show-data folder --manual_dir=my_images --photometric=0.5 --rotate=10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.data(parser)
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.allow_problems(parser)
    arguments.split(parser, "its training split")
    parser.add_argument("--config", metavar="RECIPE", help="recipe to take the settings from")
    arguments.flag(
        parser, "--crop_size", type=arguments.at_least(1), nargs=2, metavar=("H", "W"),
        help="height and width of the crops",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, nargs=2, metavar=("MIN", "MAX"), help="range of the random scale"
    )
    parser.add_argument("--rotate", type=float, metavar="DEGREES", help="largest rotation")
    parser.add_argument("--blur", type=float, metavar="P", help="probability of a blur")
    parser.add_argument(
        "--photometric", type=float, metavar="S", help="strength of the colour jitter, 0 to 1"
    )
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror half of them"
    )
    arguments.count(
        parser, "--seed", "N", None, "seed of the stream (default: 0)", least=0, most=LARGEST_SEED
    )
    arguments.count(parser, "--num_examples", "N", 12, "number of examples", most=1000)
    parser.add_argument(
        "--out", default="data.png", metavar="FILE", help="the PNG to write (default: data.png)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    out = pathlib.Path(args.out)
    arguments.output_folder(out.parent)
    given = ("crop_size", "scale", "flip", "rotate", "blur", "photometric", "seed", "split")
    shown = show_data(
        args.data,
        out,
        config=args.config,
        manual_dir=args.manual_dir,
        data_dir=args.data_dir,
        allow_problems=args.allow_problems,
        num_examples=args.num_examples,
        **{key: getattr(args, key) for key in given if getattr(args, key) is not None},
    )
    print(shown)
    arguments.print_written([out])
    return 0


def show_data(
    name: str,
    out: pathlib.Path,
    *,
    config: str | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    allow_problems: str = "",
    num_examples: int = 12,
    **settings: Any,
) -> str:
    """Draws the first examples that a training run would see.

    Args:
      name: name of the data set, which is prepared if need be.
      out: the PNG to write.
      config: a recipe, by name or file, whose settings are taken; None for the defaults.
      manual_dir, data_dir, allow_problems: see `flaxseg.data.prepare`.
      num_examples: number of examples.
      **settings: overrides of the recipe: split, seed, crop_size, and the attributes of
        `flaxseg.data.Augmentation`.

    Returns:
      What is shown, in words.

    Raises:
      ConfigError: a name or a setting is not possible, or the recipe cannot be read.
      DataError: the data cannot be found, read or written.
    """
    from flaxseg import data
    from flaxseg.drawing.examples import draw_examples
    from flaxseg.drawing.images import save_image

    name = data.full_name(name, manual_dir)
    info = data.dataset_info(name)
    chosen = {**(_settings_of(config) if config else {}), **settings}
    split = data.chosen_split(info, chosen.pop("split", None), info.train_split)
    crop_size = tuple(chosen.pop("crop_size", (256, 256)))
    seed = chosen.pop("seed", 0)
    augmentation = data.Augmentation(**chosen)
    data.prepare(name, data_dir, manual_dir, allow_problems=allow_problems)
    batches = data.train_batches(
        name,
        split,
        data_dir=data_dir,
        batch_size=num_examples,
        crop_size=crop_size,
        augmentation=augmentation,
        seed=seed,
        num_threads=0,
    )
    try:
        batch = next(batches)
    finally:
        batches.close()
    title = f"{info.name} {split}, seed {seed}: {_words(crop_size, augmentation)}"
    save_image(out, draw_examples(batch, info, title))
    return f"{num_examples} examples of {title}"


def _settings_of(config: str) -> dict[str, Any]:
    """Returns the settings of a recipe that `show_data` takes."""
    from flaxseg.training.assemble import stream_settings

    return stream_settings(load_recipe(config))


def _words(crop_size: tuple[int, ...], augmentation: "Augmentation") -> str:
    """Returns the settings in words, such as "crop 256 x 256, scale 0.5 to 2, flip"."""
    words = [f"crop {crop_size[0]} x {crop_size[1]}"]
    words.append(f"scale {augmentation.scale[0]:g} to {augmentation.scale[1]:g}")
    words += ["flip"] if augmentation.flip else []
    words += [f"rotate {augmentation.rotate:g}"] if augmentation.rotate else []
    words += [f"blur {augmentation.blur:g}"] if augmentation.blur else []
    words += [f"photometric {augmentation.photometric:g}"] if augmentation.photometric else []
    return ", ".join(words)
