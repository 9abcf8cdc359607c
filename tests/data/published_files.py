"""Encoded images, and small data sets in their published layouts."""

import io
import pathlib

import numpy as np
from PIL import Image

SIZES = {"train": 7, "val": 3, "test": 2}


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_camvid(folder: pathlib.Path, sizes: dict[str, int] = SIZES, suffix: str = "jpg") -> None:
    """Writes random images and labels as the SegNet tutorial lays CamVid out."""
    rng = np.random.default_rng(7)
    for split, number in sizes.items():
        lines = []
        for name in ("", "annot"):
            (folder / f"{split}{name}").mkdir(parents=True)
        for i in range(number):
            coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            image = coarse.repeat(8, 0).repeat(8, 1)
            label = rng.integers(0, 12, (5, 7), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            stem = f"{split}_{i:03d}"
            encode = jpeg if suffix == "jpg" else png
            (folder / split / f"{stem}.{suffix}").write_bytes(encode(image))
            (folder / f"{split}annot" / f"{stem}.png").write_bytes(png(label))
            lines.append(
                f"/SegNet/CamVid/{split}/{stem}.{suffix} /SegNet/CamVid/{split}annot/{stem}.png"
            )
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
