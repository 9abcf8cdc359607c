"""Augmentation: label and image stay aligned, ids are never made up, and what is drawn is what
was asked for.
"""

import cv2
import numpy as np
import pytest

from flaxseg.data import Augmentation, augment
from flaxseg.errors import ConfigError

PLAIN = Augmentation(scale=(1.0, 1.0), flip=False)
EVERYTHING = Augmentation(scale=(0.3, 2.5), rotate=25.0, blur=0.5, photometric=1.0)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_pair(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    generator = rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ids = np.array([0, 3, 77, 254, 255], np.uint8)
    return image, ids[generator.integers(0, 5, (height, width))]


@pytest.mark.parametrize("seed", range(40))
def test_no_label_is_made_up_and_results_are_batchable(seed):
    generator = rng(1000 + seed)
    height, width = generator.integers(1, 90, 2)
    crop = tuple(int(n) for n in generator.integers(1, 80, 2))
    image, label = random_pair(seed, height, width)
    chosen = [EVERYTHING, Augmentation(), Augmentation(scale=(0.05, 0.2), rotate=90.0)][seed % 3]
    found_image, found_label = augment(image, label, crop, chosen, rng(seed))
    assert set(np.unique(found_label)) <= {*np.unique(label), 255}
    assert (found_image.shape, found_label.shape) == ((*crop, 3), crop)
    assert found_image.dtype == found_label.dtype == np.uint8
    assert found_image.flags.c_contiguous
    assert found_label.flags.c_contiguous


def test_the_result_is_a_function_of_the_generator_and_leaves_the_input_alone():
    image, label = random_pair(0, 50, 60)
    kept = image.copy(), label.copy()
    first = augment(image, label, (32, 40), EVERYTHING, rng(5))
    second = augment(image, label, (32, 40), EVERYTHING, rng(5))
    other = augment(image, label, (32, 40), EVERYTHING, rng(6))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()
    np.testing.assert_array_equal(image, kept[0])
    np.testing.assert_array_equal(label, kept[1])


def test_scale_one_is_an_exact_crop_at_a_random_place():
    """Pixels that hold their own position show where the crop was taken."""
    y, x = np.mgrid[0:50, 0:60].astype(np.uint8)
    image, label = np.stack([y, x, x], -1), (y // 2 + x).astype(np.uint8)
    places = set()
    for seed in range(30):
        found, found_label = augment(image, label, (20, 30), PLAIN, rng(seed))
        top, left = found[0, 0, :2]
        places.add((int(top), int(left)))
        np.testing.assert_array_equal(found, image[top : top + 20, left : left + 30])
        np.testing.assert_array_equal(found_label, label[top : top + 20, left : left + 30])
    assert len(places) > 20


def test_a_small_image_is_padded_at_a_random_place():
    image, label = np.full((10, 12, 3), 200, np.uint8), np.full((10, 12), 4, np.uint8)
    fill = Augmentation(scale=(1.0, 1.0), flip=False, fill=(1, 2, 3))
    corners = set()
    for seed in range(20):
        found, found_label = augment(image, label, (30, 11), fill, rng(seed))
        inside = found_label == 4
        assert inside.sum() == 10 * 11
        assert (found_label[~inside] == 255).all()
        assert (found[inside] == 200).all()
        assert (found[~inside] == (1, 2, 3)).all()
        corners.add(int(np.argwhere(inside)[0, 0]))
    assert len(corners) > 5


def disk_pair() -> tuple[np.ndarray, np.ndarray]:
    """A white disk on black with exact coverage at its edge, and its label; an uneven size."""
    y, x = np.mgrid[0:240, 0:301] + 0.5
    distance = np.hypot(y - 131.3, x - 140.8) - 70.2
    gray = np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)
    return np.stack([gray] * 3, -1), (distance < 0).astype(np.uint8)


def centroid(weight: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]]
    return np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()


@pytest.mark.parametrize("rotate", [0.0, 40.0])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.73, 1.0, 1.37, 2.0])
def test_edges_of_label_and_image_coincide(scale, rotate):
    """The disk has one middle and one size in both, to a fraction of a pixel."""
    image, label = disk_pair()
    chosen = Augmentation(scale=(scale, scale), flip=False, rotate=rotate, fill=(0, 0, 0))
    for seed in range(12):
        found, ids = augment(image, label, (640, 700), chosen, rng(seed))
        disk = ids == 1
        offset = centroid(disk) - centroid(found[..., 0].astype(float))
        # At half size the two nearest pixels are equally near: a quarter of a pixel to one side.
        assert abs(offset).max() < (0.42 if scale == 0.5 else 0.1)
        assert disk.sum() == pytest.approx(np.pi * (70.2 * scale) ** 2, rel=0.01)
        assert (found[..., 0] > 127).sum() == pytest.approx(disk.sum(), rel=0.01)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.6])
def test_a_crop_of_the_scaled_image_stays_aligned(scale):
    """No shift of the label by a pixel fits the image better."""
    image, label = disk_pair()
    chosen = Augmentation(scale=(scale, scale), flip=False)
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    wrong = dict.fromkeys(shifts, 0)
    for seed in range(30):
        found, ids = augment(image, label, (97, 113), chosen, rng(seed))
        white = (found[..., 0] > 127)[1:-1, 1:-1]
        for shift in shifts:
            wrong[shift] += (np.roll(ids == 1, shift, (0, 1))[1:-1, 1:-1] != white).sum()
    aligned = wrong.pop((0, 0))
    assert aligned < 0.7 * min(wrong.values())


def test_half_size_is_the_mean_of_two_by_two_pixels():
    image, label = random_pair(3, 40, 60)
    found, _ = augment(image, label, (20, 30), Augmentation(scale=(0.5, 0.5), flip=False), rng(0))
    mean = image.reshape(20, 2, 30, 2, 3).mean((1, 3))
    assert abs(found - mean).max() <= 0.51


@pytest.mark.parametrize("rotate", [0.0, 30.0])
def test_strong_shrinking_does_not_alias(rotate):
    """A fine checkerboard becomes even grey, not a pattern."""
    y, x = np.mgrid[0:400, 0:400]
    board = np.stack([((x + y) % 2 * 255).astype(np.uint8)] * 3, -1)
    chosen = Augmentation(scale=(0.21, 0.21), flip=False, rotate=rotate, fill=(128, 128, 128))
    found, _ = augment(board, np.zeros((400, 400), np.uint8), (60, 60), chosen, rng(1))
    assert found[8:-8, 8:-8].std() < 12


def test_flip_is_exact_and_happens_half_of_the_time():
    image, label = random_pair(2, 41, 57)
    scaled = {"scale": (1.3, 1.3)}
    flipped = 0
    for seed in range(60):
        with_flip = augment(image, label, (31, 32), Augmentation(**scaled), rng(seed))
        without = augment(image, label, (31, 32), Augmentation(flip=False, **scaled), rng(seed))
        mirrored = (with_flip[0] == without[0][:, ::-1]).all()
        flipped += bool(mirrored)
        if mirrored:
            np.testing.assert_array_equal(with_flip[1], without[1][:, ::-1])
        else:
            np.testing.assert_array_equal(with_flip[0], without[0])
            np.testing.assert_array_equal(with_flip[1], without[1])
    assert 18 <= flipped <= 42


def scales_drawn(chosen: Augmentation) -> np.ndarray:
    """Measures the scale from how wide a padded image comes out."""
    image, label = np.zeros((20, 100, 3), np.uint8), np.zeros((20, 100), np.uint8)
    found = [augment(image, label, (60, 260), chosen, rng(s))[1] for s in range(150)]
    return np.array([(x != 255).any(0).sum() / 100 for x in found])


def test_scales_are_uniform_or_in_steps():
    drawn = scales_drawn(Augmentation(scale=(0.5, 2.0)))
    assert 0.5 <= drawn.min() < 0.56
    assert 1.94 < drawn.max() <= 2.0
    assert abs(drawn.mean() - 1.25) < 0.12
    steps = scales_drawn(Augmentation(scale=(0.5, 2.0), scale_step=0.25))
    assert set(np.round(steps, 2)) == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}


def test_rotation_stays_within_its_angle_and_turns_both_ways():
    """A bar through the middle shows the angle; nothing but rotation is on."""
    image, label = np.zeros((201, 201, 3), np.uint8), np.zeros((201, 201), np.uint8)
    label[98:103, 10:191] = 1
    chosen = Augmentation(scale=(1.0, 1.0), flip=False, rotate=20.0)
    angles = []
    for seed in range(60):
        _, found = augment(image, label, (201, 201), chosen, rng(seed))
        points = np.argwhere(found == 1)[:, ::-1].astype(np.float32)
        dx, dy = cv2.fitLine(points, cv2.DIST_L2, 0, 0.01, 0.01).ravel()[:2]
        angles.append(np.degrees(np.arctan2(dy, dx)))
        assert (found[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all() or abs(angles[-1]) < 2
    assert -20.5 < min(angles) < -14
    assert 14 < max(angles) < 20.5


def test_photometric_changes_colours_only_and_keeps_grey_grey():
    image, label = random_pair(4, 40, 40)
    strong = Augmentation(scale=(1.0, 1.0), flip=False, photometric=1.0)
    found, found_label = augment(image, label, (40, 40), strong, rng(0))
    np.testing.assert_array_equal(found_label, label)
    assert abs(found.astype(int) - image).mean() > 3
    gray = np.full((8, 8, 3), 128, np.uint8)
    brightness = []
    for seed in range(50):
        found, _ = augment(gray, np.zeros((8, 8), np.uint8), (8, 8), strong, rng(seed))
        assert np.ptp(found[0, 0].astype(int)) <= 2
        brightness.append(found.mean() - 128)
    assert -33 < min(brightness) < -20
    assert 20 < max(brightness) < 33


def test_blur_smooths_with_its_probability():
    image, label = random_pair(5, 40, 40)
    chosen = Augmentation(scale=(1.0, 1.0), flip=False, blur=0.5)
    deviations = [augment(image, label, (40, 40), chosen, rng(s))[0].std() for s in range(60)]
    blurred = np.array(deviations) < image.std() - 1
    assert 18 <= blurred.sum() <= 42
    np.testing.assert_array_equal(augment(image, label, (40, 40), chosen, rng(0))[1], label)


def test_impossible_settings_are_all_named():
    with pytest.raises(
        ConfigError, match=r"(?s)scale is \(2.0, 0.5\).*rotate is 200.*blur is 3.*fill"
    ):
        Augmentation(scale=(2.0, 0.5), rotate=200, blur=3, fill=(0, 0, 256))
