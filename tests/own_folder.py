"""Small folders of images and masks, as somebody would bring them."""

import io
import pathlib

import numpy as np
from PIL import Image

CLASSES = ("ground", "road", "car")
COLORS = ((10, 20, 30), (0, 200, 0), (200, 0, 200))
IGNORED_COLOR = (255, 255, 255)
SIZE = (20, 28)

TOML = """name = "toy"
[[classes]]
name = "ground"
color = [10, 20, 30]
[[classes]]
name = "road"
color = "#00c800"
[[classes]]
name = "car"
color = [200, 0, 200]
"""


def label_of(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Random train ids 0..2 and 255, uint8."""
    rng = np.random.default_rng([3, number])
    return rng.choice(np.array([0, 1, 2, 255], np.uint8), size, p=[0.5, 0.3, 0.1, 0.1])


def image_of(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A grey of its own with a bright block in a place of its own, uint8: a JPEG keeps both."""
    image = np.full((*size, 3), 20 + 9 * number, np.uint8)
    row, column = divmod(8 * number, 24)
    image[row % 16 : row % 16 + 8, column : column + 8] = (200, 100, 50)
    return image


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def palette_png(label: np.ndarray) -> bytes:
    """A PNG of mode P with a palette that has nothing to do with the classes."""
    image = Image.fromarray(label)
    image.putpalette([(37 * i + 11 * c) % 256 for i in range(256) for c in range(3)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def in_colors(label: np.ndarray) -> np.ndarray:
    """The label as colours, uint8 [H, W, 3]."""
    table = np.zeros((256, 3), np.uint8)
    table[:3], table[255] = COLORS, IGNORED_COLOR
    return table[label]


def color_png(label: np.ndarray) -> bytes:
    return encoded(in_colors(label))


def write_folder(
    folder: pathlib.Path,
    sizes: dict[str, int] | None = None,
    *,
    toml: str = TOML,
    encode_mask=encoded,
    mask_suffix: str = "",
) -> pathlib.Path:
    """Writes images/SPLIT/N.jpg and masks/SPLIT/N.png; "" for a split puts files into the folders
    themselves."""
    number = 0
    for split, count in (sizes or {"train": 4, "val": 2}).items():
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            name = f"{number:03d}"
            (folder / "images" / split / f"{name}.jpg").write_bytes(
                encoded(image_of(number), "JPEG")
            )
            mask = folder / "masks" / split / f"{name}{mask_suffix}.png"
            mask.write_bytes(encode_mask(label_of(number)))
            number += 1
    (folder / "dataset.toml").write_text(toml)
    return folder
