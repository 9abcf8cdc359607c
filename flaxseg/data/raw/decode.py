"""Decodes the bytes of a file to pixels, and says what is wrong with those that cannot be.

Only JPEG and PNG are read, and the size in the header is checked before a pixel is decoded. Pillow
reads the headers and decides what is damaged; it keeps the indices of palette PNG labels, which
OpenCV replaces by grey values or colours. OpenCV decodes whole, plain RGB images, nearly all there
are, to the same pixels in two thirds of the time.
"""

import io
import os
import pathlib
import stat
import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

MAX_PIXELS = 64 * 1024 * 1024
"""An image with more pixels than this, by its header, is refused before decoding."""

MAX_BYTES = 256 * 1024 * 1024
"""A file larger than this is refused before it is read."""

# Every scan of a JPEG may go over all its pixels again, and a scan may take only a few bytes.
# Encoders write about ten.
_MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

_IMAGE_MODES = ("RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1")
_EXIF_ORIENTATION = 0x0112
_JPEG_END = b"\xff\xd9"
_PNG_8_BIT_RGB = b"\x08\x02"  # bit depth and colour type in the header
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATION = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that can hold it


class UndecodableError(ValueError):
    """Bytes are not a usable image or label; the message says why.

    Attributes:
      kind: the reason as a key of `flaxseg.data.raw.problems.KINDS`.
      details: the numbers in the message.
    """

    def __init__(
        self, message: str, kind: str = "undecodable", details: Mapping[str, Any] | None = None
    ):
        super().__init__(message)
        self.kind = kind
        self.details = dict(details or {})


def read_file(path: pathlib.Path) -> bytes:
    """Reads the file of an image or label, in bounded time and memory.

    Raises:
      UndecodableError: it is not a regular file (a pipe would never end), or is larger than
        `MAX_BYTES`.
      OSError: it is missing or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe would wait until something is written to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableError("not an ordinary file")
        if status.st_size > MAX_BYTES:
            raise UndecodableError(
                f"the file has {status.st_size} bytes, more than the limit of {MAX_BYTES}",
                "too_large",
                {"bytes": status.st_size},
            )
        with open(handle, "rb", closefd=False) as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(handle)


def decode_image(
    encoded: bytes, max_pixels: int = MAX_PIXELS, *, as_stored: bool = False
) -> np.ndarray:
    """Decodes a JPEG or PNG image to RGB.

    Grey, palette and CMYK images are converted; an alpha channel is dropped.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse an image of more pixels before decoding it.
      as_stored: return the pixels as they are stored even where EXIF says that they are turned.
        Published label sets were drawn on the stored pixels, by programs that do not turn them.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      UndecodableError: it is not a JPEG or PNG, is damaged or too large, has more than 8 bits, or
        is stored turned (EXIF) and not wanted as stored.
    """
    with _open(encoded, ("JPEG", "PNG"), max_pixels) as image:
        if image.mode not in _IMAGE_MODES:
            raise UndecodableError(
                f"pixel format {image.mode} (more than 8 bits per channel); "
                "convert the image to 8-bit RGB",
                "deep_image",
            )
        pixels = _decode_plain(encoded, image)
        loaded = _load(image) if pixels is None else None
        # Pillow decodes a whole PNG to look for EXIF behind its pixels; a plain one has none.
        plain_png = pixels is not None and image.format == "PNG"
        orientation = 1 if as_stored or plain_png else _orientation(image)
        if orientation not in (0, 1):
            raise UndecodableError(
                f"EXIF orientation {orientation}: the image is stored turned or mirrored, so it "
                "may not fit its label; store it upright",
                "exif_rotation",
                {"orientation": orientation},
            )
        if pixels is not None:
            return pixels
        return np.array(loaded if loaded.mode == "RGB" else loaded.convert("RGB"))


def decode_label(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG label to the ids it stores; palette indices are kept.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a label of more pixels before decoding it.

    Returns:
      uint8 `[H, W]`, or uint16 `[H, W]` for a 16-bit PNG.

    Raises:
      UndecodableError: it is not a PNG (JPEG changes ids), is damaged or too large, or holds
        colours instead of ids.
    """
    with _open(encoded, ("PNG", "JPEG"), max_pixels) as image:
        if image.format == "JPEG":
            raise UndecodableError(
                "the label is a JPEG, whose compression changes label ids; store labels as PNG",
                "jpeg_label",
            )
        if image.mode in ("I", "I;16", "I;16B"):
            return np.array(_load(image)).astype(np.uint16)
        if image.mode not in ("L", "P", "1"):
            raise UndecodableError(
                f"the label holds colours ({image.mode}), not ids; store it as an index PNG with "
                "one channel",
                "color_label",
            )
        return np.array(_load(image), dtype=np.uint8)


def decode_color_label(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG label that marks classes by colours; palette indices are looked up.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a label of more pixels before decoding it.

    Returns:
      uint8 `[H, W, 3]`, RGB.

    Raises:
      UndecodableError: it is not a PNG (JPEG changes colours), is damaged or too large, has more
        than 8 bits, or is transparent in places.
    """
    with _open(encoded, ("PNG", "JPEG"), max_pixels) as image:
        if image.format == "JPEG":
            raise UndecodableError(
                "the label is a JPEG, whose compression changes colours; store labels as PNG",
                "jpeg_label",
            )
        if image.mode not in _IMAGE_MODES:
            raise UndecodableError(
                f"the label holds {image.mode} values of more than 8 bits, not colours",
                "deep_label",
            )
        pixels = _load(image)
        if pixels.has_transparency_data:
            pixels = pixels.convert("RGBA")
            if pixels.getextrema()[3][0] < 255:
                raise UndecodableError(
                    "the label is transparent in places, where its colour is ambiguous; store it "
                    "without transparency"
                )
        return np.array(pixels if pixels.mode == "RGB" else pixels.convert("RGB"))


def _open(encoded: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    if not encoded:
        raise UndecodableError("the file is empty (0 bytes)")
    if encoded.startswith(b"\xff\xd8") and encoded.count(_START_OF_SCAN) > _MAX_SCANS:
        raise UndecodableError(
            f"a JPEG of {encoded.count(_START_OF_SCAN)} scans, more than the limit of "
            f"{_MAX_SCANS}; save it again",
            "too_large",
        )
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is lower for warnings and higher for errors; ours below counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=formats)
    except Image.UnidentifiedImageError:
        start = bytes(encoded[:8])
        raise UndecodableError(f"neither JPEG nor PNG (it starts with {start!r})") from None
    except Image.DecompressionBombError as error:
        raise UndecodableError(str(error), "too_large") from None
    except Exception as error:  # hostile bytes raise many kinds of errors in the readers
        raise UndecodableError(f"damaged header: {error}") from None
    if image.width * image.height > max_pixels:
        size = image.size
        image.close()
        raise UndecodableError(
            f"{size[0]} x {size[1]} pixels are more than the limit of {max_pixels} pixels",
            "too_large",
            {"width": size[0], "height": size[1]},
        )
    return image


def _decode_plain(encoded: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes an RGB image by OpenCV; returns None where Pillow should look at it."""
    if image.mode != "RGB":
        return None
    if image.format == "JPEG":
        if not encoded.endswith(_JPEG_END):  # some versions of OpenCV fill in what was cut off
            return None
    elif encoded[24:26] != _PNG_8_BIT_RGB or _may_be_turned(encoded):
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (image.height, image.width, 3):
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _may_be_turned(png: bytes) -> bool:
    """Returns whether a PNG has a chunk that can hold an orientation."""
    at = 8
    while at < len(png):
        data = at + 8
        kind = png[at + 4 : data]
        if kind == b"eXIf" or (kind in _PNG_TEXTS and png.startswith(_PNG_ORIENTATION, data)):
            return True
        at = data + int.from_bytes(png[at : at + 4]) + 4
    return False


def _load(image: Image.Image) -> Image.Image:
    """Decodes the pixels; raises UndecodableError with the decoder's message."""
    try:
        image.load()
    except Exception as error:  # hostile bytes raise many kinds of errors in the decoders
        raise UndecodableError(f"damaged image: {error}") from None
    return image


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, or 1 (upright) where none can be read."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable metadata changes nothing
        return 1
