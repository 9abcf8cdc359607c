"""The lattice filter against a brute-force one, and what any such filter must do."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.crf import build_lattice, lattice_filter, scale_lattice

REFERENCE = pathlib.Path(__file__).parent.parent / "reference" / "permutohedral_numpy.py"
spec = importlib.util.spec_from_file_location(REFERENCE.stem, REFERENCE)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def clusters(n, d, spread, distance, seed=0):
    """Points around a few centres: many in one simplex, some alone."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, distance, (8, d))
    points = centres[rng.integers(0, 8, n)] + spread * rng.normal(size=(n, d))
    return points.astype(np.float32)


@jax.jit
def run(features, values):
    built = build_lattice(features)
    forth = lattice_filter(built, values, False)
    return built, forth, lattice_filter(built, values, True)


FEATURES = {
    "image has five": clusters(300, 5, 0.3, 4.0),
    "places have two": clusters(300, 2, 0.5, 6.0),
    "one": clusters(40, 1, 0.5, 3.0),
    # Codes beyond 53 bits do not fit into one number with the place of a point.
    "far apart": clusters(60, 5, 0.3, 6000.0),
    "all in one place": np.full((100, 3), 0.3, np.float32),
    "a single point": np.zeros((1, 5), np.float32),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("one", "all in one place", "a single point")
        else name
        for name in FEATURES
    ],
)
def test_filter_equals_brute_force(name):
    features = FEATURES[name]
    values = np.random.default_rng(1).normal(size=(len(features), 3)).astype(np.float32)
    built, forth, back = run(features, values)
    weights, _, vertices = reference.lattice(features)
    assert built.fits
    assert built.num_vertices == len(vertices)
    # Float32 coordinates of some thousands are known to some 1e-4.
    tolerance = 2e-3 if name == "far apart" else 1e-5
    np.testing.assert_allclose(built.weight.T, weights, atol=tolerance)
    matrix = reference.matrix(features)
    scale = np.abs(matrix).sum(1).max()
    np.testing.assert_allclose(forth, matrix @ values, atol=tolerance * scale)
    np.testing.assert_allclose(back, matrix.T @ values, atol=tolerance * scale)


def test_all_sizes_of_the_filter_are_the_filter(monkeypatch):
    """Points that need few, some and almost all of the rows."""
    monkeypatch.setattr("flaxseg.crf.lattice._SMALLEST", 16)
    values = np.random.default_rng(1).normal(size=(150, 2)).astype(np.float32)
    for spread in (0.01, 0.3, 3.0):
        features = clusters(150, 3, spread, 40.0)
        built, forth, back = run(features, values)
        assert built.fits
        matrix = reference.matrix(features)
        np.testing.assert_allclose(forth, matrix @ values, atol=1e-3)
        np.testing.assert_allclose(back, matrix.T @ values, atol=1e-3)


def test_order_of_axes_matters_so_the_transpose_is_another_operator():
    features = FEATURES["image has five"]
    u, v = np.random.default_rng(2).normal(size=(2, 300, 3)).astype(np.float32)
    _, forth_u, back_u = run(features, u)
    _, forth_v, back_v = run(features, v)
    assert float(jnp.vdot(forth_u, v)) == pytest.approx(float(jnp.vdot(u, back_v)), rel=1e-4)
    assert float(jnp.vdot(back_u, v)) == pytest.approx(float(jnp.vdot(u, forth_v)), rel=1e-4)
    assert float(jnp.abs(forth_u - back_u).max()) > 1e-3


def test_gradient_is_the_transpose():
    features = FEATURES["image has five"]
    values, weight = np.random.default_rng(3).normal(size=(2, 300, 3)).astype(np.float32)

    @jax.jit
    def pull(values, weight):
        built = build_lattice(features)
        return jax.vjp(lambda x: lattice_filter(built, x), values)[1](weight)[0]

    wanted = reference.matrix(features).T @ weight
    np.testing.assert_allclose(pull(values, weight), wanted, atol=1e-4)


def test_weights_are_those_of_a_point_in_a_simplex():
    weight = run(FEATURES["image has five"], np.ones((300, 3), np.float32))[0].weight
    assert float(weight.min()) >= -1e-6
    np.testing.assert_allclose(weight.sum(0), 1, atol=1e-6)


def test_too_little_room_is_never_silent():
    features = FEATURES["image has five"]
    needed = len(reference.lattice(features)[2])

    @jax.jit
    def ones(features):
        built = build_lattice(features, capacity=0.9 * needed / 300)
        return built, lattice_filter(built, jnp.ones((300, 1)))

    built, result = ones(features)
    assert not built.fits
    assert built.num_vertices == needed
    assert np.isnan(result).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_without_a_place_do_not_fit(value):
    features = np.array(FEATURES["image has five"])
    features[7, 2] = value
    built, forth, back = run(features, np.ones((300, 3), np.float32))
    assert not built.fits
    assert np.isnan(forth).all()
    assert np.isnan(back).all()


@pytest.mark.parametrize("transpose", [False, True])
def test_factors_before_and_after_are_part_of_the_lattice(transpose):
    features = FEATURES["image has five"]
    rng = np.random.default_rng(4)
    before, after = rng.uniform(0.2, 3, (2, 300)).astype(np.float32)
    values = rng.normal(size=(300, 3)).astype(np.float32)
    matrix = after[:, None] * reference.matrix(features) * before
    wanted = (matrix.T if transpose else matrix) @ values
    scaled = scale_lattice(build_lattice(features), before, after)
    np.testing.assert_allclose(lattice_filter(scaled, values, transpose), wanted, atol=1e-3)


def test_just_enough_room_is_enough():
    features = FEATURES["image has five"]
    needed = len(reference.lattice(features)[2])
    built = jax.jit(build_lattice, static_argnums=1)(features, needed / 300)
    assert built.fits
    wanted = reference.matrix(features).sum(1, keepdims=True)
    np.testing.assert_allclose(lattice_filter(built, jnp.ones((300, 1))), wanted, rtol=1e-4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"features have shape \(3,\)"):
        build_lattice(jnp.zeros(3))
    with pytest.raises(ValueError, match="capacity is 0"):
        build_lattice(jnp.zeros((3, 2)), 0)
