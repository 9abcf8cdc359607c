"""Reads every kind of image file as 8-bit RGB by one rule, for training and prediction alike, and
says what had to be done for that.

docs/data.md has the rule for each kind of file.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from PIL import Image

from flaxseg import tiff_header
from flaxseg.errors import DataError

# Pillow knows some forty formats, some of them rarely looked at; these are what cameras, browsers
# and scanners write.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif"),
)
"""In lower case, the suffixes of files that are taken for images, and of those taken for masks."""
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".tga", ".psd", ".svg"),
    *(".exr", ".hdr", ".pfm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
    *(".dcm", ".nii", ".eps"),
)
"""In lower case, suffixes of image formats that are not read."""

MAX_PIXELS = 64 * 1024 * 1024
"""An image with more pixels than this, by its header, is refused before decoding."""
MAX_BYTES = 256 * 1024 * 1024
"""A file larger than this is refused before it is read."""
_MAX_PREDICTED_PIXELS = 128 * 1024 * 1024
_MAX_PREDICTED_BYTES = 8 * _MAX_PREDICTED_PIXELS  # four bands of 16 bits

# Every scan of a JPEG may go over all its pixels again, and a scan may take only a few bytes.
# Encoders write about ten.
_MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "La", "PA", "RGBA", *SIXTEEN_BIT_MODES)
_FEW_BITS = 14  # a 16-bit image that uses no more is at most a quarter as bright as it could be
_EXIF_ORIENTATION = 0x0112
_XMP = ("xmp", "XML:com.adobe.xmp")  # which can hold the orientation as well
_UPRIGHT: Mapping[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}

Orientation = Literal["upright", "refused", "as_stored"]


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


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFile:
    """Holds a decoded image.

    Attributes:
      pixels: uint8 [H, W, 3] RGB.
      notes: what was done beyond decoding, in words: "turned as its EXIF orientation 6 says", ...
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def is_image_name(name: str | os.PathLike) -> bool:
    """Returns whether a file is an image or mask by its suffix, in whatever case.

    >>> is_image_name("photos/A.JPG"), is_image_name("photos/a.txt")
    (True, False)
    """
    return pathlib.PurePath(name).suffix.lower() in SUFFIXES


def is_unread_image_name(name: str | os.PathLike) -> bool:
    """Returns whether a file is by its suffix an image of a format that is not read."""
    return pathlib.PurePath(name).suffix.lower() in UNREAD_SUFFIXES


def read_image(path: str | os.PathLike, max_pixels: int = _MAX_PREDICTED_PIXELS) -> np.ndarray:
    """Returns `read_image_file(path).pixels`: uint8 [H, W, 3] RGB, upright."""
    return read_image_file(path, max_pixels).pixels


def read_image_file(
    path: str | os.PathLike,
    max_pixels: int = _MAX_PREDICTED_PIXELS,
    orientation: Orientation = "upright",
) -> ImageFile:
    """Reads a JPEG, PNG, WebP, BMP, TIFF, PPM or GIF file as `decode_image` does.

    Args:
      path: the file.
      max_pixels: largest H x W.
      orientation: as for `decode_image`.

    Raises:
      DataError: the file is missing, not an image of these formats, damaged or cut off, too large,
        or of a depth or number of bands that is not read; the message has the path and the reason.
    """
    try:
        encoded = read_file(path, _MAX_PREDICTED_BYTES)
        return decode_image(encoded, max_pixels, orientation=orientation)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # also UndecodableError
        raise DataError(f"{path}: {error}") from None


def read_file(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads the file of an image or label, in bounded time and memory.

    Raises:
      UndecodableError: it is not a regular file (a pipe would never end), or is larger than
        `max_bytes`.
      OSError: it is missing or cannot be read.
    """
    # Without O_NONBLOCK, opening a pipe would wait until something is written to it.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise UndecodableError("not an ordinary file but a directory")
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableError("not an ordinary file")
        if status.st_size > max_bytes:
            raise UndecodableError(
                f"the file has {status.st_size} bytes, more than the limit of {max_bytes}",
                "too_large",
                {"bytes": status.st_size},
            )
        with open(handle, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(handle)


def decode_image(
    encoded: bytes,
    max_pixels: int = MAX_PIXELS,
    *,
    orientation: Orientation = "upright",
    decode_plain: Callable[[bytes, Image.Image], np.ndarray | None] | None = None,
) -> ImageFile:
    """Decodes a JPEG, PNG, WebP, BMP, TIFF, PPM or GIF image to RGB.

    Grey, palette and CMYK images become RGB; transparent pixels, by an alpha channel or a colour
    key, are laid over white; of 16 bits the upper 8 are kept; of several frames the first is taken.

    Args:
      encoded: the bytes of the file.
      max_pixels: refuse an image of more pixels before decoding it.
      orientation: what to do with pixels that are stored turned, as EXIF says: turn them upright,
        refuse the image, or return them as they are stored.
      decode_plain: decodes the bytes of an opened 8-bit RGB image to the same pixels in another
        way, or returns None.

    Raises:
      UndecodableError: it is not an image of these formats, is damaged or too large, has a depth or
        bands that are not read, or is stored turned and that is refused.
    """
    with opened(encoded, max_pixels) as image:
        notes: list[str] = []
        pixels = decode_plain(encoded, image) if decode_plain is not None else None
        is_plain_png = pixels is not None and image.format == "PNG"
        if pixels is None:
            with _without_warnings():
                pixels = _to_rgb(image, notes)
        if is_plain_png or (orientation == "as_stored" and image.format != "TIFF"):
            return ImageFile(pixels, tuple(notes))
        turned = stored_orientation(image, encoded)
        if turned not in _UPRIGHT:
            return ImageFile(pixels, tuple(notes))
        if orientation != "upright":
            raise turned_error(turned)
        notes.append(f"turned as its EXIF orientation {turned} says")
        if image.format != "TIFF":  # which Pillow turns when it decodes it
            pixels = np.ascontiguousarray(_UPRIGHT[turned](pixels))
        return ImageFile(pixels, tuple(notes))


@contextlib.contextmanager
def opened(encoded: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Opens the bytes of an image file and checks its bounds; its pixels are not yet decoded.

    What goes wrong while they are decoded becomes an UndecodableError with the decoder's message.

    Raises:
      UndecodableError: it is not an image of a known format, its header is damaged, or it is beyond
        a limit.
    """
    if not encoded:
        raise UndecodableError("the file is empty (0 bytes)")
    if encoded.startswith(b"\xff\xd8") and encoded.count(_START_OF_SCAN) > _MAX_SCANS:
        raise UndecodableError(
            f"a JPEG of {encoded.count(_START_OF_SCAN)} scans, more than the limit of "
            f"{_MAX_SCANS}; save it again",
            "too_large",
        )
    if tiff_header.is_tiff(encoded):
        _check_tiff(encoded)
    with _open(encoded) as image:
        if image.width * image.height > max_pixels:
            raise UndecodableError(
                f"{image.width} x {image.height} pixels are more than the limit of "
                f"{max_pixels} pixels; scale the image down or cut it",
                "too_large",
                {"width": image.width, "height": image.height},
            )
        try:
            yield image
        except UndecodableError:
            raise
        except Exception as error:  # hostile bytes raise many kinds of errors in the decoders
            raise UndecodableError(f"damaged image: {error}") from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences Pillow; held briefly, because the filters belong to all threads."""
    with warnings.catch_warnings():
        # Pillow's own limit is lower for warnings and higher for errors; ours counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def sample_bits(image: Image.Image) -> int:
    """Returns the bits of a stored sample of an opened image that is not yet decoded."""
    if image.mode == "1":
        return 1
    if image.mode in SIXTEEN_BIT_MODES:
        return 16
    if image.format not in ("PNG", "TIFF", "PPM"):
        return 8
    # Pillow tells the stored form, such as "L;2" or "RGB;16B", to its decoder alone.
    form, *more = image.tile[0][3] if isinstance(image.tile[0][3], tuple) else [image.tile[0][3]]
    if image.format == "PPM":
        return 16 if more and more[0] > 255 else 8  # the largest value
    found = re.search(r";(\d+)", form)
    return int(found[1]) if found else 8


def stored_orientation(image: Image.Image, encoded: bytes) -> int:
    """Returns the EXIF orientation of a decoded image, or 1 (upright) where none can be read.

    Raises:
      UndecodableError: the EXIF tags would fill the memory, each a copy of the same bytes.
    """
    exif = _exif(image)
    if tiff_header.bytes_to_load(exif) > MAX_BYTES:
        raise UndecodableError("its EXIF tags unpack to too many bytes; remove them", "too_large")
    try:
        if image.format == "TIFF":
            return (*tiff_header.read_tags(encoded).get(tiff_header.ORIENTATION, ()), 1)[0]
        if not exif and not any(key in image.info for key in _XMP):
            return 1
        with _without_warnings():
            return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # unreadable metadata changes nothing
        return 1


def _exif(image: Image.Image) -> bytes:
    """Returns the EXIF block of an image, b"" if it has none."""
    exif = image.info.get("exif", b"")
    if not exif:  # ImageMagick writes it into PNGs as a text, in hexadecimal after three lines
        text = image.info.get("Raw profile type exif", "")
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return exif.removeprefix(b"Exif\0\0")


def turned_error(orientation: int) -> UndecodableError:
    """Returns the error for an image or label that is stored turned."""
    return UndecodableError(
        f"EXIF orientation {orientation}: it is stored turned or mirrored, so an image and its "
        "label may not fit each other; store it upright",
        "exif_rotation",
        {"orientation": orientation},
    )


def _check_tiff(encoded: bytes) -> None:
    try:
        complaint = tiff_header.complaint(tiff_header.read_tags(encoded))
    except ValueError as error:
        raise UndecodableError(f"damaged header: {error}") from None
    if complaint:
        raise UndecodableError(complaint, "pixel_format")


def _open(encoded: bytes) -> Image.Image:
    try:
        with _without_warnings():
            return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UndecodableError(_not_an_image(encoded)) from None
    except Image.DecompressionBombError as error:
        raise UndecodableError(str(error), "too_large") from None
    except Exception as error:  # hostile bytes raise many kinds of errors in the readers
        raise UndecodableError(f"damaged header: {error}") from None


def _not_an_image(encoded: bytes) -> str:
    """Returns why no decoder takes a file: what the one says that its first bytes ask for."""
    for name in FORMATS:
        open_file, accepts = Image.OPEN[name]
        if accepts is not None and accepts(encoded[:16]) is True:
            try:
                open_file(io.BytesIO(encoded), "").close()
            except Exception as error:
                return f"a {name} that cannot be decoded: {error}"
    known = ", ".join(FORMATS)
    return f"not an image of a known format (it starts with {encoded[:8]!r}); known are {known}"


def _to_rgb(image: Image.Image, notes: list[str]) -> np.ndarray:
    """Decodes an opened image to uint8 [H, W, 3], and notes what had to be done for that."""
    if image.mode not in _MODES:
        raise UndecodableError(
            f"pixel format {image.mode}; convert the image to 8-bit RGB", "pixel_format"
        )
    # An MPO is a JPEG with previews, or the other eye's view, behind it. The number of frames is
    # not asked for: to count millions of them takes minutes.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("took the first of several frames")
    bits = sample_bits(image)
    image.load()
    if image.mode == "La":  # grey multiplied by its alpha
        image = image.convert("LA")
    if image.mode in SIXTEEN_BIT_MODES:
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        pixels = np.repeat(grey[..., None], 3, axis=-1)
    else:
        pixels = np.array(image.convert("RGB"))
    if image.mode == "CMYK":
        notes.append("converted CMYK to RGB without a colour profile")
    if bits == 16:
        notes.append(_reduction(pixels))
    if image.has_transparency_data:
        pixels = _over_white(image, bits, pixels, notes)
    return pixels


def _reduction(pixels: np.ndarray) -> str:
    """Returns the note on 16-bit samples whose upper 8 bits are given."""
    used = 8 + int(pixels.max()).bit_length()
    if used > _FEW_BITS:
        return "reduced 16 bits to 8"
    return (
        f"reduced 16 bits to 8, of which little is left: only {used} bits are used, so the values "
        f"are 0..{pixels.max()}; scale the samples to all 16 bits"
    )


def _over_white(image: Image.Image, bits: int, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    """Lays an image over white; `pixels` are its colours without regard to transparency."""
    if image.mode in ("1", "L", "RGB", *SIXTEEN_BIT_MODES):
        hidden = _is_key(image, bits, pixels)
        if not hidden.any():
            return pixels
        pixels[hidden] = 255
    else:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] == 255:
            return pixels
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        pixels = np.array(Image.alpha_composite(white, image).convert("RGB"))
    notes.append("laid its transparent pixels over white")
    return pixels


def _is_key(image: Image.Image, bits: int, pixels: np.ndarray) -> np.ndarray:
    """Returns which pixels have the colour that stands for transparency, bool [H, W]."""
    key = image.info["transparency"]  # in samples as they are stored
    if image.mode in SIXTEEN_BIT_MODES:
        return np.asarray(image) == key
    if bits == 16:
        raise UndecodableError(
            "a colour that stands for transparency in RGB of 16 bits; use an alpha channel",
            "pixel_format",
        )
    if image.mode == "1":
        return pixels[..., 0] == (255 if key else 0)
    return (pixels == np.array(key) * (255 // (2**bits - 1))).all(axis=-1)
