"""Whether evaluating and predicting more images takes more memory.

    python benchmarks/memory.py
    python benchmarks/memory.py --numbers 50 200 --json memory.json
    python benchmarks/memory.py --sizes 24

Draws images of three sizes near 120 x 160 with labels of 12 classes, as an own data set, and a
DeepLabv3 on MobileNetV2 with random weights, and runs the programs, each in a process of its own,
on so many images:

* `evaluate`, with images of the worst and boundary measures;
* `evaluate` with two scales and mirror images;
* `predict`, with masks, overlays and probabilities.

Printed is the largest resident memory that the system saw of each process. An image with its label
and prediction is 0.1 MB, its probabilities are 0.9 MB before they are rounded: if one of them were
kept for each image, 900 images more would take 86 or 790 MiB more.

`--sizes` instead runs the network on images of so many different sizes, each of which is
compiled, and prints the resident memory meanwhile, with the programs of 64 sizes kept, as it is,
and of 6. Linux only; compiled without XLA's optimization, and nothing is taken from a cache.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

# The memory of this process counts as that of the programs that it starts, so it loads little; what
# they work on is made in another one (`make`).

CLASSES = 12
SIZES = ((120, 160), (120, 176), (128, 144))
PROGRAMS = {
    "evaluate": ["evaluate", "{model}", "--boundary", "--out={out}"],
    "evaluate, two scales, flipped": [
        "evaluate",
        "{model}",
        "--protocol=whole(scales=(0.75, 1.25), flip=True)",
    ],
    "predict": [
        "predict",
        "{images}",
        "--model={model}",
        "--out={out}",
        "--save=mask,overlay,probabilities",
    ],
}


def draw(folder: pathlib.Path, split: str, number: int) -> None:
    """Writes so many images and labels, no two of them alike."""
    import numpy as np
    from PIL import Image

    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True)
    rng = np.random.default_rng(number)
    for index in range(number):
        size = SIZES[index % len(SIZES)]
        coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        label = Image.fromarray(rng.integers(0, CLASSES, (6, 8)).astype(np.uint8))
        image.save(folder / f"images/{split}/{index:04d}.jpg")
        label.resize(size[::-1], Image.Resampling.NEAREST).save(
            folder / f"masks/{split}/{index:04d}.png"
        )


def save_model(folder: pathlib.Path) -> None:
    import jax
    import jax.numpy as jnp

    import flaxseg

    options = {"backbone": "mobilenet_v2", "output_stride": 16}
    model = flaxseg.create_model("deeplabv3", num_classes=CLASSES, **options)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 65, 65, 3)))
    flaxseg.save_model(folder, variables, name="deeplabv3", num_classes=CLASSES, options=options)


def write_set(folder: pathlib.Path, numbers: list[int]) -> None:
    """Writes the data set, with a split for each number."""
    lines = [f'eval_split = "{split_of(numbers[0])}"']
    lines += [f'[[classes]]\nname = "class {index}"' for index in range(CLASSES)]
    folder.mkdir()
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n")
    for number in numbers:
        draw(folder, split_of(number), number)


def make(folder: pathlib.Path, numbers: list[int]) -> None:
    write_set(folder / "set", numbers)
    save_model(folder / "model")


def grow(sizes: int, most: int) -> None:
    """Predicts images of so many sizes, and prints the memory after every fourth."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import flaxseg
    from flaxseg.host_memory import keep_freed_memory
    from flaxseg.inference import Segmenter, program_cache

    keep_freed_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    program_cache.MAX_SIZES = most
    model = flaxseg.create_model("deeplabv3", num_classes=CLASSES, backbone="mobilenet_v2")
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 65, 65, 3)))
    segmenter = Segmenter(model, variables)
    for number in range(1, sizes + 1):
        np.asarray(segmenter.run_batch(np.zeros((1, 64 + number, 70, 3), np.uint8)))
        if number % 4 == 0:
            status = pathlib.Path("/proc/self/status").read_text()
            found = int(status.partition("VmRSS:")[2].split()[0]) / 1024
            print(f"programs of {most} sizes kept: {number} sizes, {found:.0f} MiB", flush=True)


def split_of(number: int) -> str:
    return f"of{number}"


def peak(arguments: list[str]) -> int:
    """Runs a command of flaxseg and returns its largest resident memory, in bytes."""
    program = [sys.executable, "-m", "flaxseg", *arguments]
    with tempfile.TemporaryFile() as output:
        child = os.posix_spawn(
            program[0],
            program,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), stream) for stream in (1, 2)],
        )
        _, status, usage = os.wait4(child, 0)
        if os.waitstatus_to_exitcode(status):
            output.seek(0)
            raise RuntimeError(f"{program} failed:\n{output.read().decode()[-2000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--sizes", type=int, metavar="N", help="grow with the number of sizes")
    parser.add_argument("--most", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.numbers)
        return
    if args.most:
        grow(args.sizes, args.most)
        return
    if args.sizes:
        os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        for most in (64, 6):
            options = ["--sizes", str(args.sizes), "--most", str(most)]
            subprocess.run([sys.executable, __file__, *options], check=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run(
            [sys.executable, __file__, "--make", name, "--numbers", *map(str, args.numbers)],
            check=True,
        )
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        of_data = ["--data=folder", f"--manual_dir={folder / 'set'}", f"--data_dir={folder}/data"]
        # Prepares the data and compiles, which takes memory of its own.
        peak(["evaluate", str(folder / "model"), *of_data])
        figures = {}
        for title, program in PROGRAMS.items():
            for number in args.numbers:
                split = split_of(number)
                values = {"out": folder / f"{program[0]}-{split}", "model": folder / "model"}
                values["images"] = folder / "set/images" / split
                arguments = [text.format(**values) for text in program]
                if program[0] == "evaluate":
                    arguments += [*of_data, f"--split={split}"]
                found = peak(arguments)
                figures.setdefault(title, {})[number] = found
                print(f"{title}: {number} images, at most {found / 2**20:.0f} MiB", flush=True)
    if args.json:
        facts = {"machine": platform.machine(), "jax": importlib.metadata.version("jax")}
        pathlib.Path(args.json).write_text(
            json.dumps({"peak_bytes": figures, **facts}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
