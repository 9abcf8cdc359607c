"""Receptive fields, crops and the equality of shift-and-stitch with dilation."""

import jax
import numpy as np
import pytest

from flaxseg.layers import (
    Window,
    atrous_conv,
    crop_offset,
    max_pool,
    receptive_field,
    shift_and_stitch,
    without_strides,
)

CONV = Window(3, padding=1)
POOL = Window(2, 2)
STAGES = [[CONV] * size + [POOL] for size in (2, 2, 3, 3, 3)]
VGG = [layer for stage in STAGES for layer in stage]
FC = [Window(7)]
PADDED = [VGG[0]._replace(padding=100), *VGG[1:]]
ALEXNET = [
    *(Window(11, 4, padding=100), Window(3, 2), Window(5, padding=2), Window(3, 2)),
    *(CONV, CONV, CONV, Window(3, 2), Window(6)),
]


def test_receptive_fields_of_the_classifiers():
    # Long et al., 2015, table 1: 404 and 355 pixels, stride 32.
    for layers, size in ((VGG + FC, 404), (ALEXNET, 355)):
        field = receptive_field(layers)
        assert (field.size, field.stride) == (size, 32)
    assert receptive_field(PADDED + FC).padding == 100 + 1 + 2 * 2 + 3 * 4 + 3 * 8 + 3 * 16


def test_first_field_of_a_padded_stack_by_hand():
    field = receptive_field([Window(3, 2, padding=1), Window(2, 2)])
    # Outputs 0 and 1 of the first layer see [-1, 1] and [1, 3]: together [-1, 3].
    assert (field.size, field.stride, field.centre, field.padding) == (5, 4, 1, 1)


def test_a_deconvolution_takes_a_stride_back():
    field = receptive_field([Window(2, 2), Window(4, 2, transposed=True)])
    # An output lies between two cells of two pixels each.
    assert (field.size, field.stride) == (4, 1)
    assert crop_offset([Window(2, 2), Window(4, 2, transposed=True)]) == 1


def test_crops_of_fcn_follow_from_its_layers():
    up = {factor: Window(2 * factor, factor, transposed=True) for factor in (2, 8, 16, 32)}
    pool3, pool4 = (PADDED[: sum(map(len, STAGES[:count]))] for count in (3, 4))
    score = PADDED + FC
    assert crop_offset([*score, up[32]]) == 19
    assert crop_offset(pool4, [*score, up[2]]) == 5
    assert crop_offset([*score, up[2], up[16]]) == 27
    assert crop_offset(pool3, [*score, up[2], up[2]]) == 9
    assert crop_offset([*score, up[2], up[2], up[8]]) == 31
    assert crop_offset([*ALEXNET, Window(63, 32, transposed=True)]) == 18
    with pytest.raises(ValueError, match="no crop in common"):
        crop_offset(pool3, pool4)


def test_the_measured_field_is_the_computed_one():
    layers = [Window(3, 2, padding=1), Window(3, rate=2, padding=2), Window(2, 2)]
    field = receptive_field(layers)

    def centre_output(image):
        x = image
        for layer in layers:
            kernel = np.ones((layer.kernel_size,) * 2 + (1, 1), np.float32)
            x = atrous_conv(x, kernel, strides=layer.stride, rate=layer.rate, padding=layer.padding)
        return x[0, 3, 3, 0]

    seen = np.nonzero(jax.grad(centre_output)(np.ones((1, 41, 41, 1), np.float32))[0, :, :, 0])[0]
    assert seen.max() - seen.min() + 1 == field.size
    assert float(seen.max() + seen.min()) / 2 == field.centre + 3 * field.stride


def run(layers, kernels, x):
    """A stack of convolutions and, where there is no kernel, max pools."""
    for layer, kernel in zip(layers, kernels, strict=True):
        options = {"strides": layer.stride, "rate": layer.rate, "padding": layer.padding}
        if kernel is None:
            x = max_pool(x, layer.kernel_size, **options)
        else:
            x = jax.nn.relu(atrous_conv(x, kernel, **options))
    return x


@pytest.mark.parametrize("size", [(33, 38), (40, 31)])
def test_shift_and_stitch_is_the_dilated_network(size):
    layers = [Window(3), Window(2, 2), Window(3, 2), Window(3, rate=2), Window(2)]
    rng = np.random.default_rng(0)
    kernels = [
        None if layer.kernel_size == 2 else rng.normal(size=(3, 3, 4, 4)).astype(np.float32)
        for layer in layers
    ]
    image = rng.normal(size=(2, *size, 4)).astype(np.float32)
    stride = int(receptive_field(layers).stride)
    assert stride == 4
    stitched = shift_and_stitch(lambda x: run(layers, kernels, x), image, stride)
    dense = without_strides(layers)
    assert receptive_field(dense).size == receptive_field(layers).size
    wanted = run(dense, kernels, image)
    assert wanted.shape[1:3] == tuple(n - receptive_field(layers).size + 1 for n in size)
    np.testing.assert_allclose(stitched, wanted, atol=1e-4 * float(np.abs(wanted).max()))


def test_a_deconvolution_has_no_dense_form():
    with pytest.raises(ValueError, match="can not be dilated"):
        without_strides([Window(4, 2, transposed=True)])
