"""Reads any ordinary image file as upright 8-bit RGB, and says what had to be done for that."""

import dataclasses
import os
import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flaxseg.errors import DataError

# Pillow knows some forty formats, some of them rarely looked at; these are what cameras, browsers
# and scanners write.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".gif",
)  # fmt: skip
MAX_PIXELS = 128 * 1024 * 1024
"""A file whose header announces more pixels is refused before a pixel is decoded."""

_ORIENTATION = 0x0112
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """Holds a decoded image.

    Attributes:
      pixels: uint8 [H, W, 3] RGB, upright.
      notes: what was done beyond decoding, in words: "turned as its EXIF orientation 6 says", ...
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns `read_image_file(path).pixels`: uint8 [H, W, 3] RGB, upright."""
    return read_image_file(path, max_pixels).pixels


def read_image_file(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> ImageFile:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, PPM or GIF file.

    Grey, palette and CMYK images become RGB; 16-bit grey is scaled to 8 bits (65535 -> 255);
    transparent pixels are laid over white; an image with an EXIF orientation is turned upright; of
    several frames the first is taken.

    Args:
      path: the file.
      max_pixels: largest H x W.

    Raises:
      DataError: the file is missing, not an image of these formats, damaged or cut off, too large,
        or holds floating-point values; the message has the path and the decoder's words.
    """
    path = pathlib.Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path, formats=FORMATS) as image:
                return _decode(image, max_pixels)
    except UnidentifiedImageError:
        raise DataError(f"{path}: {_not_an_image(path)}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too many pixels: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise DataError(f"{path}: {error}") from None


def _decode(image: Image.Image, max_pixels: int) -> ImageFile:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"{width} x {height} pixels are more than the limit of {max_pixels}; scale the "
            "image down or cut it"
        )
    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append(f"took the first of {image.n_frames} frames")
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        notes.append(f"turned as its EXIF orientation {orientation} says")
    if image.mode == "F":
        raise ValueError("holds floating-point values; convert it to 8 or 16 bits")
    if image.mode in _SIXTEEN_BIT_MODES:
        return ImageFile(_from_sixteen_bits(image), (*notes, "scaled 16-bit grey to 8 bits"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
            notes.append("laid its transparent pixels over white")
    elif image.mode == "CMYK":
        notes.append("converted CMYK to RGB without a colour profile")
    pixels = np.asarray(image.convert("RGB"))
    return ImageFile(pixels, tuple(notes))


def _from_sixteen_bits(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"holds values {values.min()}..{values.max()}; only 8 and 16 bits are known"
        )
    grey = np.rint(values / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def _not_an_image(path: pathlib.Path) -> str:
    """Returns what is wrong with a file that no decoder takes."""
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    with open(path, "rb") as file:
        start = file.read(8)
    known = ", ".join(FORMATS)
    return f"not an image of a known format (it starts with {start!r}); known are {known}"
