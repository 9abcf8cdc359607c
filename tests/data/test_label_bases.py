"""Bases of label patches: what is sampled, what is learned from known patches, and its measure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.data.label_bases import (
    LabelPatches,
    learn_bases,
    measure_reconstruction,
    sample_patches,
)
from flaxseg.errors import ConfigError, DataError

SIDE = 16


def half_planes(count=400, seed=0, near=SIDE // 2 - 1):
    """Patches of a class that is on one side of a vertical or a horizontal line, at most `near`
    pixels from the middle."""
    rng = np.random.default_rng(seed)
    patches = LabelPatches(1, SIDE, count, 0)
    place = np.arange(SIDE)
    for _ in range(count):
        mask = np.zeros((SIDE, SIDE), bool)
        mask[:, place < SIDE // 2 + rng.integers(-near, near + 1)] = True
        mask = mask if rng.integers(2) else mask[:, ::-1]
        patches.add(0, mask.T if rng.integers(2) else mask)
    return patches


def test_components_are_those_of_the_singular_values_of_the_centred_patches():
    patches = half_planes()
    bases = learn_bases(patches, ("thing",), num_bases=4, kernel_size=SIDE)
    matrix = patches.of_class(0).astype(np.float64)
    matrix -= matrix.mean(0)
    _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    wanted = values[:4] * np.sqrt(10_000 / len(matrix))
    np.testing.assert_allclose(bases.singular_values[0], wanted, rtol=1e-4)
    components = bases.components[0].reshape(4, -1)
    np.testing.assert_allclose(components @ components.T, np.eye(4), atol=1e-5)
    # The space of the first two and that of the next: edges of both directions are alike.
    for part in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(
            np.linalg.norm(components[part] @ vectors[part].T, 2), 1, atol=1e-3
        )
    # Filters of the patches' own size are the components times the root of the singular value.
    norms = np.linalg.norm(bases.filters[0], axis=(1, 2))
    np.testing.assert_allclose(norms**2, bases.singular_values[0], rtol=1e-4)
    share = np.cumsum(values**2)[:4] / np.sum(values**2)
    np.testing.assert_allclose(bases.explained[0], share, rtol=1e-4)


def test_half_planes_have_two_edges_as_their_first_bases():
    bases = learn_bases(half_planes(2000, near=2), ("thing",), num_bases=2, kernel_size=8)
    ramp = np.tile(np.sign(np.arange(SIDE) - (SIDE - 1) / 2), (SIDE, 1))
    edges = np.stack([ramp, ramp.T]).reshape(2, -1) / SIDE
    found = bases.components[0].reshape(2, -1)
    # The plane that they span holds both edges but for how soft they are.
    assert np.all(np.linalg.norm(edges @ found.T, axis=1) > 0.85)


def test_filters_are_resized_by_antialiased_bicubic_interpolation():
    bases = learn_bases(half_planes(), ("thing",), num_bases=3, kernel_size=8, scale="unit")
    wanted = jax.image.resize(jnp.asarray(bases.components), (1, 3, 8, 8), "bicubic")
    wanted /= np.linalg.norm(wanted, axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(bases.filters, wanted, atol=1e-5)


def records():
    """A label that is half class 1, with a strip of 255; and one with a small part of class 2."""
    label = np.zeros((40, 60), np.uint8)
    label[:, 30:] = 1
    label[:, 28:32] = 255
    small = np.zeros((20, 33), np.uint8)
    small[5:8, 10:13] = 2
    tiny = np.full((5, 50), 3, np.uint8)
    return [{"label": label}, {"label": small}, {"label": tiny}]


def test_windows_are_masks_of_the_classes_in_them_and_follow_the_seed():
    first, again, other = (
        sample_patches(records(), 4, patch_size=SIDE, num_patches=150, seed=seed)
        for seed in (0, 0, 1)
    )
    for index in (0, 1, 2):
        assert first.count(index) == 150
        np.testing.assert_array_equal(first.of_class(index), again.of_class(index))
    assert np.any(first.of_class(0) != other.of_class(0))
    assert first.count(3) == 0  # in a label that is too small for a window
    # Each keeps to its rule: at least 2 % of the window, and void is nobody's.
    for index in (0, 1, 2):
        assert first.of_class(index).sum(1).min() >= round(0.02 * SIDE**2)
    assert set(first.of_class(2).sum(1)) <= {5, 6, 9, 3, 1, 2, 4}
    windows = first.of_class(1).reshape(-1, SIDE, SIDE)
    # Class 1 is a half plane: no row differs from another, and it has one edge, on its left.
    assert np.all(windows == windows[:, :1])
    assert np.all(np.diff(windows[:, 0], axis=1) >= 0)


def test_what_is_kept_is_bounded_and_a_fair_choice_of_all():
    patches = LabelPatches(1, 4, 50, 0)
    for number in range(1000):
        mask = np.zeros(16, bool)
        mask[: 1 + 15 * (number >= 500)] = True
        patches.add(0, mask.reshape(4, 4))
    assert (patches.count(0), patches.seen[0]) == (50, 1000)
    late = int((patches.of_class(0).sum(1) == 16).sum())
    assert 10 < late < 40


def test_a_class_without_patches_of_its_own_has_those_of_all():
    patches = LabelPatches(2, SIDE, 400, 0)
    for mask in half_planes().of_class(0):
        patches.add(0, mask.reshape(SIDE, SIDE) > 0)
    bases = learn_bases(patches, ("thing", "rare"), num_bases=3)
    assert bases.shared == ("rare",)
    np.testing.assert_allclose(bases.filters[1], bases.filters[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="gave 0 patches; 3 bases need at least 30"):
        learn_bases(LabelPatches(2, SIDE, 9, 0), ("a", "b"), num_bases=3)


def test_reconstruction_is_that_of_least_squares_patch_by_patch():
    learned, held_out = half_planes(), half_planes(60, seed=1)
    bases = learn_bases(learned, ("thing",), num_bases=5)
    result = measure_reconstruction(bases, held_out)
    patches = held_out.of_class(0).astype(np.float64)
    mean = bases.mean[0].reshape(-1)
    for k in (1, 5):
        basis = bases.components[0, :k].reshape(k, -1).T.astype(np.float64)
        rebuilt = np.stack(
            [mean + basis @ np.linalg.lstsq(basis, p - mean, rcond=None)[0] for p in patches]
        )
        wanted = np.mean((rebuilt >= 0.5) != (patches >= 0.5))
        np.testing.assert_allclose(result.wrong[0, k - 1], wanted, atol=1e-4)
        rmse = np.sqrt(np.mean((rebuilt - patches) ** 2))
        np.testing.assert_allclose(result.rmse[0, k - 1], rmse, rtol=1e-4)
    # The rival: the best 2 x 2 values under bilinear interpolation with half-pixel centres.
    corners = jnp.eye(4).reshape(4, 2, 2)
    hats = np.asarray(jax.image.resize(corners, (4, SIDE, SIDE), "bilinear")).reshape(4, -1).T
    rebuilt = np.stack([hats @ np.linalg.lstsq(hats, p, rcond=None)[0] for p in patches])
    rmse = np.sqrt(np.mean((rebuilt - patches) ** 2))
    np.testing.assert_allclose(result.bilinear_rmse[0, 1], rmse, rtol=1e-4)
    # More numbers, less error; and the table and the dict say the same.
    assert np.all(np.diff(result.rmse[0]) < 0)
    assert f"{100 * result.wrong[0, 4]:.2f}" in result.table(("thing",))
    assert result.to_dict(("thing",))["classes"]["thing"]["patches"] == 60


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_patches([], 2, patch_size=3), "patch_size is 3"),
        (lambda: learn_bases(half_planes(50), ("a",), num_bases=65), "from 1 to 64"),
        (lambda: learn_bases(half_planes(50), ("a",), num_bases=2, scale="big"), "scale is 'big'"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_labels_smaller_than_a_patch_are_refused():
    with pytest.raises(DataError, match="all 1 labels are smaller than 16 x 16"):
        sample_patches(records()[2:], 4, patch_size=SIDE)
