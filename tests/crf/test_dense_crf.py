"""The mean field against sums over all pairs in NumPy and against pydensecrf; its invariances,
gradients, borders and errors."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.crf import (
    PRESETS,
    BilateralKernel,
    CrfRnn,
    GaussianKernel,
    build_lattice,
    crf_preset,
    dense_crf,
    kernels,
    lattice_filter,
    make_filter,
    mean_field,
    unary,
    unary_from_labels,
    unary_from_probabilities,
)
from flaxseg.crf.filters import LatticeFilter, bilateral_features

HEIGHT, WIDTH, CLASSES = 9, 7, 3
KERNELS = (GaussianKernel(1.5, 2.0), BilateralKernel(4.0, 30.0, 3.0))


def scene(height=HEIGHT, width=WIDTH, classes=CLASSES, seed=0):
    """An image of two noisy halves, and energies that hint at them."""
    rng = np.random.default_rng(seed)
    side = np.arange(width)[None] * 2 > width + np.arange(height)[:, None] % 3
    image = np.where(side[..., None], [180, 90, 60], [60, 120, 200]) + rng.normal(
        scale=12, size=(height, width, 3)
    )
    energy = rng.normal(scale=1.5, size=(height, width, classes))
    energy[..., 0] += side
    return energy.astype(np.float32), image.clip(0, 255).astype(np.uint8)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def all_pairs(energy, image, kernels, iterations, self_term=True):
    """The mean field by its formula, in float64."""
    height, width, classes = energy.shape
    u = energy.reshape(-1, classes).astype(np.float64)
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    color = image.reshape(-1, 3).astype(np.float64)
    q = softmax(-u)
    operators = []
    for kernel in kernels:
        is_gaussian = isinstance(kernel, GaussianKernel)
        sigma = np.broadcast_to(kernel.sigma if is_gaussian else kernel.sigma_xy, 2)
        distance = ((x[:, None] - x) / sigma[0]) ** 2 + ((y[:, None] - y) / sigma[1]) ** 2
        if not is_gaussian:
            difference = (color[:, None] - color) / kernel.sigma_rgb
            distance = distance + (difference**2).sum(-1)
        k = np.exp(-distance / 2)
        if not self_term:
            np.fill_diagonal(k, 0)
        n = k.sum(1)
        match kernel.normalization:
            case "symmetric":
                k = k / np.sqrt(n[:, None] * n)
            case "after":
                k = k / n[:, None]
            case "before":
                k = k / n
        compat = np.asarray(kernel.compat, np.float64)
        cost = {0: -compat * np.eye(classes), 1: np.diag(compat * np.ones(classes)), 2: compat}
        cost = cost[compat.ndim]
        operators.append((k, (cost + cost.T) / 2))
    for _ in range(iterations):
        q = softmax(-u - sum(k @ q @ cost for k, cost in operators))
    return q.reshape(energy.shape)


MATRIX = np.array([[-3.0, 1.0, 0.5], [0.0, -2.0, 0.2], [0.1, 0.4, -1.0]], np.float32)


@pytest.mark.parametrize(
    ("kernels", "self_term"),
    [
        (KERNELS, True),
        (KERNELS, False),
        (
            (
                GaussianKernel((1.0, 2.5), 2.0, "after"),
                BilateralKernel(4.0, 30.0, MATRIX, "before"),
            ),
            True,
        ),
        ((BilateralKernel((3.0, 5.0), (20.0, 30.0, 40.0), MATRIX[0], "none"),), True),
        ((BilateralKernel(4.0, 30.0, 3.0, "after"),), False),
    ],
)
def test_exact_backend_is_the_formula(kernels, self_term):
    energy, image = scene()
    ours = dense_crf(energy, image, kernels, iterations=4, backend="exact", self_term=self_term)
    np.testing.assert_allclose(ours, all_pairs(energy, image, kernels, 4, self_term), atol=2e-5)


@pytest.mark.peer
@pytest.mark.parametrize("normalization", ["symmetric", "after", "before", "none"])
def test_lattice_backend_equals_pydensecrf(normalization):
    peer = pytest.importorskip("pydensecrf.densecrf")
    mode = {
        "symmetric": peer.NORMALIZE_SYMMETRIC,
        "after": peer.NORMALIZE_AFTER,
        "before": peer.NORMALIZE_BEFORE,
        "none": peer.NO_NORMALIZATION,
    }[normalization]
    energy, image = scene(30, 40, 4)
    compat = np.diag(np.float32([-8, -9, -10, -6])) + np.float32(0.3)
    scale = 0.02 if normalization == "none" else 1.0
    theirs = peer.DenseCRF2D(40, 30, 4)
    theirs.setUnaryEnergy(np.ascontiguousarray(energy.reshape(-1, 4).T))
    theirs.addPairwiseGaussian(sxy=3, compat=3 * scale, normalization=mode)
    theirs.addPairwiseBilateral(
        sxy=(20, 15), srgb=13, rgbim=image, compat=scale * compat, normalization=mode
    )
    wanted = np.array(theirs.inference(10)).reshape(4, 30, 40).transpose(1, 2, 0)
    ours = dense_crf(
        energy,
        image,
        [
            GaussianKernel(3.0, 3.0 * scale, normalization),
            BilateralKernel((20.0, 15.0), 13.0, scale * compat, normalization),
        ],
    )
    difference = np.abs(np.asarray(ours) - wanted)
    # A point on the face of two simplices may be put into either by the rounding of its place, and
    # a vertex that no point gets a share of changes what is blurred through it.
    print(difference.mean(), difference.max())
    assert difference.mean() < 1e-3
    assert (np.argmax(ours, -1) == wanted.argmax(-1)).mean() >= 0.999
    assert np.abs(wanted - softmax(-energy)).mean() > 0.1


def test_lattice_is_near_the_exact_kernel():
    energy, image = scene(24, 26)
    wanted = all_pairs(energy, image, KERNELS, 5)
    ours = np.asarray(dense_crf(energy, image, KERNELS, iterations=5))
    assert (ours.argmax(-1) == wanted.argmax(-1)).mean() > 0.97
    assert np.abs(ours - wanted).mean() < 0.02
    assert np.abs(wanted - softmax(-energy)).mean() > 0.1


def test_without_the_self_term_lattice_and_exact_kernel_agree_too():
    energy, image = scene(20, 22)
    kernels = [BilateralKernel(6.0, 40.0, 3.0, "after")]
    features = bilateral_features(kernels[0], image)

    @jax.jit
    def run(features):
        lattice = build_lattice(features)
        matrix = lattice_filter(lattice, jnp.eye(len(features)))
        return matrix, LatticeFilter(lattice).self_weight()

    matrix, own = run(features)
    ratio = own / jnp.diag(matrix)
    assert float(ratio.min()) > 0.999
    assert float(ratio.mean()) < 1.1
    assert float(ratio.max()) < 1.3
    wanted = all_pairs(energy, image, kernels, 5, self_term=False)
    ours = np.asarray(dense_crf(energy, image, kernels, iterations=5, self_term=False))
    assert (ours.argmax(-1) == wanted.argmax(-1)).mean() > 0.97


def test_forms_of_the_potts_model_are_one():
    energy, image = scene()
    compats = (3.0, -3.0 * np.ones(CLASSES, np.float32), -3.0 * np.eye(CLASSES, dtype=np.float32))
    first, *others = (
        dense_crf(energy, image, [BilateralKernel(4.0, 30.0, compat)], backend="exact")
        for compat in compats
    )
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def test_no_iterations_or_no_weight_leave_the_unary():
    energy, image = scene()
    wanted = softmax(-energy)
    np.testing.assert_allclose(dense_crf(energy, image, iterations=0), wanted, atol=1e-6)
    still = dense_crf(energy, image, [BilateralKernel(4.0, 30.0, 0.0)], iterations=3)
    np.testing.assert_allclose(still, wanted, atol=1e-6)


def test_classes_have_no_order():
    energy, image = scene()
    order = np.array([2, 0, 1])
    first = np.asarray(dense_crf(energy, image, KERNELS))
    np.testing.assert_allclose(
        dense_crf(energy[..., order], image, KERNELS), first[..., order], atol=1e-5
    )


def test_average_of_a_constant_is_the_constant():
    _, image = scene()
    kernel = BilateralKernel(4.0, 30.0, normalization="after")
    average = jax.jit(lambda image, values: make_filter(kernel, image)(values))
    values = np.full((HEIGHT * WIDTH, 1), 0.7, np.float32)
    np.testing.assert_allclose(average(image, values), 0.7, atol=1e-6)


def test_batch_is_each_image_alone_and_compiles_once_for_all_parameters():
    from flaxseg.crf.mean_field import _marginals

    pairs = [scene(seed=seed) for seed in (1, 2)]
    energy, image = (np.stack(parts) for parts in zip(*pairs, strict=True))
    together = dense_crf(energy, image, KERNELS)
    count = _marginals._cache_size()
    dense_crf(energy, image, (GaussianKernel(1.1, 4.0), BilateralKernel(9.0, 11.0, 1.0)))
    assert _marginals._cache_size() == count
    for index in range(2):
        alone = dense_crf(energy[index], image[index], KERNELS)
        np.testing.assert_allclose(together[index], alone, atol=1e-6)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((1, 1), marks=pytest.mark.slow),
        pytest.param((1, 6), marks=pytest.mark.slow),
        (5, 1),
    ],
)
def test_lines_and_single_pixels_work(size):
    energy, image = scene(*size)
    wanted = all_pairs(energy, image, KERNELS, 2)
    exact = dense_crf(energy, image, KERNELS, iterations=2, backend="exact")
    np.testing.assert_allclose(exact, wanted, atol=1e-5)
    ours = dense_crf(energy, image, KERNELS, iterations=2)
    np.testing.assert_allclose(ours, wanted, atol=0.1)


@pytest.mark.parametrize("backend", ["lattice", "exact"])
def test_a_pixel_that_is_alone_hears_nothing(backend):
    energy, image = scene(1, 1)
    ours = dense_crf(energy, image, KERNELS, backend=backend, self_term=False)
    np.testing.assert_allclose(ours, softmax(-energy), atol=1e-6)


def test_constant_image_pulls_to_the_majority():
    energy, image = scene(8, 8)
    kernels = [BilateralKernel(80.0, 13.0, 30.0, "after")]
    marginals = np.asarray(dense_crf(energy, np.full_like(image, 77), kernels, iterations=10))
    assert np.isfinite(marginals).all()
    assert len(np.unique(marginals.argmax(-1))) == 1


def gradients_agree(function, arguments):
    """Whether the gradient along a random direction is the difference of the values."""
    rng = np.random.default_rng(5)
    # One program for values and gradients.
    both = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments)))))
    gradients = both(*arguments)[1]
    for index, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape).astype(np.float32)
        step = 1e-2 / np.abs(direction).max()
        ends = []
        for sign in (1, -1):
            moved = list(arguments)
            moved[index] = arguments[index] + sign * step * direction
            ends.append(float(both(*moved)[0]))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(jnp.vdot(gradient, direction)) == pytest.approx(slope, rel=2e-2, abs=1e-3)
        assert float(jnp.abs(gradient).max()) > 1e-3


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.parametrize("backend", [pytest.param("lattice", marks=pytest.mark.slow), "exact"])
def test_gradients_are_slopes(backend):
    energy, image = scene()
    weight = np.random.default_rng(4).normal(size=energy.shape).astype(np.float32)

    def value(energy, potts, matrix):
        pair = (
            GaussianKernel(1.5, potts, "after"),
            BilateralKernel(4.0, 30.0, matrix, "before"),
        )
        marginals = dense_crf(energy, image, pair, iterations=3, backend=backend)
        return jnp.vdot(weight, marginals)

    gradients_agree(value, (energy, np.float32(1.0), MATRIX))


def crf_rnn(**options):
    return CrfRnn(
        CLASSES, iterations=3, eval_iterations=10, sigma_xy=5.0, sigma_rgb=30.0, **options
    )


def test_crf_rnn_begins_as_the_dense_crf():
    energy, image = scene()
    layer, logits, image = crf_rnn(), -energy[None], image[None]
    variables = jax.jit(layer.init)(jax.random.key(0), logits, image)
    preset = crf_preset("crfasrnn")
    pair = (
        preset.kernels[0],
        preset.kernels[1].replace(sigma_xy=5.0, sigma_rgb=30.0),
    )
    wanted = dense_crf(energy, image[0], pair, iterations=preset.iterations)
    ours = jax.nn.softmax(jax.jit(layer.apply)(variables, logits, image)[0])
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.parametrize("backend", [pytest.param("lattice", marks=pytest.mark.slow), "exact"])
def test_crf_rnn_can_be_trained(backend):
    energy, image = scene()
    layer, logits, image = crf_rnn(backend=backend), -energy[None], image[None]
    weight = np.random.default_rng(4).normal(size=logits.shape).astype(np.float32)

    def value(logits, *parameters):
        names = ("spatial_weights", "bilateral_weights", "compatibility")
        params = {"params": dict(zip(names, parameters, strict=True))}
        refined = layer.apply(params, logits, image, train=True)
        return jnp.vdot(weight, jax.nn.log_softmax(refined)) / 10

    rng = np.random.default_rng(6)
    matrices = [
        (s * np.eye(CLASSES) + 0.2 * rng.normal(size=(CLASSES, CLASSES))).astype(np.float32)
        for s in (1.0, 1.5, -1.0)
    ]
    gradients_agree(value, (logits, *matrices))


def test_presets_are_those_of_the_papers():
    assert sorted(PRESETS) == [
        "crfasrnn",
        "deeplab_v1_largefov",
        "deeplab_v2_resnet101",
        "deeplab_v2_vgg16",
        "pydensecrf_readme",
    ]
    gaussian, bilateral = crf_preset("deeplab_v1_largefov").kernels
    assert (bilateral.compat, bilateral.sigma_xy, bilateral.sigma_rgb) == (4, 121, 5)
    assert (gaussian.compat, gaussian.sigma, gaussian.normalization) == (3, 3, "after")
    with pytest.raises(ValueError, match="no CRF preset 'deeplab'; presets: deeplab_v1_largefov"):
        crf_preset("deeplab")


@pytest.mark.peer
def test_unaries_equal_those_of_pydensecrf():
    peer = pytest.importorskip("pydensecrf.utils")
    labels = np.random.default_rng(0).integers(0, 4, (3, 5))
    wanted = peer.unary_from_labels(labels, 3, 0.7)  # 0 is unsure, and 1 the first class
    shifted = np.where(labels == 0, 255, labels - 1)
    ours = unary_from_labels(shifted, 3, 0.7)
    np.testing.assert_allclose(ours.reshape(-1, 3).T, wanted, rtol=1e-6)
    probs = softmax(10 * np.random.default_rng(1).normal(size=(4, 5, 3)).astype(np.float32))
    for scale in (None, 0.8):
        wanted = peer.unary_from_softmax(np.moveaxis(probs, 2, 0), scale)
        ours = unary_from_probabilities(probs, scale=scale or 1.0)
        np.testing.assert_allclose(ours.reshape(-1, 3).T, wanted, rtol=1e-5, atol=1e-6)


def test_examples_of_docstrings_run():
    for module in (kernels, unary):
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


ENERGY, IMAGE = scene()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ENERGY[0], IMAGE), {}, ValueError, r"unary has shape \(7, 3\); wanted \[H, W, C\]"),
        ((ENERGY.astype(int), IMAGE), {}, TypeError, "unary has dtype int"),
        ((ENERGY, IMAGE / 255), {}, TypeError, "image has dtype float.* uint8 pixels 0..255"),
        ((ENERGY, IMAGE[:4]), {}, ValueError, r"image has shape \(4, 7, 3\).*wanted \(9, 7, 3\)"),
        ((ENERGY * np.nan, IMAGE), {}, ValueError, "unary holds nan"),
        ((ENERGY, IMAGE, "deeplab"), {}, ValueError, "no CRF preset 'deeplab'"),
        ((ENERGY, IMAGE, [3.0]), {}, TypeError, "kernels holds a float"),
        ((ENERGY, IMAGE, [GaussianKernel(0.0)]), {}, ValueError, "sigma is 0.0.*above 0"),
        ((ENERGY, IMAGE, [BilateralKernel(3.0, (1, 2))]), {}, ValueError, "sigma_rgb is"),
        ((ENERGY, IMAGE, [BilateralKernel(np.nan)]), {}, ValueError, "sigma_xy is nan"),
        ((ENERGY, IMAGE, [GaussianKernel(compat=np.ones(2))]), {}, ValueError, "compat has shape"),
        ((ENERGY, IMAGE, [GaussianKernel(compat=np.inf)]), {}, ValueError, "compat holds nan"),
        (
            (ENERGY, IMAGE, [GaussianKernel(normalization="row")]),
            {},
            ValueError,
            "normalization is 'row'; it must be one of symmetric",
        ),
        ((ENERGY, IMAGE), {"iterations": -1}, ValueError, "iterations is -1"),
        ((ENERGY, IMAGE), {"backend": "hash"}, ValueError, "backend is 'hash'"),
        ((ENERGY, IMAGE), {"capacity": 0}, ValueError, "capacity is 0"),
        (
            (ENERGY, IMAGE, [BilateralKernel(1.0, 1.0)]),
            {"capacity": 0.5},
            ValueError,
            r"capacity is 0.5 and the image needs [3-6]\.",
        ),
    ],
)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        dense_crf(*arguments, **options)


def test_errors_of_unaries_name_the_argument():
    with pytest.raises(ValueError, match=r"probs has a least value of .* sums .* from 2 to 2"):
        unary_from_probabilities(np.ones((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="least value of nan"):
        unary_from_probabilities(np.full((2, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="clip is 0"):
        unary_from_probabilities(np.full((2, 2, 2), 0.5, np.float32), clip=0)
    with pytest.raises(ValueError, match=r"labels go from 0 to 7; wanted 0..2, and 255"):
        unary_from_labels(np.array([[0, 7, 255]]), 3, 0.7)
    with pytest.raises(ValueError, match="gt_prob is 1"):
        unary_from_labels(np.array([[0]]), 3, 1)


def test_too_little_room_inside_jit_gives_nan():
    energy, image = scene()
    kernels = [BilateralKernel(1.0, 1.0)]
    run = jax.jit(lambda e: dense_crf(e, image, kernels, capacity=0.5, iterations=1))
    assert np.isnan(run(energy)).all()


@pytest.mark.slow
def test_a_large_image_that_needs_more_room_than_photos_gets_it(monkeypatch):
    energy, image = scene()
    kernels = [BilateralKernel(1.0, 1.0)]
    lattice = jax.jit(build_lattice)(bilateral_features(kernels[0], jnp.asarray(image)))
    assert int(lattice.num_vertices) > 3.5 * HEIGHT * WIDTH
    wanted = dense_crf(energy, image, kernels)
    monkeypatch.setattr(importlib.import_module("flaxseg.crf.mean_field"), "_LARGE", 1)
    np.testing.assert_array_equal(dense_crf(energy, image, kernels), wanted)


@pytest.mark.slow
def test_a_large_image_inside_jit_has_all_the_room_there_can_be(monkeypatch):
    energy, image = scene()
    kernels = [BilateralKernel(1.0, 1.0)]
    monkeypatch.setattr(importlib.import_module("flaxseg.crf.mean_field"), "_LARGE", 1)
    assert np.isfinite(jax.jit(lambda e: dense_crf(e, image, kernels))(energy)).all()


def test_mean_field_takes_filters_that_were_made_before():
    energy, image = scene()
    filters = jax.jit(lambda image: [make_filter(kernel, image) for kernel in KERNELS])(image)
    compats = [kernel.compat for kernel in KERNELS]
    marginals = jax.jit(mean_field, static_argnums=3)(
        energy.reshape(-1, CLASSES), filters, compats, 10
    )
    wanted = dense_crf(energy, image, KERNELS).reshape(-1, CLASSES)
    np.testing.assert_allclose(marginals, wanted, atol=1e-6)
