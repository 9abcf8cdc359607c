"""Every kind of image file that users have."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from flaxseg.errors import DataError
from flaxseg.image_files import read_image, read_image_file


def colours(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_rgb_png_is_exact_and_needs_no_note(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    file = read_image_file(tmp_path / "a.png")
    np.testing.assert_array_equal(file.pixels, colours())
    assert file.notes == ()


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "ppm", "gif", "jpg"])
def test_other_formats(tmp_path, suffix):
    flat = np.full((8, 8, 3), (250, 20, 20), np.uint8)
    Image.fromarray(flat).save(tmp_path / f"a.{suffix}")
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - flat).max() < 16


def test_grey_palette_and_one_bit(tmp_path):
    grey = colours()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey[..., None].repeat(3, -1))
    palette = Image.fromarray(grey % 3)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 9, 255])
    palette.save(tmp_path / "palette.png")
    wanted = np.array([[0, 0, 0], [255, 0, 0], [0, 9, 255]], np.uint8)[grey % 3]
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), wanted)
    Image.fromarray(grey > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png")[..., 1], 255 * (grey > 127))


def test_sixteen_bit_grey_is_scaled(tmp_path):
    values = np.array([[0, 257, 65535, 32896]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    file = read_image_file(tmp_path / "a.png")
    np.testing.assert_array_equal(file.pixels[..., 2], [[0, 1, 255, 128]])
    assert file.notes == ("reduced 16 bits to 8",)


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.dstack([colours(), np.full((6, 9), 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    assert read_image_file(tmp_path / "opaque.png").notes == ()
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    file = read_image_file(tmp_path / "a.png")
    assert file.pixels[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(file.pixels[1:], colours()[1:])
    assert "white" in file.notes[0]


def test_cmyk(tmp_path):
    cmyk = Image.new("CMYK", (5, 4), (0, 255, 255, 0))
    cmyk.save(tmp_path / "a.jpg")
    file = read_image_file(tmp_path / "a.jpg")
    assert file.pixels.shape == (4, 5, 3)
    assert (file.pixels[..., 0] > 220).all()
    assert (file.pixels[..., 1:] < 40).all()
    assert "CMYK" in file.notes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = colours(4, 7)
    # What a camera stores for each orientation (EXIF standard).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    file = read_image_file(tmp_path / "a.png")
    np.testing.assert_array_equal(file.pixels, upright)
    assert bool(file.notes) == (orientation != 1)


def test_first_of_several_frames(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    file = read_image_file(tmp_path / "a.tif")
    assert file.pixels[0, 0].tolist() == [255, 0, 0]
    assert "first of several frames" in file.notes[0]


def truncated_jpeg():
    buffer = io.BytesIO()
    Image.fromarray(colours(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"this is no image", "not an image of a known format"),
        (truncated_jpeg(), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, ""),
        (b"%PDF-1.4 something", "not an image"),
    ],
)
def test_bad_files_are_named_with_the_decoders_words(tmp_path, content, words):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_the_bounds_for_hostile_files_hold_for_prediction(tmp_path):
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    (tmp_path / "scans.jpg").write_bytes(whole[:-2] + 200 * scan + b"\xff\xd9")
    with pytest.raises(DataError, match="scans, more than the limit of 100"):
        read_image(tmp_path / "scans.jpg")
    with open(tmp_path / "large.jpg", "wb") as large:
        large.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match="bytes, more than the limit"):
        read_image(tmp_path / "large.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match="not an ordinary file"):
        read_image(tmp_path / "pipe.jpg")


def test_missing_folder_float_and_huge(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path)
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floating point"):
        read_image(tmp_path / "a.tif")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"pixels"):
        read_image(tmp_path / "bomb.png")
    Image.fromarray(colours()).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="9 x 6 pixels are more than the limit of 50"):
        read_image(tmp_path / "b.png", max_pixels=50)
