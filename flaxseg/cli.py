"""The command line: `python -m flaxseg evaluate | predict | import | prune | learn-basis | models |
prepare-data | verify-data | show-data`.

Exit codes: 0 done; 1 an error that is named on stderr; 2 wrong flags or settings; 130 interrupted.
"""

import argparse
import contextlib
import difflib
import heapq
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import numpy as np
import tqdm

import flaxseg
from flaxseg.errors import ConfigError, DataError, FlaxsegError
from flaxseg.host_memory import keep_freed_memory

_INTERRUPTED = 130

_EPILOG = """examples:
  python -m flaxseg prepare-data camvid --manual_dir=downloads/CamVid
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --split=test --out=runs/camvid/test
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg models

'python -m flaxseg COMMAND --help' explains a command. Training: python train.py --help
"""

_EVALUATE = """Measures a saved model on a split of a data set: each image whole, at its own size.

Prints IoU, accuracy and pixels of each class, mIoU, pixel accuracy, mean accuracy and
frequency-weighted IoU. With --out it also writes metrics.json, and pictures (image, truth,
prediction, errors) of the first images and of the worst ones. The result does not depend on
--batch_size or the number of devices.
"""

_EVALUATE_EPILOG = """examples:
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --split=test
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --split=val --out=report
  python -m flaxseg evaluate --model=runs/camvid --data=camvid --batch_size=8 --pad_to 385 481
"""

_PREDICT = """Writes the masks that a saved model predicts for pictures.

For each picture DIR gets NAME_mask.png, whose pixel values are the class indices (with a palette,
so that it can be looked at), and NAME_overlay.png, the picture tinted by class, with a legend.
JPEG, PNG, WebP, BMP, TIFF, PPM and GIF of any size are read; pictures with an EXIF orientation are
turned upright, and so are their masks. Results of an earlier run are replaced. A picture that can
not be read does not stop the others; it is named at the end, and the exit code is 1.

Each new picture size is compiled once, which takes seconds. For many sizes, set
JAX_COMPILATION_CACHE_DIR to a folder to keep the compiled programs, or bound their number with
--pad_multiple.
"""

_PREDICT_EPILOG = """examples:
  python -m flaxseg predict street.jpg --model=runs/camvid --out=masks
  python -m flaxseg predict photos/ --model=runs/camvid --out=masks
  python -m flaxseg predict 'photos/**/*.jpg' more/*.png --model=runs/camvid --out=masks
"""

_PREPARE = """Makes a data set ready for training and evaluation: generates it, downloads it, or
converts the published files in --manual_dir. A data set that is ready already is left as it is.
"""

_PREPARE_EPILOG = """examples:
  python -m flaxseg prepare-data shapes
  python -m flaxseg prepare-data camvid --manual_dir=downloads/CamVid --data_dir=/data
"""

_VERIFY = """Reads a whole data set, says everything that is wrong with it, and counts what it
holds: pixels of each class, weights that balance them, sizes of the pictures. With --manual_dir
the files there are checked, before anything is made of them; without, the prepared records.

All problems are printed, one a line, and with --out they are in report.json beside a picture of
the classes and sizes. The exit code is 1 if there is a problem; warnings do not count.
"""

_VERIFY_EPILOG = """examples:
  python -m flaxseg verify-data camvid --manual_dir=downloads/CamVid
  python -m flaxseg verify-data folder --manual_dir=my_pictures --out=runs/check
  python -m flaxseg verify-data folder --manual_dir=my_pictures --json > report.json
"""

_SHOW = """Writes a sheet of pictures as training would see them: the first examples of the stream,
scaled, cropped, flipped and coloured at random, each beside itself with its label laid over it.
Look at it before a training: labels that are shifted, swapped or missing are seen at once.

With --config the settings are those of a recipe; flags given here come before them.
"""

_SHOW_EPILOG = """examples:
  python -m flaxseg show-data camvid --config=configs/deeplab.py:data=camvid --out=sheet.png
  python -m flaxseg show-data folder --manual_dir=my_pictures --photometric=0.5 --rotate=10
"""

_IMPORT = """Converts a segmentation network of another library into a saved model, for predict and
evaluate. SOURCE is a .safetensors, .npz or .pth file, or a name on the Hugging Face hub. Files of
PyTorch are read without running the code in them.
"""

_IMPORT_EPILOG = """examples:
  python -m flaxseg import deeplabv3_resnet50_coco.pth --out=models/coco
  python -m flaxseg predict street.jpg --model=models/coco --out=masks
"""


_PRUNE = """Cuts the filters with the smallest L1 norms out of a saved ICNet on a ResNet. What comes
out has fewer channels in every layer and is to be trained on, with --config.init.model. Layers
whose outputs are added keep the same channels.
"""

_PRUNE_EPILOG = """examples:
  python -m flaxseg prune runs/full --keep=0.5 --out=models/half
  python train.py --config=configs/icnet.py --config.init.model=models/half --workdir=runs/half

The paper keeps 3/4, trains, and then keeps 2/3 of that.
"""

_LEARN_BASIS = """Learns what the masks of each class look like nearby, from the labels of a data
set: the bases that LRR (and any decoder with LearnedBasisDeconv) upsamples with. Windows are cut
out of the training labels, and their principal components per class become the filters. Writes
bases.npz, for --config.init.bases; bases.png, all bases to look at; and report.json. Prints how
many pixels of held-out patches are wrong when they are reconstructed from few bases, beside
bilinear interpolation from as many values.
"""

_LEARN_BASIS_EPILOG = """examples:
  python -m flaxseg learn-basis --data=camvid --num_bases=10 --out=runs/bases_camvid
  python train.py --config=configs/lrr.py:data=camvid \\
      --config.init.bases=runs/bases_camvid/bases.npz --workdir=runs/lrr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
      argv: the arguments after the program's name; those of the process by default.
    """
    try:
        args = _parser().parse_args(argv)
        keep_freed_memory()
        return args.run(args)
    except FlaxsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `... | head`; the flush at exit must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class _Parser(argparse.ArgumentParser):
    """Raises ConfigError, with what might have been meant, in place of leaving the process."""

    def error(self, message: str) -> None:
        match = re.search(r"invalid choice: '([^']*)'", message)
        if match:
            known = self._choices()
            message = f"there is no command {match[1]!r}; commands: {', '.join(known)}."
            message += _near(match[1], known)
        elif message.startswith("unrecognized arguments:"):
            known = [name for action in self._all_actions() for name in action.option_strings]
            unknown = message.split(": ", 1)[1].split()
            message += "".join(_near(word.split("=")[0], known) for word in unknown)
        raise ConfigError(f"{message}\nSee: {self.prog} --help")

    def _choices(self) -> list[str]:
        return [
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name in action.choices
        ]

    def _all_actions(self) -> list[argparse.Action]:
        actions = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                actions += [
                    inner for parser in action.choices.values() for inner in parser._actions
                ]
        return actions


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m flaxseg",
        description="Evaluates and applies saved segmentation models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"flaxseg {flaxseg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run, summary: str, text: str, epilog: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    model_help = "folder of a saved model, or the working directory of a training run"
    data_dir_help = "folder of the prepared data sets (default: $FLAXSEG_DATA, or 'data')"
    manual_dir_help = (
        "folder with the published files, if the set is not prepared yet; for the data set "
        "'folder', with your own pictures"
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

    evaluate = command(
        "evaluate", _evaluate, "measure a model on a data set", _EVALUATE, _EVALUATE_EPILOG
    )
    evaluate.add_argument("--model", required=True, metavar="DIR", help=model_help)
    evaluate.add_argument("--data", required=True, metavar="NAME", help="name of the data set")
    evaluate.add_argument(
        "--split", metavar="NAME", help="default: the one whose score is reported"
    )
    evaluate.add_argument("--data_dir", "--data-dir", metavar="DIR", help=data_dir_help)
    evaluate.add_argument("--manual_dir", "--manual-dir", metavar="DIR", help=manual_dir_help)
    evaluate.add_argument(
        "--batch_size",
        "--batch-size",
        type=_at_least(1),
        default=None,
        metavar="N",
        help="images at a time, over all devices (default: 1 per device on CPU, 8 on others)",
    )
    evaluate.add_argument(
        "--pad_to",
        "--pad-to",
        type=_at_least(1),
        nargs=2,
        metavar=("H", "W"),
        help="put all images on a canvas of this size (DeepLab's 513 513 for VOC): one compilation "
        "where sizes vary; default: each image at its own size",
    )
    output_stride(evaluate)
    evaluate.add_argument("--out", metavar="DIR", help="folder for metrics.json and pictures")
    evaluate.add_argument(
        "--num_pictures",
        "--num-pictures",
        type=_at_least(0),
        default=8,
        metavar="N",
        help="pictures of the first N and of the worst N images (default: 8)",
    )

    predict = command(
        "predict", _predict, "write masks and overlays of pictures", _PREDICT, _PREDICT_EPILOG
    )
    predict.add_argument(
        "pictures", nargs="+", metavar="IMAGE|FOLDER|GLOB", help="picture files, folders, patterns"
    )
    predict.add_argument("--model", required=True, metavar="DIR", help=model_help)
    predict.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    predict.add_argument(
        "--pad_multiple",
        "--pad-multiple",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="pad pictures right and bottom to multiples of N with the model's mean colour: fewer "
        "sizes to compile, but classes can change, mostly near that border; 513 is DeepLab's "
        "canvas for pictures up to 513 x 513 (default: 1, off)",
    )
    output_stride(predict)

    import_ = command(
        "import", _import, "convert a network of another library", _IMPORT, _IMPORT_EPILOG
    )
    import_.add_argument("source", metavar="SOURCE", help="weights file, or name on the hub")
    import_.add_argument("--out", required=True, metavar="DIR", help="folder of the saved model")

    prune = command("prune", _prune, "cut channels out of a trained ICNet", _PRUNE, _PRUNE_EPILOG)
    prune.add_argument("model", metavar="DIR", help=model_help)
    prune.add_argument(
        "--keep",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the channels that stay (default: 0.5)",
    )
    prune.add_argument("--out", required=True, metavar="DIR", help="folder of the smaller model")

    learn = command(
        "learn-basis",
        _learn_basis,
        "learn LRR's bases from labels",
        _LEARN_BASIS,
        _LEARN_BASIS_EPILOG,
    )
    learn.add_argument("--data", required=True, metavar="NAME", help="name of the data set")
    learn.add_argument(
        "--split", metavar="NAME", help="labels to learn from (default: the one to train on)"
    )
    learn.add_argument(
        "--held_out",
        "--held-out",
        metavar="NAME",
        help="split whose patches are reconstructed (default: the one whose score is reported)",
    )
    learn.add_argument("--data_dir", "--data-dir", metavar="DIR", help=data_dir_help)
    learn.add_argument("--manual_dir", "--manual-dir", metavar="DIR", help=manual_dir_help)
    learn.add_argument(
        "--num_bases",
        "--num-bases",
        "--num_basis",
        "--num-basis",
        type=_at_least(1),
        default=10,
        metavar="K",
        help="bases of each class (default: 10)",
    )
    learn.add_argument(
        "--patch_size",
        "--patch-size",
        type=_at_least(4),
        default=32,
        metavar="P",
        help="side of the windows in pixels (default: 32)",
    )
    learn.add_argument(
        "--num_patches",
        "--num-patches",
        type=_at_least(2),
        default=10_000,
        metavar="N",
        help="windows of each class to learn from (default: 10000)",
    )
    learn.add_argument(
        "--scale",
        choices=("released", "unit"),
        default="released",
        help="norm of the filters: that of the release, or 1 (default: released)",
    )
    learn.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="default: 0")
    learn.add_argument("--out", required=True, metavar="DIR", help="folder for the results")

    command(
        "models",
        _models,
        "list models, backbones and data sets",
        "Lists what can be built by name.",
    )

    prepare = command(
        "prepare-data", _prepare_data, "make a data set ready", _PREPARE, _PREPARE_EPILOG
    )
    prepare.add_argument("name", metavar="NAME", help="name of the data set; 'models' lists them")
    prepare.add_argument("--data_dir", "--data-dir", metavar="DIR", help=data_dir_help)
    prepare.add_argument("--manual_dir", "--manual-dir", metavar="DIR", help=manual_dir_help)
    allow_problems(prepare)

    verify = command(
        "verify-data", _verify_data, "check a data set and count", _VERIFY, _VERIFY_EPILOG
    )
    verify.add_argument("name", metavar="NAME", help="name of the data set; 'models' lists them")
    verify.add_argument("--data_dir", "--data-dir", metavar="DIR", help=data_dir_help)
    verify.add_argument(
        "--manual_dir", "--manual-dir", metavar="DIR", help="folder with the files to check"
    )
    verify.add_argument("--out", metavar="DIR", help="folder for report.txt, .json and .png")
    verify.add_argument(
        "--json", action="store_true", help="print the report as JSON in place of text"
    )
    verify.add_argument(
        "--num_threads",
        "--num-threads",
        type=_at_least(1),
        metavar="N",
        help="decode in so many threads (default: one per core, at most 32)",
    )
    _add_show_data(command, data_dir_help, manual_dir_help, allow_problems)
    return parser


def _add_show_data(command, data_dir_help: str, manual_dir_help: str, allow_problems) -> None:
    show = command("show-data", _show_data, "look at augmented examples", _SHOW, _SHOW_EPILOG)
    show.add_argument("name", metavar="NAME", help="name of the data set; 'models' lists them")
    show.add_argument("--data_dir", "--data-dir", metavar="DIR", help=data_dir_help)
    show.add_argument("--manual_dir", "--manual-dir", metavar="DIR", help=manual_dir_help)
    allow_problems(show)
    show.add_argument("--split", metavar="NAME", help="default: the one to train on")
    show.add_argument(
        "--config", metavar="FILE[:ARGUMENT]", help="take the settings from this recipe"
    )
    show.add_argument(
        "--crop_size", "--crop-size", type=_at_least(1), nargs=2, metavar=("H", "W"),
        help="of the examples",
    )  # fmt: skip
    show.add_argument(
        "--scale", type=float, nargs=2, metavar=("LEAST", "MOST"), help="range of the random scale"
    )
    show.add_argument("--rotate", type=float, metavar="DEGREES", help="greatest angle")
    show.add_argument("--blur", type=float, metavar="P", help="probability")
    show.add_argument("--photometric", type=float, metavar="S", help="strength, 0 to 1")
    show.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror half of them"
    )
    show.add_argument("--seed", type=_at_least(0), metavar="N", help="of the stream (default: 0)")
    show.add_argument(
        "--num_examples", "--num-examples", type=_at_least(1), default=12, metavar="N",
        help="default: 12",
    )  # fmt: skip
    show.add_argument(
        "--out", default="data.png", metavar="FILE", help="the picture (default: data.png)"
    )


def _at_least(minimum: int):
    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {value}")
        return value

    return whole_number


# evaluate


def _load_model(args: argparse.Namespace) -> tuple:
    """The model and variables that `--model` and `--output_stride` name."""
    overrides = {"output_stride": args.output_stride} if args.output_stride else {}
    return flaxseg.load_model(args.model, **overrides)


def _evaluate(args: argparse.Namespace) -> int:
    import jax

    from flaxseg import data
    from flaxseg.evaluation import evaluate, make_predict_fn

    card = flaxseg.read_model_card(args.model)
    args.data = data.full_name(args.data, args.manual_dir)
    info = data.dataset_info(args.data)
    _check_same_classes(card, info, args.model)
    if args.manual_dir:
        data.prepare(args.data, args.data_dir, args.manual_dir)
    split = args.split or info.eval_split
    records = data.open_split(args.data, split, args.data_dir)
    out = _output_folder(args.out) if args.out else None
    model, variables = _load_model(args)
    devices = jax.local_devices()
    per_device = 1 if devices[0].platform == "cpu" else 8
    pictures = _PicturesToKeep(args.num_pictures if out else 0, info.num_classes)
    started = time.monotonic()
    with _Bar(len(records), "evaluating", "image") as bar:
        metrics = evaluate(
            make_predict_fn(model, variables, devices),
            records,
            info.num_classes,
            batch_size=args.batch_size or per_device * len(devices),
            pad_to=tuple(args.pad_to) if args.pad_to else None,
            pad_color=model.normalization.mean,
            device_count=len(devices),
            progress=lambda done, _: bar.show(done),
            on_prediction=pictures.see if args.num_pictures and out else None,
        )
    seconds = time.monotonic() - started
    print(f"{card['model']} from {args.model} on {args.data} {split}: {len(records)} images\n")
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
        "pad_to": args.pad_to,
        "output_stride": args.output_stride,
        "seconds": round(seconds, 3),
        **metrics.to_dict(info.class_names),
    }
    written = _write_report(out, report, pictures, info)
    print("\n".join(["written:", *(f"  {path}" for path in written)]))
    return 0


def _check_same_classes(card: dict, info, directory: str) -> None:
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


class _PicturesToKeep:
    """Keeps the predictions of the first n records and of the n with the lowest score."""

    def __init__(self, number: int, num_classes: int):
        self.number = number
        self.num_classes = num_classes
        self.first: dict[int, tuple] = {}
        self._worst: list[tuple] = []  # a heap whose smallest entry, (-score, -index), goes first

    def see(self, index: int, record: dict, pred: np.ndarray) -> None:
        """Takes one prediction; the `on_prediction` of `evaluate`."""
        from flaxseg.evaluation import ConfusionMatrix

        matrix = ConfusionMatrix(self.num_classes)
        matrix.update(record["label"], pred)
        score = matrix.metrics().miou
        entry = (score, index, record, pred)
        if index < self.number:
            self.first[index] = entry
        if np.isnan(score):
            return
        # The index is unique, so that records are never compared.
        heapq.heappush(self._worst, (-score, -index, entry))
        if len(self._worst) > self.number:
            heapq.heappop(self._worst)

    def named(self) -> list[tuple[str, tuple]]:
        """(file name without suffix, (score, index, record, prediction)) of all that is kept."""
        first = [
            (f"first_{index:03d}_{_file_name(entry[2]['id'])}", entry)
            for index, entry in sorted(self.first.items())
        ]
        # Sorted by the score, then by the place in the split: the same for any batch size.
        worst = sorted((entry for *_, entry in self._worst), key=lambda entry: entry[:2])
        return first + [
            (f"worst_{rank:03d}_{_file_name(entry[2]['id'])}", entry)
            for rank, entry in enumerate(worst)
        ]


def _write_report(
    out: pathlib.Path, report: dict, pictures: _PicturesToKeep, info
) -> list[pathlib.Path]:
    """Writes metrics.json and the pictures; returns their paths."""
    from flaxseg.evaluation import save_picture, side_by_side

    try:
        # Pictures of an earlier evaluation would be taken for those of this one.
        for old in [*out.glob("first_*.png"), *out.glob("worst_*.png")]:
            old.unlink()
        written = [out / "metrics.json"]
        part = out / ".metrics.json.part"
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        os.replace(part, written[0])
        for name, (score, _, record, pred) in pictures.named():
            score_text = "all pixels ignored" if np.isnan(score) else f"mIoU {100 * score:.1f} %"
            picture = side_by_side(
                record["image"],
                record["label"],
                pred,
                info.class_names,
                info.class_colors,
                title=f"{record['id']}   {score_text}",
            )
            written.append(out / f"{name}.png")
            save_picture(written[-1], picture)
    except OSError as error:
        raise DataError(f"could not write to {out}: {error.strerror or error}.") from error
    return written


def _file_name(record_id: str) -> str:
    """A record's id with everything but letters, digits, '.', '_' and '-' replaced."""
    return re.sub(r"[^\w.-]+", "_", record_id)[:100]


# predict


def _predict(args: argparse.Namespace) -> int:
    from flaxseg.evaluation.picture_folder import plan_pictures, predict_pictures

    card = flaxseg.read_model_card(args.model)
    tasks = plan_pictures(args.pictures, args.out)
    _output_folder(args.out)
    model, variables = _load_model(args)
    failed = []
    with _Bar(len(tasks), "predicting", "picture") as bar:
        results = predict_pictures(
            model,
            variables,
            tasks,
            card["class_names"],
            card["class_colors"],
            pad_multiple=args.pad_multiple,
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


# import, prune, learn-basis, models, prepare-data


def _import(args: argparse.Namespace) -> int:
    from flaxseg.weights import import_model

    folder = import_model(args.source, args.out)
    card = flaxseg.read_model_card(folder)
    print(f"{card['model']} with {card['num_classes']} classes is in {folder}")
    return 0


def _prune(args: argparse.Namespace) -> int:
    from flaxseg.weights import prune_model

    before = flaxseg.read_model_card(args.model)["weights"]["parameters"]
    folder = prune_model(args.model, args.out, keep=args.keep)
    after = flaxseg.read_model_card(folder)["weights"]["parameters"]
    print(f"{after:,} of {before:,} parameters stay; the model to train on is in {folder}")
    return 0


def _learn_basis(args: argparse.Namespace) -> int:
    from flaxseg import data
    from flaxseg.evaluation.learn_basis import learn_basis

    args.data = data.full_name(args.data, args.manual_dir)
    out = _output_folder(args.out)
    with contextlib.ExitStack() as stack:
        bars: dict[str, _Bar] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = stack.enter_context(_Bar(total, what, "picture"))
            bars[what].show(done, total)

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


def _models(args: argparse.Namespace) -> int:
    from flaxseg import data
    from flaxseg.backbones import list_backbones

    for title, names in (
        ("models", flaxseg.list_models()),
        ("backbones", list_backbones()),
        ("data sets", data.list_datasets()),
    ):
        print(f"{title}:")
        for name in names:
            print(f"  {name}")
    print("  folder: your own pictures and masks, with --manual_dir=FOLDER; see docs/data.md")
    return 0


def _prepare_data(args: argparse.Namespace) -> int:
    from flaxseg import data

    args.name = data.full_name(args.name, args.manual_dir)
    ready = data.is_prepared(args.name, args.data_dir)
    folder = data.prepare(
        args.name, args.data_dir, args.manual_dir, allow_problems=args.allow_problems
    )
    manifest = data.read_manifest(args.name, args.data_dir)
    sizes = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    print(f"{args.name} {'was ready already' if ready else 'is ready'} in {folder}: {sizes}")
    if manifest.left_out:
        print(f"{manifest.left_out} pairs that can not be used are left out")
    return 0


def _verify_data(args: argparse.Namespace) -> int:
    from flaxseg import data
    from flaxseg.evaluation.data_report import write_report

    out = _output_folder(args.out) if args.out else None
    report = data.verify_data(
        args.name, args.manual_dir, args.data_dir, num_threads=args.num_threads
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.text())
    if out is not None:
        written = write_report(report, out)
        if not args.json:
            print("\n".join(["", "written:", *(f"  {path}" for path in written)]))
    if not report.errors:
        return 0
    number = "1 problem" if len(report.errors) == 1 else f"{len(report.errors)} problems"
    raise DataError(f"{report.name} has {number}; they are listed above")


def _show_data(args: argparse.Namespace) -> int:
    from flaxseg.evaluation.contact_sheet import show_data

    out = pathlib.Path(args.out)
    _output_folder(out.parent)
    given = ("crop_size", "scale", "flip", "rotate", "blur", "photometric", "seed", "split")
    shown = show_data(
        args.name,
        out,
        config=args.config,
        manual_dir=args.manual_dir,
        data_dir=args.data_dir,
        allow_problems=args.allow_problems,
        num_examples=args.num_examples,
        **{key: getattr(args, key) for key in given if getattr(args, key) is not None},
    )
    print(f"{shown}\nwritten:\n  {out}")
    return 0


# Output


def _output_folder(path: str) -> pathlib.Path:
    """The folder, made if need be; that it can be written to is tried before any work is done."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".flaxseg-{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"can not write to the output folder {folder}: {error.strerror or error}; choose "
            "another --out."
        ) from error
    return folder


class _Bar:
    """A progress bar on stderr where that is a terminal, a few plain lines elsewhere."""

    def __init__(self, total: int, what: str, unit: str):
        self._total, self._what, self._unit = total, what, unit
        self._shown = 0
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm.tqdm(total=total, desc=what, unit=unit, file=sys.stderr) if terminal else None
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int | None = None) -> None:
        """Sets how many are done, and of how many where that has changed."""
        self._total = self._total if total is None else total
        if self._bar is not None:
            self._bar.total = self._total
            self._bar.update(done - self._bar.n)
        elif done == self._total or 4 * (done - self._shown) >= self._total:
            self._shown = done
            print(
                f"{self._what}: {done} of {self._total} {self._unit}s", file=sys.stderr, flush=True
            )

    def print(self, text: str) -> None:
        """A line of output, above the bar."""
        tqdm.tqdm.write(text, file=sys.stdout)

    def say(self, text: str) -> None:
        """A remark on stderr, above the bar."""
        tqdm.tqdm.write(text, file=sys.stderr)
