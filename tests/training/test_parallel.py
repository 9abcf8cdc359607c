import functools
import gc
import warnings
from collections.abc import Callable

import jax
import numpy as np
import pytest
import tiny_segmenter
from tiny_segmenter import TinySegmenter, tiny_batch

from flaxseg.errors import ConfigError
from flaxseg.training.parallel import Parallel, make_parallel
from flaxseg.training.schedules import make_schedule
from flaxseg.training.state import TrainState

SIZE = (9, 11)
BOTH = pytest.mark.parametrize("kind", ["jit", "pmap"])


def over(kind: str, devices: int) -> Parallel:
    return make_parallel(kind, jax.devices()[:devices])


def new_run(across: Parallel) -> tuple[TrainState, Callable]:
    model = TinySegmenter(batch_norm_axis=across.batch_norm_axis)
    schedule = make_schedule("constant", 0.01, 10)
    return tiny_segmenter.new_run(model, SIZE, schedule=schedule, ema_decay=0.9)


@functools.cache
def compiled(kind: str, devices: int) -> tuple[Parallel, TrainState, Callable]:
    """Devices, a state for them and a step."""
    across = over(kind, devices)
    start, step_fn = new_run(across)
    return across, start, across.compile_train_step(step_fn)


def pointers(tree) -> set[int]:
    return {
        s.data.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) for s in x.addressable_shards
    }


@BOTH
def test_steps_run_without_implicit_transfers_or_warnings_and_compile_once(kind):
    across = over(kind, 8)
    start, step_fn = new_run(across)
    traces = 0

    def counted(*args, **kwargs):
        nonlocal traces
        traces += 1
        return step_fn(*args, **kwargs)

    run = across.compile_train_step(counted)
    now = across.put_state(start)
    with warnings.catch_warnings(), jax.transfer_guard("disallow"):
        warnings.simplefilter("error")
        for seed in range(3):
            now, metrics = run(now, across.put_batch(tiny_batch(seed)))
    assert traces == 1
    assert jax.device_get(now.step) == 3
    assert np.isfinite(jax.device_get(metrics["loss"]))


@BOTH
def test_state_and_batch_are_used_up_and_the_memory_of_the_state_is_used_again(kind):
    across, start, run = compiled(kind, 2)
    first, _ = run(across.put_state(start), across.put_batch(tiny_batch(0)))
    before = pointers(first)
    batch = across.put_batch(tiny_batch(1))
    second, metrics = run(first, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((first, batch)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((second, metrics, start)))
    assert len(before & pointers(second)) > 0.9 * len(before)


@BOTH
def test_arrays_on_the_devices_do_not_pile_up(kind):
    across, start, run = compiled(kind, 2)
    now, _ = run(across.put_state(start), across.put_batch(tiny_batch(0)))
    gc.collect()
    count = len(jax.live_arrays())
    for seed in range(3):
        now, _ = run(now, across.put_batch(tiny_batch(seed)))
    gc.collect()
    assert len(jax.live_arrays()) == count


@BOTH
@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_a_state_put_and_got_back_is_equal_and_of_its_own_memory(kind, devices):
    across, start, run = compiled(kind, devices)
    # 64-byte aligned, as large NumPy arrays can be: what a CPU device would otherwise share.
    host = jax.tree.map(aligned_copy, start)
    placed = across.put_state(host)
    assert jax.tree.structure(placed) == jax.tree.structure(start)
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.addressable_shards) == devices
    jax.tree.map(lambda leaf: leaf.fill(1), host)
    got = across.get_state(placed)
    after, _ = run(placed, across.put_batch(tiny_batch(0)))
    jax.block_until_ready(after)
    for leaf in jax.tree.leaves(got):
        assert isinstance(leaf, np.ndarray)
        assert leaf.flags.owndata
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(host))
    jax.tree.map(np.testing.assert_array_equal, got, start)
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, start)
    assert not np.array_equal(across.get_state(after).step, start.step)


def aligned_copy(leaf: jax.Array) -> np.ndarray:
    leaf = np.asarray(leaf)
    raw = np.zeros(leaf.nbytes + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    copy = raw[offset : offset + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
    copy[...] = leaf
    return copy


def test_a_state_does_not_depend_on_the_kind_or_the_number_of_devices():
    """What one kind has trained, another goes on with."""
    first, start, run = compiled("pmap", 8)
    now, _ = run(first.put_state(start), first.put_batch(tiny_batch(0)))
    host = first.get_state(now)
    results = []
    for across, _, run in (compiled("pmap", 8), compiled("jit", 2)):
        after, _ = run(across.put_state(host), across.put_batch(tiny_batch(1)))
        results.append(across.get_state(after))
    assert results[0].step == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


@BOTH
def test_rows_keep_their_order_and_are_split_evenly(kind):
    across = over(kind, 4)
    batch = tiny_batch(0) | {"id": np.array(list("abcdefgh"))}
    placed = across.put_batch(batch)
    assert set(placed) == {"image", "label"}
    for key, array in placed.items():
        assert array.dtype == batch[key].dtype
        np.testing.assert_array_equal(np.reshape(array, batch[key].shape), batch[key])
        parts = [shard.data.size for shard in array.addressable_shards]
        assert parts == [batch[key].size // 4] * 4


@BOTH
def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_the_nearest(kind):
    across = over(kind, 8)
    across.layout.check_batch_size(16)
    across.layout.check_batch_size(16, accumulate_steps=2)
    with pytest.raises(ConfigError, match=r"batch_size 12 .* 8 devices; set it to 8 or 16\."):
        across.layout.check_batch_size(12)
    with pytest.raises(ConfigError, match=r"eval\.batch_size 3 .* set it to 8\."):
        across.layout.check_batch_size(3, name="eval.batch_size")
    with pytest.raises(
        ConfigError, match=r"batch_size 24 .* optimizer\.accumulate_steps 2; set it to 16 or 32\."
    ):
        across.layout.check_batch_size(24, accumulate_steps=2)
    with pytest.raises(ConfigError, match=r"batch_size 0 .* set it to 8\."):
        across.layout.check_batch_size(0)
    with pytest.raises(ConfigError, match="batch_size 6 cannot be shared"):
        across.put_batch(tiny_batch(0, size=6))


def test_what_differs_between_the_kinds():
    assert make_parallel("jit").batch_norm_axis is None
    assert make_parallel("pmap").batch_norm_axis == "data"
    assert make_parallel().layout.kind == "jit"
    assert make_parallel("pmap").device_count == len(jax.devices()) == 8
    assert over("jit", 3).device_count == 3


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"parallel is 'pmp'.*Did you mean 'pmap'\?"):
        make_parallel("pmp")
