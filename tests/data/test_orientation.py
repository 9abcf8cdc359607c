"""EXIF orientation that labels do not follow."""

import io

import numpy as np
import pytest
from flaxseg.data.stream.exif import set_upright
from PIL import Image
from published_files import png

from flaxseg.data.raw.decode import UndecodableError, decode_image

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
def test_only_the_orientation_changes(orientation, order):
    turned = jpeg_with(orientation, order)
    with pytest.raises(UndecodableError, match=f"EXIF orientation {orientation}"):
        decode_image(turned)
    upright = set_upright(turned)
    np.testing.assert_array_equal(decode_image(upright), decode_image(jpeg_with(None, order)))
    assert sum(a != b for a, b in zip(turned, upright, strict=True)) == 1
    assert Image.open(io.BytesIO(upright)).getexif()[0x010F] == "a camera"


def test_all_else_is_returned_as_it_is():
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG")
    whole = jpeg_with(6)
    for content in (plain.getvalue(), jpeg_with(1), jpeg_with(None), png(PIXELS), b"", b"\xff\xd8"):
        assert set_upright(content) is content
    for end in range(60):  # cut off within the notes
        assert len(set_upright(whole[:end])) == end


def test_damaged_notes_never_fail():
    rng = np.random.default_rng(0)
    whole = jpeg_with(6)
    for _ in range(3000):
        content = bytearray(whole)
        for place in rng.integers(0, 120, rng.integers(1, 5)):
            content[place] = rng.integers(256)
        assert len(set_upright(bytes(content))) == len(whole)
