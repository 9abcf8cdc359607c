"""Defines the arguments that several commands share, and turns them into what they name."""

import argparse
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import flaxseg
from flaxseg import settings
from flaxseg.classes import check_same_classes
from flaxseg.errors import ConfigError, DataError
from flaxseg.files import writing
from flaxseg.settings import LARGEST_COUNT, Rule

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.crf import CrfPreset
    from flaxseg.data import DatasetInfo
    from flaxseg.inference import Protocol

_MODEL_HELP = "folder of a saved model, or of a training run"
_DATA_HELP = "name of the data set; the command 'models' lists them"


def flag(parser: argparse.ArgumentParser, name: str, **options) -> None:
    """Adds a flag that may be written with underscores or with hyphens."""
    parser.add_argument(*dict.fromkeys((name, f"--{name[2:].replace('_', '-')}")), **options)


def model(parser: argparse.ArgumentParser) -> None:
    """Adds the model that a command works on."""
    parser.add_argument("model", metavar="MODEL", help=_MODEL_HELP)


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`, for a command that works on something else."""
    parser.add_argument("--model", required=True, metavar="MODEL", help=_MODEL_HELP)


def data(parser: argparse.ArgumentParser) -> None:
    """Adds the data set that a command works on."""
    parser.add_argument("data", metavar="DATA", help=_DATA_HELP)


def data_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--data`, for a command that works on a model."""
    parser.add_argument(
        "--data", metavar="DATA", help=f"{_DATA_HELP} (default: that of the training)"
    )


def split(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--split`; `default` says in words which one is taken otherwise."""
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help=f"split of the data set, or part of one such as 'val[:100]' (default: {default})",
    )


def data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data_dir`."""
    flag(
        parser,
        "--data_dir",
        metavar="DIR",
        help="folder of the prepared data sets (default: $FLAXSEG_DATA, or 'data')",
    )


def manual_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--manual_dir`."""
    flag(
        parser,
        "--manual_dir",
        metavar="DIR",
        help="folder of the published files, for a data set that has not been prepared; for the "
        "data set 'folder', the folder of your own images and masks",
    )


def allow_problems(parser: argparse.ArgumentParser) -> None:
    """Adds `--allow_problems`."""
    flag(
        parser,
        "--allow_problems",
        default="",
        metavar="KIND,...",
        help="prepare the data set despite problems of these kinds, as named by verify-data, or "
        "'all'; unusable pairs are left out",
    )


def output_stride(parser: argparse.ArgumentParser) -> None:
    """Adds `--output_stride`."""
    flag(
        parser,
        "--output_stride",
        type=int,
        choices=(8, 16, 32),
        metavar="N",
        help="output stride of the backbone, 8, 16 or 32 (default: that of the training); smaller "
        "ones are slower and often more accurate",
    )


def protocol(parser: argparse.ArgumentParser) -> None:
    """Adds `--protocol`."""
    parser.add_argument(
        "--protocol",
        metavar="NAME[(FIELD=VALUE,...)]",
        help="how an image is run: whole, windows, the protocol of a paper such as pspnet_ms or "
        "deeplab_ms, or one of these with fields changed, such as "
        "'whole(scales=(0.75,1.0,1.25), flip=True)'; docs/evaluation.md lists them (default: the "
        "model's own, with which it was evaluated in training or which its authors use)",
    )


def crf(parser: argparse.ArgumentParser, **options) -> None:
    """Adds `--crf`; `options` go to the parser."""
    parser.add_argument(
        "--crf",
        metavar="PRESET[(NAME=VALUE,...)]",
        help="refine predictions with a dense CRF: a preset (deeplab_v1_largefov, "
        "deeplab_v2_vgg16, deeplab_v2_resnet101, pydensecrf_readme, crfasrnn), or one with "
        "parameters changed (w1, sigma_alpha, sigma_beta, w2, sigma_gamma, iterations, "
        "normalization), such as 'deeplab_v2_vgg16(w1=3, sigma_alpha=60)'",
        **options,
    )


def at_least(minimum: int, most: int = LARGEST_COUNT) -> Callable[[str], int]:
    """Returns a type for integers that are not below `minimum`, nor above `most`."""
    return _ruled(int, settings.at_least(minimum, most))


def number(rule: Rule) -> Callable[[str], float]:
    """Returns a type for numbers that keep a rule."""
    return _ruled(float, rule)


def _ruled(kind: type, rule: Rule) -> Callable[[str], float]:
    def value_of(text: str) -> float:
        wanted = rule(kind(text))
        if wanted:
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text}")
        return kind(text)

    value_of.__name__ = "whole number" if kind is int else "number"  # for argparse's own message
    return value_of


def count(
    parser: argparse.ArgumentParser,
    name: str,
    metavar: str,
    default: int | None,
    text: str,
    *,
    least: int = 1,
    most: int = LARGEST_COUNT,
) -> None:
    """Adds a flag for a whole number; a default is named in the help."""
    if default is not None:
        text = f"{text} (default: {default})"
    flag(parser, name, type=at_least(least, most), default=default, metavar=metavar, help=text)


def print_written(paths: Iterable[pathlib.Path]) -> None:
    """Prints which files were written."""
    print("\n".join(["written:", *(f"  {path}" for path in paths)]))


def output_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes the folder if need be, and tries to write to it before any work is done.

    Raises:
      WriteError: nothing can be written there.
    """
    folder = pathlib.Path(path)
    with writing(f"to the output folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".flaxseg-{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    return folder


def load_model(args: argparse.Namespace, **overrides) -> tuple:
    """Returns the model and variables of `model`, at the stride of `--output_stride`."""
    if args.output_stride:
        overrides["output_stride"] = args.output_stride
    return flaxseg.load_model(args.model, **overrides)


def crf_of(args: argparse.Namespace) -> "CrfPreset | None":
    """Returns the CRF of `--crf`, or None."""
    if args.crf is None:
        return None
    from flaxseg.crf.options import parse_crf

    return parse_crf(args.crf)


def protocol_of(args: argparse.Namespace, card: dict, name: str = "", **fields) -> "Protocol":
    """Returns the protocol of `--protocol`, or else the model's own, and prints it unless it is
    `whole`.

    Args:
      args: with `protocol`.
      card: of the model.
      name: of a flag that stands for the protocol `whole` with `fields`.
      **fields: none where the flag is not given.
    """
    from flaxseg.inference import Protocol, parse_protocol

    given = None if args.protocol is None else parse_protocol(args.protocol)
    if fields:
        if given is not None and not given.is_plain:
            field, value = next(iter(fields.items()))
            raise ConfigError(
                f"{name} cannot be combined with --protocol={args.protocol}; set {field}={value} "
                "in its parentheses."
            )
        given = Protocol(**fields)
    protocol = parse_protocol(card["options"].get("protocol", "whole")) if given is None else given
    if not protocol.is_plain:
        own = "" if given else " (the model's own; --protocol=whole runs images as they are)"
        print(f"protocol: {protocol.describe()}{own}")
    return protocol


def data_of(args: argparse.Namespace, card: dict) -> tuple[str, "DatasetInfo"]:
    """Returns the full name and the facts of `data`, whose classes must be those of the model.

    Without `--data` it is the data set of the training, in the folders of its config. With
    `--manual_dir` the data set is prepared.

    Raises:
      ConfigError: there is no such data set, its classes are others, or the model does not say what
        it was trained on.
      DataError: it cannot be prepared, or the images of the training are no longer there.
    """
    from flaxseg import data

    if args.data is None:
        name = _data_of_training(args, card)
    else:
        name = data.full_name(args.data, args.manual_dir)
    info = data.dataset_info(name)
    if args.split:
        data.check_split(info, args.split)
    advice = f"evaluate {args.model} on the data that it was trained on."
    check_same_classes(card["class_names"], info.name, info.class_names, advice)
    if args.manual_dir:
        data.prepare(name, args.data_dir, args.manual_dir)
    return name, info


def split_of_training(card: dict) -> str:
    """Returns the split that a model was evaluated on in training; "" if its card does not say."""
    return str(card["extra"].get("data", "")).rpartition("/")[2]


def _data_of_training(args: argparse.Namespace, card: dict) -> str:
    """Returns the full name of the data set of the training, and sets `data_dir` unless given."""
    from flaxseg import data

    name = str(card["extra"].get("data", "")).rpartition("/")[0]
    if not name:
        raise ConfigError(
            f"{args.model} does not say what data it was trained on; give --data=NAME."
        )
    config = card["extra"].get("config", {})
    settings = config.get("data", {}) if isinstance(config, dict) else {}
    args.data_dir = args.data_dir or settings.get("dir")
    if settings.get("name") != "folder":
        return name
    # The name of one's own data set does not say where its files are.
    folder = args.manual_dir or settings.get("manual_dir")
    if folder and not pathlib.Path(folder).expanduser().is_dir():
        raise DataError(
            f"{args.model} was trained on your own images in {folder}, and there is no such folder "
            f"(from {pathlib.Path.cwd()}); give the one where they are now with --manual_dir."
        )
    return data.full_name("folder", folder)
