"""Flags that several commands have, and what they mean."""

import argparse
import dataclasses

import flaxseg
from flaxseg.errors import ConfigError

MODEL_HELP = "folder of a saved model, or the working directory of a training run"


def model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help=MODEL_HELP)


def data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="NAME", help="name of the data set")


def data_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the data set; 'models' lists them")


def data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir",
        "--data-dir",
        metavar="DIR",
        help="folder of the prepared data sets (default: $FLAXSEG_DATA, or 'data')",
    )


def manual_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manual_dir",
        "--manual-dir",
        metavar="DIR",
        help="folder with the published files, if the set is not prepared yet; for the data set "
        "'folder', with your own pictures",
    )


def allow_problems(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow_problems",
        "--allow-problems",
        default="",
        metavar="KINDS",
        help="prepare in spite of problems of these kinds, comma separated or 'all', as "
        "verify-data names them; pairs that can not be used are left out",
    )


def output_stride(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output_stride",
        "--output-stride",
        type=int,
        choices=(8, 16, 32),
        metavar="N",
        help="compute features at this stride, 8, 16 or 32, in place of that of the training: "
        "the smaller, the finer, slower, and often better",
    )


def crf(parser: argparse.ArgumentParser, **options) -> None:
    parser.add_argument(
        "--crf",
        metavar="PRESET[(NAME=VALUE,...)]",
        help="refine predictions by a dense CRF: a preset (deeplab_v1_largefov, "
        "deeplab_v2_vgg16, deeplab_v2_resnet101, pydensecrf_readme, crfasrnn), or one with "
        "parameters changed (w1, sigma_alpha, sigma_beta, w2, sigma_gamma, iterations, "
        "normalization), such as 'deeplab_v2_vgg16(w1=3, sigma_alpha=60)'",
        **options,
    )


def at_least(minimum: int):
    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return whole_number


def load_model(args: argparse.Namespace) -> tuple:
    """The model and variables that `--model` and `--output_stride` name."""
    overrides = {"output_stride": args.output_stride} if args.output_stride else {}
    return flaxseg.load_model(args.model, **overrides)


def protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        metavar="NAME[(FIELD=VALUE,...)]",
        default="whole",
        help="how a picture is run: whole (default), windows, a paper's protocol such as "
        "pspnet_ms or deeplab_ms, or one with fields changed, such as "
        "'whole(scales=(0.75,1.0,1.25), flip=True)'; docs/evaluation.md lists all",
    )


def crf_of(args: argparse.Namespace):
    """The CRF of `--crf`, or None."""
    if args.crf is None:
        return None
    from flaxseg.crf.options import parse_crf

    return parse_crf(args.crf)


def protocol_of(args: argparse.Namespace, flag: str, **fields):
    """The protocol of `--protocol`, with the fields that a flag of its own sets."""
    from flaxseg.inference import parse_protocol

    protocol = parse_protocol(args.protocol)
    if fields and not protocol.is_plain:
        field, value = next(iter(fields.items()))
        raise ConfigError(
            f"{flag} does not go with --protocol={args.protocol}; set {field}={value} in its "
            "parentheses."
        )
    return dataclasses.replace(protocol, **fields)


def check_same_classes(card: dict, info, directory: str) -> None:
    """Raises ConfigError unless model and data set mean the same by every class index."""
    if card["num_classes"] != info.num_classes:
        raise ConfigError(
            f"the model in {directory} has {card['num_classes']} classes and data set "
            f"{info.name!r} has "
            f"{info.num_classes}; evaluate it on the data that it was trained for."
        )
    unnamed = [f"class {index}" for index in range(info.num_classes)]
    names = list(card["class_names"])
    different = [
        f"{index} ({model_name!r} in the model, {data_name!r} in the data)"
        for index, (model_name, data_name) in enumerate(zip(names, info.class_names, strict=True))
        if model_name != data_name
    ]
    if different and names != unnamed:
        raise ConfigError(
            f"the model in {directory} and data set {info.name!r} mean different things by class "
            f"{', '.join(different[:6])}{', ...' if len(different) > 6 else ''}; evaluate the "
            "model on the data that it was "
            "trained for."
        )
