"""Trains systems on four CamVid images and evaluates them on the same four.

    python benchmarks/overfit.py --camvid CAMVID --backbone WEIGHTS.safetensors

A network that is wired as it should be, with a loss and an inference that fit to it, learns four
images by heart. What it can say about them is bounded by the stride of its scores: scores fitted
freely to these four labels reach a mIoU of 0.97 at stride 4, 0.90 at 8, 0.82 at 16 (`--bounds`
measures it). So the images here are the middle of four images of CamVid, half of each side or
what `--part` says, twice as large; `--part=1 --enlarge=1` takes the images as they are.

DeepLab v1 and v2 and ICNet have their loss on labels of the scores' size. With `--full_labels` the
scores are resized to the labels instead, so that every pixel is learned.

CAMVID is the published folder, WEIGHTS a file of EfficientNet-Lite0's ImageNet weights. The rest
is that of the recipes for CamVid, less their augmentation and dropout, with AdamW. Prints a line
of a table for each system.
"""

import argparse
import pathlib
import runpy
import sys
import tempfile
import time

import numpy as np
from ml_collections import config_dict
from PIL import Image

from flaxseg.data.raw.decode import decode_image, decode_label
from flaxseg.data.raw.label_map import LabelMap
from flaxseg.data.raw.pairs import Pair
from flaxseg.data.sets import camvid

ROOT = pathlib.Path(__file__).resolve().parents[1]
IMAGES = (0, 91, 183, 275)  # the first of each quarter of the training split
# Recipe and output stride; those whose scores are at stride 4 whatever that is have 16.
SYSTEMS = {
    "fcn": ("fcn.py:variant=resnet", 8),
    "fcn8s": ("fcn.py:variant=8s", 32),
    "deeplabv1": ("deeplab_v1.py:", 8),
    "deeplabv2": ("deeplab_v2.py:", 8),
    "deeplabv3": ("deeplab.py:variant=v3", 8),
    "deeplabv3_cascade": ("deeplab.py:variant=cascade", 8),
    "deeplabv3plus": ("deeplab.py:variant=v3plus", 16),
    "pspnet": ("pspnet.py:", 8),
    "icnet": ("icnet.py:", 8),
    "gcn": ("gcn.py:", 32),
    "dfn": ("dfn.py:", 32),
    "lrr": ("lrr.py:", 32),
    "refinenet": ("refinenet.py:", 32),
    "refinenet_lw": ("refinenet.py:variant=lw", 32),
    "unet": ("unet.py:", 32),
    "segnet": ("segnet.py:", 32),
    "segnet_basic": ("segnet.py:variant=basic", 32),
    "deconvnet": ("deconvnet.py:", 32),
    "dilatednet": ("dilatednet.py:", 8),
    "parsenet": ("parsenet.py:", 8),
}


def four_pairs(folder: pathlib.Path) -> list[Pair]:
    """The images that are learned."""
    pairs, problems = camvid.find_pairs(folder)
    if problems:
        sys.exit("\n".join(problems))
    return [pairs["train"][index] for index in IMAGES]


def write_data(
    folder: pathlib.Path, out: pathlib.Path, part: float, enlarge: int
) -> tuple[int, int]:
    """Writes the four images, and one for each other split, in the published layout; returns
    their size."""
    pairs, _ = camvid.find_pairs(folder)
    chosen = {"train": four_pairs(folder), "val": pairs["val"][:1], "test": pairs["test"][:1]}
    for split, of_split in chosen.items():
        lines = []
        for pair in of_split:
            paths = f"{split}/{pair.id}.png", f"{split}annot/{pair.id}.png"
            arrays = decode_image(pair.image.read_bytes()), decode_label(pair.label.read_bytes())
            for path, array, filter_ in zip(
                paths, arrays, (Image.Resampling.BICUBIC, Image.Resampling.NEAREST), strict=True
            ):
                size = [round(part * side) for side in array.shape[:2]]
                top, left = ((n - m) // 2 for n, m in zip(array.shape[:2], size, strict=True))
                array = array[top : top + size[0], left : left + size[1]]
                height, width = (enlarge * side for side in size)
                (out / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).resize((width, height), filter_).save(out / path)
            lines.append(" ".join(paths))
        (out / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return height, width


def make_config(
    system: str, size: tuple[int, int], folder: pathlib.Path, options: argparse.Namespace
) -> config_dict.ConfigDict:
    """The recipe of a system with what learning by heart needs."""
    recipe, output_stride = SYSTEMS[system]
    file, _, argument = recipe.partition(":")
    argument = ",".join(filter(None, (argument, "data=camvid")))
    config = runpy.run_path(str(ROOT / "configs" / file))["get_config"](argument)
    config.data.update(
        dir=str(folder / "prepared"),
        manual_dir=str(folder / "published"),
        eval_split="train",
        crop_size=size,
        scale=(1.0, 1.0),
        flip=False,
    )
    config.init.backbone = options.backbone
    config.model.output_stride = output_stride
    if "dropout" in config.model.options:
        config.model.options.dropout = 0.0
    if options.full_labels:
        for output in config.loss.outputs.values():
            output.resize_labels = False
    if options.bases and system == "lrr":
        config.init.bases = options.bases
    config.steps, config.batch_size = options.steps, len(IMAGES)
    config.optimizer.update(
        name="adamw", learning_rate=options.rate, head_lr_multiplier=1.0, weight_decay=0.0
    )
    config.eval.update(every_steps=0, batch_size=len(IMAGES))
    config.checkpoint.every_steps = 0
    config.log.update(every_steps=25, tensorboard=False)
    return config


def print_bounds(label: np.ndarray) -> None:
    """mIoU of scores that are fitted freely to labels `[N, H, W]`, by their stride."""
    import jax
    import jax.numpy as jnp
    import optax

    from flaxseg.evaluation import ConfusionMatrix
    from flaxseg.layers import resize

    valid = label != 255
    target = np.where(valid, label, 0)
    optimizer = optax.adam(0.3)
    for stride in (4, 8, 16, 32):
        size = label.shape[1:]
        shape = (len(label), *(-(-side // stride) for side in size), len(camvid.INFO.class_names))

        def loss(scores, target, valid, size=size):
            logits = resize(scores, size, align_corners=False)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, target)
            return (each * valid).mean(), logits

        @jax.jit
        def step(scores, state, target, valid, loss=loss):
            gradient, logits = jax.grad(loss, has_aux=True)(scores, target, valid)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(scores, updates), state, jnp.argmax(logits, -1)

        scores = jnp.zeros(shape)
        state = optimizer.init(scores)
        for _ in range(150):
            scores, state, classes = step(scores, state, target, valid)
        matrix = ConfusionMatrix(shape[-1])
        matrix.update(label, np.asarray(classes))
        print(f"scores at stride {stride}: mIoU {matrix.metrics().miou:.3f}", flush=True)


def main() -> None:
    """Run the systems that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--camvid", type=pathlib.Path, required=True)
    parser.add_argument("--backbone", default="timm/tf_efficientnet_lite0.in1k")
    parser.add_argument("--bases", default="", help="of LRR: a folder of learn-basis")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--part", type=float, default=0.5)
    parser.add_argument("--enlarge", type=int, default=2)
    parser.add_argument("--full_labels", action="store_true")
    parser.add_argument("--bounds", action="store_true")
    options = parser.parse_args()

    from flaxseg.host_memory import keep_freed_memory
    from flaxseg.training import train_and_evaluate
    from flaxseg.training.compilation import enable_compilation_cache

    if options.bounds:
        read = LabelMap(camvid.INFO.label_map).apply
        pairs = four_pairs(options.camvid)
        print_bounds(np.stack([read(decode_label(pair.label.read_bytes())) for pair in pairs]))
        return
    keep_freed_memory()
    enable_compilation_cache(None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        size = write_data(options.camvid, folder / "published", options.part, options.enlarge)
        for system in options.systems:
            begin = time.monotonic()
            config = make_config(system, size, folder, options)
            result = train_and_evaluate(config, folder / system)
            if result.stopped_by:
                sys.exit(f"stopped by {result.stopped_by}")
            last = result.history[-1]
            print(
                f"| `{system}` | {config.model.output_stride} | {options.steps} "
                f"| {last['miou']:.1%} | {last['pixel_accuracy']:.1%} "
                f"| {(time.monotonic() - begin) / 60:.1f} min |",
                flush=True,
            )


if __name__ == "__main__":
    main()
