"""EXIF orientation that labels do not follow."""

import io

import numpy as np
import pytest
from PIL import Image
from published_files import png

from flaxseg.data.raw.decode import decode_image
from flaxseg.image_files import UndecodableError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def jpeg_with(orientation: int | None, order: bytes = b"MM") -> bytes:
    exif = Image.Exif()
    exif.endian = {b"MM": ">", b"II": "<"}[order]
    exif[0x010F] = "a camera"
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif, comment=b"words")
    return file.getvalue()


@pytest.mark.parametrize("order", [b"MM", b"II"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_pixels_are_returned_as_stored(orientation, order):
    turned = jpeg_with(orientation, order)
    with pytest.raises(UndecodableError, match=f"EXIF orientation {orientation}"):
        decode_image(turned)
    upright = decode_image(jpeg_with(None, order)).pixels
    np.testing.assert_array_equal(decode_image(turned, as_stored=True).pixels, upright)


def test_images_without_orientation_are_decoded_as_always():
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG")
    for content in (plain.getvalue(), jpeg_with(1), jpeg_with(None), png(PIXELS)):
        stored = decode_image(content, as_stored=True).pixels
        np.testing.assert_array_equal(stored, decode_image(content).pixels)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_notes_never_fail_otherwise():
    rng = np.random.default_rng(0)
    whole = jpeg_with(6)
    decoded = 0
    for _ in range(1000):
        content = bytearray(whole)
        for place in rng.integers(0, 120, rng.integers(1, 5)):
            content[place] = rng.integers(256)
        try:
            decoded += decode_image(bytes(content), as_stored=True).pixels.shape == PIXELS.shape
        except UndecodableError:
            continue
    assert decoded > 100
