"""From the bytes of a file to pixels, with every way to fail put into words.

Only JPEG and PNG are read, and the size in the header is checked before a pixel is decoded. Pillow
reads the headers and has the last word on what is damaged; it keeps the indices of palette PNG
labels, which OpenCV replaces by grey values or colours. Plain RGB pictures that are whole, nearly
all there are, OpenCV decodes in two thirds of the time, to the same pixels.
"""

import io
import warnings

import cv2
import numpy as np
from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
"""A picture whose header announces more pixels than this is refused before decoding."""

_IMAGE_MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1")
_EXIF_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"
_PNG_8_BIT_RGB = b"\x08\x02"  # bit depth and colour type in the header
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATION = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that can hold it


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
        pixels = _decode_plain(encoded, picture)
        loaded = _load(picture) if pixels is None else None
        # Pillow decodes a whole PNG to look for EXIF behind its pixels; a plain one has none.
        plain_png = pixels is not None and picture.format == "PNG"
        orientation = 1 if plain_png else _orientation(picture)
        if orientation not in (0, 1):
            raise UndecodableError(
                f"EXIF orientation {orientation}: the picture is stored turned or mirrored, so it "
                "may not fit its label; store it upright"
            )
        if pixels is not None:
            return pixels
        return np.array(loaded if loaded.mode == "RGB" else loaded.convert("RGB"))


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


def _decode_plain(encoded: bytes, picture: Image.Image) -> np.ndarray | None:
    """Decodes an RGB picture by OpenCV; None where there is anything to it that Pillow should look
    at.
    """
    if picture.mode != "RGB":
        return None
    if picture.format == "JPEG":
        if not encoded.endswith(_JPEG_END):  # some versions of OpenCV fill up what was cut off
            return None
    elif encoded[24:26] != _PNG_8_BIT_RGB or _may_be_turned(encoded):
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (picture.height, picture.width, 3):
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _may_be_turned(png: bytes) -> bool:
    """Whether a PNG has a chunk that can hold an orientation."""
    at = 8
    while at < len(png):
        data = at + 8
        kind = png[at + 4 : data]
        if kind == b"eXIf" or (kind in _PNG_TEXTS and png.startswith(_PNG_ORIENTATION, data)):
            return True
        at = data + int.from_bytes(png[at : at + 4]) + 4
    return False


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
