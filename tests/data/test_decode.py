"""Decoding: exact pixels and ids, and words for every kind of broken file."""

import io
import resource
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from published_files import jpeg, png

from flaxseg.classes import voc_colors
from flaxseg.data.raw.decode import decode_color_label, decode_image, decode_label
from flaxseg.data.raw.label_map import LabelMap
from flaxseg.data.raw.problems import KINDS
from flaxseg.image_files import MAX_BYTES, UndecodableError, read_file

IDS = np.array([[0, 1, 20], [255, 15, 2]], np.uint8)
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette_image(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids)
    image.putpalette([(7 * i + 3 * c) % 256 for i in range(256) for c in range(3)])
    assert image.mode == "P"
    return image


def test_labels_keep_their_ids():
    np.testing.assert_array_equal(decode_label(png(IDS)), IDS)
    np.testing.assert_array_equal(decode_label(encoded(palette_image(IDS))), IDS)
    deep = IDS.astype(np.uint16) * 100
    found = decode_label(png(deep))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, deep)
    binary = Image.fromarray(IDS > 10)
    np.testing.assert_array_equal(decode_label(encoded(binary)), (IDS > 10).astype(np.uint8))


def test_images_of_all_kinds_become_rgb():
    np.testing.assert_array_equal(decode_image(png(IMAGE)).pixels, IMAGE)
    gray = IMAGE[..., 0]
    np.testing.assert_array_equal(decode_image(png(gray)).pixels, np.stack([gray] * 3, -1))
    indexed = palette_image(IDS)
    np.testing.assert_array_equal(
        decode_image(encoded(indexed)).pixels, np.array(indexed.convert("RGB"))
    )
    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    found = decode_image(cv2.imencode(".png", deep[..., ::-1])[1].tobytes()).pixels
    np.testing.assert_array_equal(found, deep >> 8)  # colours of 16 bits are cut to 8
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert abs(decode_image(jpeg(smooth)).pixels.astype(int) - smooth).max() <= 3
    cmyk = encoded(Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95)
    assert abs(decode_image(cmyk).pixels.astype(int) - smooth).max() <= 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is text", "not an image of a known format"),
        (jpeg(IMAGE)[:-200], "truncated"),
        (jpeg(IMAGE)[:-2], "truncated"),
        (png(IMAGE)[: len(png(IMAGE)) // 2], "damaged image"),
    ],
)
def test_broken_images_are_refused_in_words(content, words):
    with pytest.raises(UndecodableError, match=words):
        decode_image(content)


def test_a_image_stored_turned_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(UndecodableError, match="EXIF orientation 6"):
        decode_image(encoded(Image.fromarray(IMAGE), "JPEG", exif=exif))


def png_with(kind: bytes, data: bytes, behind: bool) -> bytes:
    """A PNG with one more chunk, before or behind its pixels."""
    content = encoded(Image.fromarray(IMAGE))
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    at = -12 if behind else 33
    return content[:at] + chunk + content[at:]


@pytest.mark.parametrize("behind", [False, True])
def test_a_turned_png_is_refused_wherever_it_says_so(behind):
    exif = Image.Exif()
    exif[0x0112] = 3
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="3"/>'
    for chunk in ((b"eXIf", exif.tobytes()[6:]), (b"iTXt", xmp)):
        with pytest.raises(UndecodableError, match="EXIF orientation 3"):
            decode_image(png_with(*chunk, behind))
    np.testing.assert_array_equal(decode_image(png_with(b"tEXt", b"by\0us", behind)).pixels, IMAGE)


SMOOTH = np.kron(IMAGE[:5, :7], np.ones((8, 8, 1))).astype(np.uint8)[:39, :53]


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(SMOOTH), "JPEG", quality=90, subsampling=0),
        encoded(Image.fromarray(SMOOTH), "JPEG", quality=75, subsampling=2),
        encoded(Image.fromarray(SMOOTH), "JPEG", quality=60, progressive=True),
        encoded(Image.fromarray(SMOOTH), "JPEG", keep_rgb=True),
        encoded(Image.fromarray(SMOOTH).convert("L"), "JPEG"),
        encoded(Image.fromarray(SMOOTH), "JPEG") + b"behind the end",
        png(SMOOTH),
    ],
)
def test_pixels_are_those_of_pillow(content):
    """Most images are decoded by OpenCV, which is faster."""
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(content).pixels, wanted)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (jpeg(IMAGE), "JPEG, whose compression changes"),
        (png(IMAGE), "holds colours"),
        (png(IDS)[:50], "damaged image"),
    ],
)
def test_labels_that_cannot_hold_ids_are_refused(content, words):
    with pytest.raises(UndecodableError, match=words):
        decode_label(content)


def test_a_image_bomb_is_refused_before_it_is_decoded():
    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    def bomb(side: int) -> bytes:
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0"))
            + chunk(b"IEND", b"")
        )

    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for side in (9000, 12000, 60000):  # below and above the limits at which Pillow warns and raises
        for decode in (decode_image, decode_label):
            with pytest.raises(UndecodableError, match="pixels"):
                decode(bomb(side))
    assert time.monotonic() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


def test_label_map_translates_and_finds_unknown_ids():
    label_map = LabelMap({0: 255, 1: 0, 2: 1, 15: 2, 20: 3, 255: 255})
    np.testing.assert_array_equal(label_map.apply(IDS), [[255, 0, 3], [255, 2, 1]])
    np.testing.assert_array_equal(
        label_map.apply(IDS.astype(np.uint16)), [[255, 0, 3], [255, 2, 1]]
    )
    strange = np.array([[7, 7, 1], [9, 1, 1]], np.uint8)
    assert label_map.unknown_ids(strange) == {7: 2, 9: 1}
    for dtype in (np.uint8, np.uint16):
        with pytest.raises(
            ValueError, match=r"7 \(2 pixels\), 9 \(1 pixels\).*0\.\.2, 15, 20, 255"
        ):
            label_map.apply(strange.astype(dtype))
    with pytest.raises(ValueError, match=r"1000 \(1 pixels\)"):
        label_map.apply(np.array([[1000, 1]], np.uint16))


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused():
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "JPEG", progressive=True)
    progressive = file.getvalue()
    assert decode_image(progressive).pixels.shape == IMAGE.shape
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    repeated = progressive[:-2] + 200 * last_scan + b"\xff\xd9"
    assert Image.open(io.BytesIO(repeated)).size == (30, 40)  # a JPEG to whom looks at its header
    with pytest.raises(UndecodableError, match="scans, more than the limit of 100"):
        decode_image(repeated)


def test_a_file_is_not_read_beyond_the_limit(tmp_path):
    (tmp_path / "a.png").write_bytes(png(IDS))
    assert read_file(tmp_path / "a.png") == png(IDS)
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UndecodableError, match=f"has {MAX_BYTES + 1} bytes"):
        read_file(tmp_path / "large.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB
    with pytest.raises(UndecodableError, match="not an ordinary file"):
        read_file(tmp_path)


def test_every_way_to_fail_has_a_kind():
    exif = Image.Exif()
    exif[0x0112] = 3
    cases = [
        (decode_image, b"", "undecodable"),
        (
            decode_image,
            encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
            "pixel_format",
        ),
        (decode_image, encoded(Image.fromarray(IMAGE), "JPEG", exif=exif), "exif_rotation"),
        (decode_label, jpeg(IMAGE), "jpeg_label"),
        (decode_label, png(IMAGE), "color_label"),
        (decode_color_label, jpeg(IMAGE), "jpeg_label"),
        (decode_color_label, png(np.zeros((4, 4), np.uint16)), "pixel_format"),
        (decode_color_label, png(IMAGE)[:200], "undecodable"),
    ]
    for decode, content, kind in cases:
        with pytest.raises(UndecodableError) as caught:
            decode(content)
        assert caught.value.kind == kind
        assert kind in KINDS
    for limited in (decode_image, decode_label, decode_color_label):
        with pytest.raises(UndecodableError) as caught:
            limited(png(IDS), max_pixels=5)
        assert (caught.value.kind, caught.value.details) == ("too_large", {"width": 3, "height": 2})


def test_real_palette_labels_hold_what_their_colours_say(shared_dir):
    """Another decoder sees the colours; VOC's table of colours takes them back to the ids."""
    folder = shared_dir / "data" / "voc2012_sample" / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    index = {color: number for number, color in enumerate(voc_colors(256))}
    for path in sorted(folder.glob("*.png")):
        ids = decode_label(path.read_bytes())
        colors = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
        packed, place = np.unique(colors.reshape(-1, 3), axis=0, return_inverse=True)
        wanted = np.array([index[tuple(map(int, color))] for color in packed])[place.reshape(-1)]
        np.testing.assert_array_equal(ids.reshape(-1), wanted)
        np.testing.assert_array_equal(decode_color_label(path.read_bytes()), colors)
