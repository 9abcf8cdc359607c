"""The `learn-basis` command: patches of labels to bases, their measure, and a picture of them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from flaxseg import data
from flaxseg.data.label_bases import (
    LabelBases,
    Reconstruction,
    learn_bases,
    measure_reconstruction,
    sample_patches,
)
from flaxseg.drawing.bases import draw_bases
from flaxseg.drawing.images import save_picture
from flaxseg.errors import ConfigError, DataError

# Held-out windows of each class: their error is known to a few per mille with so many.
_HELD_OUT_PATCHES = 2000


@dataclasses.dataclass(frozen=True)
class LearnedBases:
    """What was learned.

    Attributes:
      bases: of every class.
      reconstruction: of held-out patches.
      written: paths of bases.npz, bases.png and report.json.
      text: a table to print.
    """

    bases: LabelBases
    reconstruction: Reconstruction
    written: tuple[pathlib.Path, ...]
    text: str


def learn_basis(
    name: str,
    out: pathlib.Path,
    *,
    split: str | None = None,
    held_out: str | None = None,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    num_bases: int = 10,
    patch_size: int = 32,
    num_patches: int = 10_000,
    scale: str = "released",
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> LearnedBases:
    """Learns bases from the labels of a data set and writes them.

    Args:
      name: of the data set.
      out: folder, which exists.
      split: to learn from; the first one, that is trained on, by default.
      held_out: whose patches are reconstructed; that whose score is reported by default.
      data_dir: of the prepared data sets.
      manual_dir: with the published files, where the set is not prepared yet.
      num_bases: see `learn_bases`.
      patch_size: see `sample_patches`.
      num_patches: see `sample_patches`.
      scale: see `learn_bases`.
      seed: see `sample_patches`.
      progress: called with what is being done, the pictures done and those to do.

    Raises:
      ConfigError: an argument is out of range, or both splits are one.
      DataError: there is no such data, or it can not be read or written.
    """
    info = data.dataset_info(name)
    split, held_out = split or info.splits[0], held_out or info.eval_split
    if split == held_out:
        raise ConfigError(
            f"the bases would be learned from and measured on {split!r}; set held_out to another "
            f"split or part of {', '.join(info.splits)}, such as 'train[80%:]'."
        )
    if num_bases > 64:
        raise ConfigError(f"num_bases is {num_bases}; filters of 8 x 8 have at most 64.")
    if manual_dir:
        data.prepare(name, data_dir, manual_dir)
    # Both are opened before any work is done.
    sources = [data.open_split(name, part, data_dir) for part in (split, held_out)]
    limits = (num_patches, min(num_patches, _HELD_OUT_PATCHES))
    patches, rest = (
        sample_patches(
            records,
            info.num_classes,
            patch_size=patch_size,
            num_patches=limit,
            seed=seed,
            progress=None if progress is None else _named(progress, f"windows of {records.split}"),
        )
        for records, limit in zip(sources, limits, strict=True)
    )
    bases = learn_bases(patches, info.class_names, num_bases=num_bases, scale=scale)
    reconstruction = measure_reconstruction(bases, rest)
    report = {
        "data": name,
        "split": split,
        "held_out": held_out,
        "num_bases": num_bases,
        "patch_size": patch_size,
        "num_patches": num_patches,
        "scale": scale,
        "seed": seed,
        "patches": dict(zip(info.class_names, map(int, bases.num_patches), strict=True)),
        "shared": list(bases.shared),
        "explained": {
            class_name: [round(float(v), 6) for v in shares]
            for class_name, shares in zip(info.class_names, bases.explained, strict=True)
        },
        "reconstruction": reconstruction.to_dict(info.class_names),
    }
    written = _write(out, bases, report)
    return LearnedBases(bases, reconstruction, written, _text(report, bases, reconstruction))


def _named(progress: Callable[[str, int, int], None], what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _text(report: dict, bases: LabelBases, reconstruction: Reconstruction) -> str:
    lines = [
        f"{report['num_bases']} bases of each class from {report['data']} {report['split']}, "
        f"{bases.num_patches.sum()} windows of {report['patch_size']} x {report['patch_size']} "
        f"pixels; reconstructed are windows of {report['held_out']}",
        "",
        reconstruction.table(bases.class_names),
        "",
        f"The bases hold {100 * bases.explained[:, -1].mean():.1f} % of the variance of their "
        "windows, the mean over the classes.",
    ]
    if bases.shared:
        lines.append(
            f"Too few windows, so the bases of all classes together: {', '.join(bases.shared)}."
        )
    return "\n".join(lines)


def _write(out: pathlib.Path, bases: LabelBases, report: dict) -> tuple[pathlib.Path, ...]:
    """Each file appears whole or not at all."""
    arrays = {
        field.name: np.asarray(getattr(bases, field.name)) for field in dataclasses.fields(bases)
    }
    arrays["report"] = np.asarray(json.dumps(report))
    files = (out / "bases.npz", out / "bases.png", out / "report.json")
    try:
        part = out / ".bases.npz.part"
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(part, files[0])
        save_picture(files[1], draw_bases(bases))
        part = out / ".report.json.part"
        part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
        os.replace(part, files[2])
    except OSError as error:
        raise DataError(f"could not write to {out}: {error.strerror or error}.") from error
    return files
