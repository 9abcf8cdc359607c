"""Masks, overlays, legends and comparisons."""

import numpy as np
import pytest
from PIL import Image

from flaxseg.classes import voc_colors
from flaxseg.drawing import (
    colorize,
    error_image,
    overlay,
    overlay_with_legend,
    save_palette_png,
    side_by_side,
    with_legend,
)

NAMES = ("background", "cat", "dog")
COLORS = ((0, 0, 0), (200, 0, 0), (0, 0, 200))


def example(height=40, width=60):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    pred = np.zeros((height, width), np.uint8)
    pred[:, width // 3 : 2 * width // 3] = 1
    return image, pred


def holds_color(drawn, color):
    return (drawn.reshape(-1, 3) == color).all(axis=1).any()


def test_voc_colors_are_those_of_the_development_kit():
    colors = voc_colors(256)
    assert colors[15] == (192, 128, 128)  # person
    assert colors[20] == (0, 64, 128)  # tvmonitor
    assert colors[255] == (224, 224, 192)  # void
    assert len(set(colors)) == 256


def test_voc_colors_equal_the_palette_of_real_labels(shared_dir):
    folder = shared_dir / "data/voc2012_sample/VOCdevkit/VOC2012/SegmentationClass"
    with Image.open(folder / "2007_004189.png") as label:
        np.testing.assert_array_equal(
            np.reshape(label.getpalette(), (-1, 3))[:256], voc_colors(256)
        )


@pytest.mark.parametrize("num_classes", [2, 21, 255, 256])
def test_palette_png_keeps_exact_indices(tmp_path, num_classes):
    pred = (np.arange(35 * 41) % num_classes).astype(np.uint8).reshape(35, 41)
    pred[0, 0] = 255
    save_palette_png(tmp_path / "a.png", pred, voc_colors(num_classes))
    with Image.open(tmp_path / "a.png") as png:
        assert png.mode == "P"
        np.testing.assert_array_equal(np.asarray(png), pred)
        np.testing.assert_array_equal(
            np.asarray(png.convert("RGB")), colorize(pred, voc_colors(num_classes))
        )
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    _, pred = example()
    path = tmp_path / "a.png"
    save_palette_png(path, pred, COLORS)
    before = path.read_bytes()

    def full(self, file, format):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_palette_png(path, pred + 1, COLORS)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_overlay_mixes_colour_draws_edges_and_leaves_ignored_pixels():
    image, pred = example()
    pred[:10] = 255
    mixed = overlay(image, pred, COLORS, opacity=0.5)
    wanted = np.rint(image[30, 30] + 0.5 * (np.array(COLORS[1], float) - image[30, 30]))
    np.testing.assert_array_equal(mixed[30, 30], wanted)
    np.testing.assert_array_equal(mixed[:9, :18], image[:9, :18])
    assert (mixed[30, 19] > 160).all(), "no light line between the classes"
    np.testing.assert_array_equal(overlay(image, np.ones_like(pred), COLORS, opacity=0), image)


def test_legend_shows_the_classes_that_occur_and_no_others():
    image, pred = example(400, 600)
    with_one = with_legend(image, [1], NAMES, COLORS)
    assert with_one.shape[0] > 400
    np.testing.assert_array_equal(with_one[:400], image)
    legend = with_one[400:]
    assert holds_color(legend, COLORS[1])
    assert not holds_color(legend, COLORS[2])
    both = with_legend(image, pred + 1, NAMES, COLORS)[400:]
    assert holds_color(both, COLORS[1])
    assert holds_color(both, COLORS[2])


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (48, 64), (360, 480)])
def test_images_of_any_size_are_readable(size):
    image = np.full((*size, 3), 90, np.uint8)
    pred = np.ones(size, np.uint8)
    for drawn in (
        overlay_with_legend(image, pred, NAMES, COLORS),
        side_by_side(image, pred, pred, NAMES, COLORS, title="a title"),
    ):
        assert drawn.dtype == np.uint8
        assert max(drawn.shape[:2]) >= 360


def test_side_by_side_shows_the_share_of_errors_and_marks_them():
    image, pred = example(360, 480)
    image[:] = 128
    label = pred.copy()
    label[100:200, 200:250] = 2
    label[:50] = 255
    errors = error_image(image, label, pred)
    red = (errors[..., 0].astype(int) - errors[..., 1]) > 80
    np.testing.assert_array_equal(red, (label != pred) & (label != 255))
    stripes = errors[:50].reshape(-1, 3)
    assert {tuple(c) for c in stripes.tolist()} == {(228, 228, 228), (165, 165, 165)}
    right = side_by_side(image, pred, pred, NAMES, COLORS)
    wrong = side_by_side(image, label, pred, NAMES, COLORS)
    assert not holds_color(right, errors[150, 220])
    assert holds_color(wrong, errors[150, 220])


def test_wrong_arguments_are_errors():
    image, pred = example()
    with pytest.raises(ValueError, match="class index 7 has no colour: there are 3"):
        colorize(pred + 7, COLORS)
    with pytest.raises(ValueError, match="its label map"):
        overlay(image[1:], pred, COLORS)
    with pytest.raises(ValueError, match="opacity"):
        overlay(image, pred, COLORS, opacity=1.5)
    with pytest.raises(ValueError, match="integers"):
        colorize(pred.astype(float), COLORS)
    with pytest.raises(ValueError, match="got 257"):
        voc_colors(257)
