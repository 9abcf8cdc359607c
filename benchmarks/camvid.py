"""Trains systems on CamVid to the end, one row of the results at a time.

    python benchmarks/camvid.py run --camvid CAMVID --backbone WEIGHTS.safetensors --out runs/rows
    python benchmarks/camvid.py run deeplabv3plus pspnet --camvid ... --backbone ... --out runs/rows
    python benchmarks/camvid.py list --out runs/rows
    flaxseg results runs/rows

A row is a recipe, what it changes, and the splits that it is trained and measured on. Choices are
trained on `train` and measured on `val`; every other row is trained on `train` and `val` together,
with what was chosen, and its last model is measured once on `test`.

Without names all rows are run in the order of `list`. The program runs at the lowest priority and
can be stopped at any moment: the same command goes on in the middle of a row, and leaves alone what
is finished. OUT/ROW is the folder of a run, OUT/ROW/val or OUT/ROW/test what was measured.

CAMVID is the published folder, WEIGHTS a file of EfficientNet-Lite0's ImageNet weights.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What all rows share. The model is the last one, not the best on the split that is measured.
SHARED = {
    "batch_size": 8,
    "data.crop_size": "256,256",
    "data.eval_split": "val",
    "eval.every_steps": 0,
    "eval.num_images": 8,
    "checkpoint.every_steps": 50,
    "checkpoint.keep_last": 1,
    "log.every_steps": 25,
}
ADAMW = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.head_lr_multiplier": 1.0,
    "optimizer.weight_decay": 1e-2,
    "schedule.warmup_steps": 50,
}
EQUAL_WEIGHTS = {"loss.class_weights": "()"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes a row of the results.

    Attributes:
      name: the name of its folder.
      recipe: the recipe's name and its variant, without the data set.
      changes: the fields that differ from the recipe and from `SHARED`.
      split: what it is trained on.
      measured: the protocols it is measured with; the first without a name of its own.
      needs_bases: whether label bases are learned first, from the same split.
    """

    name: str
    recipe: str
    changes: Mapping[str, object]
    split: str = "train+val"
    measured: tuple[str, ...] = ("whole",)
    needs_bases: bool = False

    @property
    def tested_on(self) -> str:
        """Returns the split that the row is measured on."""
        return "val" if self.split == "train" else "test"


def _choice(name: str, recipe: str, steps: int, *changes: Mapping[str, object]) -> Row:
    fields = {"steps": steps}
    for part in changes:
        fields.update(part)
    return Row(f"choice_{name}", recipe, fields, split="train")


# The optimizer, its rate, and the weights of the classes, on a short run.
CHOICES = (
    _choice("sgd", "deeplab", 400),
    _choice("sgd_equal_weights", "deeplab", 400, EQUAL_WEIGHTS),
    _choice("adamw", "deeplab", 400, ADAMW),
    _choice("adamw_equal_weights", "deeplab", 400, ADAMW, EQUAL_WEIGHTS),
    _choice("adamw_3e-4", "deeplab", 400, ADAMW, {"optimizer.learning_rate": 3e-4}),
    _choice("adamw_3e-3", "deeplab", 400, ADAMW, {"optimizer.learning_rate": 3e-3}),
)
ROWS = CHOICES


def commands(row: Row, options: argparse.Namespace) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yields the commands of a row, each with the file that is there once it has succeeded."""
    folder = options.out / row.name
    data = [
        f"--config.data.dir={options.out / 'data'}",
        f"--config.data.manual_dir={options.camvid}",
    ]
    fields = {**SHARED, **row.changes, "data.train_split": row.split}
    fields["init.backbone"] = options.backbone
    if row.needs_bases:
        bases = options.out / f"bases_{row.split}"
        yield (
            bases / "bases.npz",
            [
                *("learn-basis", "camvid", f"--split={row.split}", f"--out={bases}"),
                *(f"--data_dir={options.out / 'data'}", f"--manual_dir={options.camvid}"),
            ],
        )
        fields["init.bases"] = bases / "bases.npz"
    recipe, _, variant = row.recipe.partition(":")
    recipe = f"{recipe}:{','.join(filter(None, (variant, 'data=camvid')))}"
    yield (
        folder / "model" / "card.json",
        [
            *("train", recipe, f"--workdir={folder}", *data),
            *(f"--config.{name}={value}" for name, value in fields.items()),
        ],
    )
    for index, protocol in enumerate(row.measured):
        out = folder / (row.tested_on if index == 0 else f"{row.tested_on}_{index}")
        yield (
            out / "metrics.json",
            [
                *(
                    "evaluate",
                    str(folder),
                    "--data=camvid",
                    f"--split={row.tested_on}",
                    "--boundary",
                ),
                *(f"--data_dir={options.out / 'data'}", f"--protocol={protocol}", f"--out={out}"),
            ],
        )


def run(rows: tuple[Row, ...], options: argparse.Namespace) -> int:
    """Runs what is not finished of the rows; returns the exit code of the first that fails."""
    os.nice(19)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "cache"))
    for row in rows:
        for finished, arguments in commands(row, options):
            if finished.exists():
                continue
            print(f"{row.name}: flaxseg {' '.join(arguments)}", flush=True)
            command = [sys.executable, "-m", "flaxseg", *arguments]
            code = subprocess.run(command, cwd=ROOT, env=environment).returncode
            if code:
                print(f"{row.name}: exit code {code}; the same command goes on", file=sys.stderr)
                return code
    return 0


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "list"))
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all)")
    parser.add_argument("--camvid", type=pathlib.Path, help="the published folder")
    parser.add_argument("--backbone", type=pathlib.Path, help="ImageNet weights")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/camvid_rows"))
    options = parser.parse_args()
    known = {row.name: row for row in ROWS}
    if unknown := [name for name in options.rows if name not in known]:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(known)}")
    rows = tuple(known[name] for name in options.rows) or ROWS
    if options.what == "run":
        if options.camvid is None or options.backbone is None:
            parser.error("run needs --camvid and --backbone")
        for name in ("camvid", "backbone", "out"):
            setattr(options, name, getattr(options, name).resolve())
        return run(rows, options)
    for row in rows:
        files = [finished for finished, _ in commands(row, options)]
        done = sum(file.exists() for file in files)
        state = "finished" if done == len(files) else "begun" if done else "not begun"
        print(f"{row.name:32} {row.split:10} {row.recipe:28} {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
