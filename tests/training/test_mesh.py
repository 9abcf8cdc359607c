"""Images whose rows are split over devices give the steps of whole ones, in less memory each."""

import math
import re
import types
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_segmenter
from tiny_segmenter import TinySegmenter, tiny_batch

import flaxseg
from flaxseg.errors import ConfigError
from flaxseg.layers import (
    BatchNorm,
    adaptive_average_pool,
    adaptive_max_pool,
    atrous_conv,
    bilinear_deconv,
    depthwise_conv,
    learned_basis_deconv,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    preferred_form,
    resize,
    transposed_conv,
)
from flaxseg.layers.split_rows import rows_are_split
from flaxseg.training.parallel import Parallel, make_parallel
from flaxseg.training.schedules import make_schedule

SIZE, CLASSES, STEPS = (64, 48), 4, 3


def over(data: int, space: int) -> Parallel:
    mesh = {"data": data, "space": space}
    return make_parallel("jit", jax.devices()[: data * space], mesh=mesh)


def new_run(across: Parallel, model, size=SIZE, **options):
    schedule = make_schedule("constant", 0.01, 10)
    start, step = tiny_segmenter.new_run(model, size, schedule=schedule, **options)
    return across.put_state(start), across.compile_train_step(step)


def train(across: Parallel, model, batches, **options):
    """State and metrics, on the host, after a step on each batch."""
    now, run = new_run(across, model, batches[0]["label"].shape[1:], **options)
    measured = []
    for batch in batches:
        now, metrics = run(now, across.put_batch(batch))
        measured.append(jax.device_get(metrics))
    return across.get_state(now), measured


def batches(size=SIZE) -> list[dict]:
    return [tiny_batch(seed, hw=size, classes=CLASSES) for seed in range(STEPS)]


def assert_equal(got, wanted, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, wanted)


class Stride16(nn.Module):
    """The smallest backbone with BatchNorm: two convolutions to output stride 16."""

    output_stride: int = 16

    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.relu(nn.Conv(8, (5, 5), 4)(image))
        x = BatchNorm()(nn.Conv(16, (5, 5), 4)(x), train=train)
        return {"c2": image[:, ::4, ::4], "c4": x, "c5": nn.relu(x)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplabv3", {"rates": (6,)}),
        pytest.param("deeplabv3plus", {}, marks=pytest.mark.slow),
        pytest.param("pspnet", {}, marks=pytest.mark.slow),
    ],
)
def test_models_train_as_on_one_device(name, options):
    """With BatchNorm over all images and rows; at output stride 16 a device has two rows, fewer
    than the rates of the ASPP."""
    model = flaxseg.create_model(
        name, CLASSES, backbone=Stride16(), output_stride=16, features=16, **options
    )
    got, measured = train(over(4, 2), model, batches())
    wanted, expected = train(over(1, 1), model, batches())
    assert_equal(measured, expected, rtol=1e-4)
    assert_equal(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "space", "options"),
    [
        ((64, 11), 2, {"ema_decay": 0.9, "accumulate_steps": 2}),
        pytest.param(
            (128, 5),
            4,
            {"sample_rate": 0.5, "reduction": "sum", "frozen": ("backbone/stem",)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_options_of_a_step_give_what_they_give_on_one_device(size, space, options):
    model = TinySegmenter(dropout=0.5, auxiliary=True)
    got, measured = train(over(8 // space, space), model, batches(size), **options)
    wanted, expected = train(over(1, 1), model, batches(size), **options)
    assert_equal(measured, expected)
    assert_equal(got, wanted)


def test_no_device_holds_whole_activations():
    """What is sent is of the size of small feature maps, and memory halves."""
    model = TinySegmenter(features=32)
    height, width, space = 256, 64, 4
    batch = tiny_batch(0, size=2, hw=(height, width), classes=CLASSES)
    memory, sent = {}, []
    for parts in (1, space):
        across = over(2, parts)
        now, run = new_run(across, model, (height, width))
        compiled = run.lower(now, across.put_batch(batch)).compile()
        memory[parts] = compiled.memory_analysis().temp_size_in_bytes
        found = re.findall(
            r"= \w+\[([\d,]+)\]\S* (all-gather|all-reduce|collective-permute|all-to-all)\(",
            compiled.as_text(),
        )
        sent = [(kind, [int(n) for n in shape.split(",")]) for shape, kind in found]
    assert memory[space] < 0.4 * memory[1]
    assert any(kind == "collective-permute" for kind, _ in sent)
    rows = [shape for _, shape in sent if len(shape) == 4 and shape[-1] != 32]
    # The scores before they are resized: half as many rows and columns, one channel a class.
    assert all(math.prod(shape) <= height * width // 4 * CLASSES for shape in rows)
    assert not [shape for _, shape in sent if height in shape[1:3]]


def test_features_that_devices_share_unevenly():
    """Six rows for four devices, where XLA's gradient of a kernel is wrong unless it is helped."""
    across = over(2, 4)
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 3, 8), (3, 3, 1, 8), (3, 3, 8, 4))
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    x = rng.normal(size=(4, 12, 9, 3)).astype(np.float32)

    def loss(kernels, x):
        y = nn.relu(atrous_conv(x, kernels[0], strides=2, form="native"))
        y = nn.relu(depthwise_conv(y, kernels[1], form="native"))
        y = resize(atrous_conv(y, kernels[2], form="native"), (12, 9), align_corners=False)
        return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).mean()

    def split(*arguments):
        with jax.sharding.use_abstract_mesh(across.mesh.abstract_mesh):
            return jax.grad(loss)(*arguments)

    got = jax.jit(split, in_shardings=(across.replicated, across.split))(kernels, x)
    assert_equal(got, jax.jit(jax.grad(loss))(kernels, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [1, 12])
def test_depthwise_convolution_of_split_rows(rate):
    """A kernel within the neighbour's rows, and one far beyond."""
    across = over(2, 4)
    rng = np.random.default_rng(rate)
    x, gradient = (rng.normal(size=(2, 16, 6, 5)).astype(np.float32) for _ in range(2))
    kernel = rng.normal(size=(3, 3, 1, 5)).astype(np.float32)

    def value_and_gradients(x, kernel, gradient):
        y, transpose = jax.vjp(partial(depthwise_conv, rate=rate, padding=rate), x, kernel)
        return y, transpose(gradient)

    def split(*arguments):
        with jax.sharding.use_abstract_mesh(across.mesh.abstract_mesh):
            return value_and_gradients(*arguments)

    placed = (across.split, across.replicated, across.split)
    compiled = jax.jit(split, in_shardings=placed).lower(x, kernel, gradient).compile()
    assert_equal(compiled(x, kernel, gradient), value_and_gradients(x, kernel, gradient))
    gathered = re.findall(r"f32\[(\d+),[\d,]+\]\S* all-gather", compiled.as_text())
    assert set(gathered) <= {"1"}  # images of other devices are not sent


@pytest.mark.parametrize(
    "layer",
    [
        partial(resize, size=(38, 14), align_corners=True),
        partial(resize, size=(16, 20), align_corners="cells"),
        partial(resize, size=(3, 20), align_corners=False, antialias=True),
        partial(bilinear_deconv, kernel_size=4, strides=2),
        partial(adaptive_average_pool, bins=3),
        partial(adaptive_max_pool, bins=(3, 2)),
        partial(max_pool, window=3, strides=2, padding="torch"),
        lambda x: transposed_conv(x, jnp.ones((4, 4, 6, 2)), 2),
        lambda x: learned_basis_deconv(x, jnp.arange(6 * 64.0).reshape(8, 8, 1, 6), 2),
        lambda x: max_unpool(*max_pool_with_indices(x)),
    ],
)
def test_layers_of_split_rows_give_what_they_give_whole(layer):
    across = over(2, 4)
    x = np.random.default_rng(0).normal(size=(2, 8, 10, 6)).astype(np.float32)

    def value_and_gradient(x):
        y, transpose = jax.vjp(layer, x)
        return y, transpose(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    def split(x):
        with jax.sharding.use_abstract_mesh(across.mesh.abstract_mesh):
            return value_and_gradient(x)

    got = jax.jit(split, in_shardings=across.split)(x)
    assert_equal(got, jax.jit(value_and_gradient)(x), rtol=1e-4, atol=1e-3)


def test_forms_that_cannot_be_split_are_left():
    seen = []

    def note(x):
        seen.append((preferred_form(), rows_are_split()))
        return x

    across = over(4, 2)
    across.compile_train_step(lambda state, batch: (note(state), batch["x"].sum())).lower(
        jnp.zeros(()), {"x": jnp.zeros((4, 2))}
    )
    note(0)
    assert seen == [("native", True), ("products", False)]


def test_batches_lie_where_they_are_used_and_uneven_ones_are_refused():
    across = over(4, 2)
    batch = tiny_batch(0, size=8, hw=(64, 5))
    placed = across.put_batch(batch)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert {shard.data.shape[:2] for shard in array.addressable_shards} == {(2, 32)}
    assert (across.layout.data, across.layout.space, across.device_count) == (4, 2, 8)
    across.layout.check_batch_size(4)
    with pytest.raises(ConfigError, match=r"batch_size 6 .* by data=4; set it to 4 or 8\."):
        across.put_batch(tiny_batch(0, size=6, hw=(64, 5)))
    with pytest.raises(ConfigError, match=r"height 66 cannot .* space=2; set it to 64 or 128\."):
        across.put_batch(tiny_batch(0, size=8, hw=(66, 5)))
    with pytest.raises(ConfigError, match=r"crop 1 .* set it to 64\."):
        across.layout.check_height(1, name="crop")


def test_a_mesh_of_another_kind_or_over_processes_is_refused():
    assert make_parallel(mesh={"data": 8}).mesh.axis_names == ("data",)
    assert make_parallel("pmap", mesh={"data": 8, "space": 1}).layout.space == 1
    with pytest.raises(ConfigError, match=r"'pmap', which cannot split images over space=2"):
        make_parallel("pmap", mesh={"space": 2})
    devices = [types.SimpleNamespace(process_index=i // 2, id=i) for i in range(8)]
    with pytest.raises(
        ConfigError, match="space=4, which does not divide the 2 devices of a process"
    ):
        make_parallel("jit", devices, mesh={"space": 4})
