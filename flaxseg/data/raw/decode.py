"""Decodes the images of data sets by the rule of `flaxseg.image_files`, and labels to the numbers
that they store.

Pillow reads the headers and decides what is damaged. OpenCV decodes whole, plain RGB images, nearly
all there are, to the same pixels in two thirds of the time.
"""

import cv2
import numpy as np
from PIL import Image

from flaxseg import image_files, tiff_header
from flaxseg.image_files import (
    MAX_PIXELS,
    SIXTEEN_BIT_MODES,
    ImageFile,
    UndecodableError,
    opened,
    sample_bits,
    stored_orientation,
    turned_error,
)

_JPEG_END = b"\xff\xd9"
_PNG_8_BIT_RGB = b"\x08\x02"  # bit depth and colour type in the header
_PNG_NOT_PLAIN = (b"tRNS", b"acTL", b"eXIf")  # a colour key, an animation, an orientation
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATION = (b"Raw profile type", b"XML:com.adobe.xmp")  # texts that can hold it
_LABEL_FORMATS = ("PNG", "TIFF", "GIF")


def decode_image(
    encoded: bytes, max_pixels: int = MAX_PIXELS, *, as_stored: bool = False
) -> ImageFile:
    """Decodes an image to RGB as `flaxseg.image_files.decode_image` does.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse an image of more pixels before decoding it.
      as_stored: return the pixels as they are stored even where EXIF says that they are turned.
        Published label sets were drawn on the stored pixels, by programs that do not turn them.

    Raises:
      UndecodableError: as there; and the image is stored turned (EXIF) and not wanted as stored.
    """
    orientation = "as_stored" if as_stored else "refused"
    return image_files.decode_image(
        encoded, max_pixels, orientation=orientation, decode_plain=_decode_plain
    )


def decode_label(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG, TIFF or GIF label to the ids it stores, of whatever depth.

    Grey values and palette indices are kept as they are.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a label of more pixels before decoding it.

    Returns:
      uint8 `[H, W]`, or uint16 `[H, W]` for a label of 16 bits.

    Raises:
      UndecodableError: its format can change ids, it is damaged or too large, or it holds colours
        instead of ids.
    """
    with opened(encoded, max_pixels) as image:
        bits = _load_label(encoded, image)
        if image.mode in SIXTEEN_BIT_MODES:
            return np.array(image).astype(np.uint16)
        if image.mode not in ("L", "P", "1"):
            held = "grey with alpha" if image.mode in ("LA", "La") else f"colours ({image.mode})"
            raise UndecodableError(
                f"the label holds {held}, not ids; store it as an index PNG with one channel",
                "color_label",
            )
        ids = np.array(image, dtype=np.uint8)
        if image.mode == "L" and bits < 8:  # Pillow spreads grey values over 0..255
            ids //= 255 // (2**bits - 1)
        return ids


def decode_color_label(encoded: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a PNG, TIFF or GIF label that marks classes by colours; looks up palette indices.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse a label of more pixels before decoding it.

    Returns:
      uint8 `[H, W, 3]`, RGB.

    Raises:
      UndecodableError: its format can change colours, it is damaged or too large, has more than 8
        bits, or is transparent in places.
    """
    with opened(encoded, max_pixels) as image:
        if _load_label(encoded, image) > 8:
            raise UndecodableError(
                f"the label holds {image.mode} values of more than 8 bits, not colours; store it "
                "as 8-bit RGB",
                "pixel_format",
            )
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                raise UndecodableError(
                    "the label is transparent in places, where its colour is ambiguous; store it "
                    "without transparency"
                )
        return np.array(image.convert("RGB"))


def _load_label(encoded: bytes, image: Image.Image) -> int:
    """Decodes the pixels of an opened label and returns the bits of a stored sample.

    Raises:
      UndecodableError: the format does not keep what was drawn, or the label is stored turned.
    """
    _check_format(encoded, image)
    bits = sample_bits(image)
    image.load()
    orientation = stored_orientation(image, encoded)
    if orientation not in (0, 1):
        raise turned_error(orientation)
    return bits


def _check_format(encoded: bytes, image: Image.Image) -> None:
    """Raises UndecodableError for a label whose format does not keep what was drawn."""
    if image.format in ("JPEG", "MPO"):
        raise UndecodableError(
            "the label is a JPEG, whose compression changes label ids and colours; store labels "
            "as PNG",
            "jpeg_label",
        )
    if image.format not in _LABEL_FORMATS:
        raise UndecodableError(
            f"the label is of the format {image.format}, in which ids may not be kept; store "
            "labels as PNG"
        )
    if getattr(image, "is_animated", False):
        raise UndecodableError("the label has several frames; store one label per file")
    if image.format == "TIFF":
        tags = tiff_header.read_tags(encoded)
        if tags.get(tiff_header.COMPRESSION, (1,))[0] in tiff_header.LOSSY_COMPRESSIONS:
            raise UndecodableError(
                "the label is a TIFF with lossy compression, which changes label ids and colours; "
                "store labels as PNG",
                "jpeg_label",
            )
        if tags.get(tiff_header.PHOTOMETRIC, (0,))[0] == tiff_header.WHITE_IS_ZERO:
            raise UndecodableError(
                "the label is a TIFF in which white is stored as 0, so that ids are ambiguous; "
                "store labels as PNG"
            )


def _decode_plain(encoded: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes an RGB image by OpenCV; returns None where Pillow should look at it."""
    if image.mode != "RGB":
        return None
    if image.format == "JPEG":
        if not encoded.endswith(_JPEG_END):  # some versions of OpenCV fill in what was cut off
            return None
    elif image.format != "PNG" or encoded[24:26] != _PNG_8_BIT_RGB or not _is_plain(encoded):
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is None or pixels.shape != (image.height, image.width, 3):
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _is_plain(png: bytes) -> bool:
    """Returns whether a PNG has no chunk that can change what its pixels look like."""
    at = 8
    while at < len(png):
        data = at + 8
        kind = png[at + 4 : data]
        if kind in _PNG_NOT_PLAIN or (
            kind in _PNG_TEXTS and png.startswith(_PNG_ORIENTATION, data)
        ):
            return False
        at = data + int.from_bytes(png[at : at + 4]) + 4
    return True
