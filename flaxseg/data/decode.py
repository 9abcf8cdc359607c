"""From the bytes of a file to pixels, with every way to fail put into words.

Only JPEG and PNG are read, and the size in the header is checked before a pixel is decoded. All
decoding is Pillow's: it is strict about truncated files and it keeps the indices of palette PNG
labels, which OpenCV replaces by grey values or colours.
"""

import io
import warnings

import numpy as np
from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
"""A picture whose header announces more pixels than this is refused before decoding."""

_IMAGE_MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1")
_EXIF_ORIENTATION = 0x0112


class UndecodableError(ValueError):
    """Bytes are not the picture that was promised; the message says in which way."""


def decode_image(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a JPEG or PNG picture to RGB.

    Grey, palette and CMYK pictures are converted and an alpha channel is dropped.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a picture of more pixels, before decoding it.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      UndecodableError: not a JPEG or PNG, damaged, too large, of more than 8 bits, or stored turned
        (EXIF).
    """
    with _open(encoded, ("JPEG", "PNG"), max_pixels) as picture:
        if picture.mode not in _IMAGE_MODES:
            raise UndecodableError(
                f"pixel format {picture.mode} (more than 8 bits per channel); "
                "convert the picture to 8-bit RGB"
            )
        pixels = _load(picture)
        orientation = _orientation(picture)
        if orientation not in (0, 1):
            raise UndecodableError(
                f"EXIF orientation {orientation}: the picture is stored turned or mirrored, so it "
                "may not fit its label; store it upright"
            )
        return np.array(pixels if pixels.mode == "RGB" else pixels.convert("RGB"))


def decode_label(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG label to the ids that are stored in it; palette indices are kept.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a label of more pixels, before decoding it.

    Returns:
      uint8 `[H, W]`, or uint16 `[H, W]` for a 16-bit PNG.

    Raises:
      UndecodableError: not a PNG (JPEG changes ids), damaged, too large, or holding colours instead
        of ids.
    """
    with _open(encoded, ("PNG", "JPEG"), max_pixels) as picture:
        if picture.format == "JPEG":
            raise UndecodableError(
                "the label is a JPEG, whose compression changes label ids; store labels as PNG"
            )
        if picture.mode in ("I", "I;16", "I;16B"):
            return np.array(_load(picture)).astype(np.uint16)
        if picture.mode not in ("L", "P", "1"):
            raise UndecodableError(
                f"the label holds colours ({picture.mode}), not ids; store it as an index PNG with "
                "one channel"
            )
        return np.array(_load(picture), dtype=np.uint8)


def _open(encoded: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    if not encoded:
        raise UndecodableError("the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is lower for warnings and higher for errors; ours below is the one
            # that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(encoded), formats=formats)
    except Image.UnidentifiedImageError:
        start = bytes(encoded[:8])
        raise UndecodableError(f"neither JPEG nor PNG (it starts with {start!r})") from None
    except Image.DecompressionBombError as error:
        raise UndecodableError(str(error)) from None
    except Exception as error:  # bytes made to harm reach many kinds of errors in the readers
        raise UndecodableError(f"damaged header: {error}") from None
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} x {picture.height}"
        picture.close()
        raise UndecodableError(f"{size} pixels are more than the limit of {max_pixels} pixels")
    return picture


def _load(picture: Image.Image) -> Image.Image:
    """Decodes the pixels; raises UndecodableError with the decoder's words."""
    try:
        picture.load()
    except Exception as error:  # bytes made to harm reach many kinds of errors in the decoders
        raise UndecodableError(f"damaged picture: {error}") from None
    return picture


def _orientation(picture: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        return picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # notes beside the pixels that nobody can read change nothing
        return 1
