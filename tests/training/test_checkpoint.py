"""Checkpoints: bit-exact, verified, and never lost to an error."""

import concurrent.futures
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxseg.errors import CheckpointError, NonFiniteLossError, WriteError
from flaxseg.training.checkpoint import Checkpoints, Meta, best_entry

PARAMS = {"backbone": {"conv": {"kernel": (3, 3, 3, 8)}}, "classifier": {"bias": (5,)}}


def content(state) -> list:
    """Names, types, shapes and bytes of all arrays of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]
    return [(name, str(a.dtype), a.shape, a.tobytes()) for name, a in arrays]


def make_state(seed: int, params=None):
    """A tree with all kinds of leaves that a train state has."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    params = jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape),
        params or PARAMS,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    tree = {
        "params": params,
        "opt_state": optax.adam(0.1).init(params),
        "step": jnp.int32(seed),
        "rng": jnp.array([1, 2**32 - 1], jnp.uint32),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "ema": None,
    }
    return jax.tree.map(np.array, tree)


def meta(history=(), **config):
    return Meta(config, '{"batches_taken": 3}', list(history), {"flaxseg": "0"})


def saved(tmp_path, steps=(1, 2, 3), **options):
    """A folder with checkpoints whose state is `make_state(step)`."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", **{"keep_last": 9, **options})
    for step in steps:
        checkpoints.save(step, make_state(step), meta())
    checkpoints.finish()
    return checkpoints


def leaf_file(tmp_path, step, name="params.backbone.conv.kernel"):
    folder = tmp_path / "checkpoints" / str(step) / "state" / name
    return next(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def test_everything_comes_back_bit_for_bit(tmp_path):
    checkpoints = saved(tmp_path, (7,))
    restored = Checkpoints(tmp_path / "checkpoints").restore(make_state(0))
    assert restored.step == 7
    assert restored.meta == checkpoints.restore(make_state(0)).meta
    assert restored.meta.iterator_state == '{"batches_taken": 3}'
    assert content(restored.state) == content(make_state(7)) != content(make_state(8))
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state(7))
    assert restored.state["half"].dtype == jnp.bfloat16


def test_an_empty_folder_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path / "checkpoints").restore(make_state(0)) is None


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2, keep_best=1)
    history = []
    for step, miou in enumerate([0.1, 0.9, None, 0.9, 0.2, 0.3], start=1):
        history.append({"step": step, "miou": miou})
        checkpoints.save(step, make_state(step), meta(history))
    checkpoints.finish()
    assert checkpoints.steps() == [2, 5, 6]  # of two equal ones the earlier is the best
    left = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert left == {"2", "5", "6"}


def test_the_best_is_never_not_a_number():
    history = [{"step": 1, "miou": float("nan")}, {"step": 2, "miou": None}]
    assert best_entry(history) is None
    history += [{"step": 3, "miou": 0.2}, {"step": 4, "miou": 0.2}]
    assert best_entry(history)["step"] == 3


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()])
def test_a_damaged_array_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, damage):
    saved(tmp_path).close()
    damage(leaf_file(tmp_path, 3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=9)
    restored = checkpoints.restore(make_state(0))
    assert restored.step == 2
    assert content(restored.state) == content(make_state(2))
    assert "checkpoint 3 is damaged" in caplog.text
    assert "params/backbone/conv/kernel" in caplog.text
    checkpoints.go_on_from(restored)
    assert str(tmp_path / "checkpoints/3/state/params.backbone.conv.kernel") in caplog.text
    # The step is free again, and the damaged files are still there to look at.
    checkpoints.save(3, make_state(3), meta())
    checkpoints.finish()
    assert checkpoints.restore(make_state(0)).step == 3
    assert (tmp_path / "checkpoints/3.damaged").is_dir()


def test_every_byte_of_the_description_counts(tmp_path):
    saved(tmp_path, (1, 2)).close()
    path = tmp_path / "checkpoints/2/meta/metadata"
    text = path.read_text()
    path.write_text(text.replace('batches_taken\\": 3', 'batches_taken\\": 4'))
    assert path.read_text() != text
    assert Checkpoints(tmp_path / "checkpoints").restore(make_state(0)).step == 1


@pytest.mark.parametrize("part", ["meta", "meta/metadata", "state", "state/_METADATA"])
def test_a_partly_copied_checkpoint_is_not_used(tmp_path, part):
    saved(tmp_path, (1, 2)).close()
    path = tmp_path / "checkpoints/2" / part
    path.rename(tmp_path / "elsewhere")
    restored = Checkpoints(tmp_path / "checkpoints").restore(make_state(0))
    assert restored.step == 1


def test_without_any_good_checkpoint_nothing_starts_anew(tmp_path):
    saved(tmp_path, (1, 2)).close()
    flip(leaf_file(tmp_path, 1))
    flip(leaf_file(tmp_path, 2))
    with pytest.raises(CheckpointError, match="no checkpoint of this run can be read") as info:
        Checkpoints(tmp_path / "checkpoints").restore(make_state(0))
    assert "checkpoint 1 is damaged" in str(info.value)
    assert "checkpoint 2 is damaged" in str(info.value)
    assert (tmp_path / "checkpoints/2").is_dir()


def test_another_number_of_classes_names_parameter_shapes_and_way_out(tmp_path):
    checkpoints = saved(tmp_path, (4,))
    other = {"backbone": {"conv": {"kernel": (3, 3, 3, 8)}}, "classifier": {"bias": (7,)}}
    with pytest.raises(CheckpointError) as info:
        checkpoints.restore(make_state(0, other))
    message = str(info.value)
    assert "params/classifier/bias: the checkpoint has [5] float32, this run [7] float32" in message
    assert "--workdir" in message
    assert "--config.init.reinit_head=True" in message
    assert checkpoints.steps() == [4]


def test_another_architecture_names_what_is_missing_on_each_side(tmp_path):
    checkpoints = saved(tmp_path, (4,))
    other = {"backbone": {"conv2": {"kernel": (3, 3, 3, 8)}}, "classifier": {"bias": (5,)}}
    with pytest.raises(CheckpointError) as info:
        checkpoints.restore(make_state(0, other))
    assert "params/backbone/conv2/kernel: the checkpoint lacks it" in str(info.value)
    assert "params/backbone/conv/kernel: the checkpoint has [3, 3, 3, 8]" in str(info.value)


def test_a_step_that_is_missing_lists_those_that_exist(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5 .* there are: 1, 2, 3"):
        saved(tmp_path).restore(make_state(0), step=5)


def test_going_back_sets_later_checkpoints_aside(tmp_path):
    checkpoints = saved(tmp_path)
    restored = checkpoints.restore(make_state(0), step=1)
    assert restored.step == 1
    assert checkpoints.steps() == [1, 2, 3]  # what follows from it can still be checked
    checkpoints.go_on_from(restored)
    assert checkpoints.steps() == [1]
    assert (tmp_path / "checkpoints/3.set_aside").is_dir()


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, (1,))
    monkeypatch.setattr("flaxseg.training.checkpoint.FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="has format 1"):
        checkpoints.restore(make_state(0))


def test_values_that_are_not_finite_are_never_written(tmp_path):
    checkpoints = saved(tmp_path, (1,))
    state = make_state(2)
    state["params"]["classifier"]["bias"][3] = np.nan
    with pytest.raises(NonFiniteLossError, match="params/classifier/bias"):
        checkpoints.save(2, state, meta())
    assert checkpoints.steps() == [1]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    checkpoints = saved(tmp_path, (1,), keep_last=1)
    state = make_state(2, {"big": {"kernel": (300, 1000)}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may be larger
    try:
        checkpoints.save(2, state, meta())
        with pytest.raises(WriteError) as info:
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(info.value)
    assert f"checkpoint 2 could not be written to {tmp_path / 'checkpoints/2'}" in message
    assert "It needs 3.6 MB" in message
    assert "checkpoint 1 is kept" in message
    assert checkpoints.steps() == [1]
    assert Checkpoints(tmp_path / "checkpoints").restore(make_state(0)).step == 1
    checkpoints.save(2, state, meta())  # there is room again
    checkpoints.finish()
    assert checkpoints.steps() == [2]


def test_no_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, (1,))
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match="the disk is full"):
        checkpoints.save(2, make_state(2), meta())
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize("when", ["poll", "save", "finish", "close", "leave"])
def test_the_error_of_an_asynchronous_save_is_not_lost(tmp_path, monkeypatch, when):
    checkpoints = saved(tmp_path, (1,))

    def fail(*arguments, **options):
        raise OSError("I/O error")

    monkeypatch.setattr(checkpoints._orbax, "save", fail)
    checkpoints.save(2, make_state(2), meta())
    concurrent.futures.wait([checkpoints._saving.written])
    actions = {
        "poll": checkpoints.poll,
        "save": lambda: checkpoints.save(3, make_state(3), meta()),
        "finish": checkpoints.finish,
        "close": checkpoints.close,
        "leave": lambda: checkpoints.__exit__(None, None, None),
    }
    with pytest.raises(WriteError, match="I/O error"):
        actions[when]()


def test_a_checkpoint_can_be_replaced_and_survives_a_kill_while_it_is(tmp_path):
    checkpoints = saved(tmp_path, (1, 2))
    checkpoints.save(2, make_state(5), meta())
    checkpoints.finish()
    assert content(checkpoints.restore(make_state(0)).state) == content(make_state(5))
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(folder / ".2.previous")  # where a kill would leave it
    again = Checkpoints(folder)
    assert again.steps() == [1, 2]
    assert not (folder / ".2.previous").exists()


def test_leftovers_of_a_killed_save_and_delete_are_no_checkpoints(tmp_path):
    saved(tmp_path, (1,)).close()
    folder = tmp_path / "checkpoints"
    (folder / "2.saving.orbax-checkpoint-tmp").mkdir()
    (folder / "3.saving").mkdir()
    (folder / "0.deleted").mkdir()
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, make_state(2), meta())
    checkpoints.finish()
    assert {p.name for p in folder.iterdir()} == {"1", "2"}


def test_a_delete_that_fails_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    checkpoints = saved(tmp_path, (1, 2), keep_last=1)

    rename = pathlib.Path.rename

    def fail(self, target):
        if str(target).endswith(".deleted"):
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr("pathlib.Path.rename", fail)
    checkpoints.save(3, make_state(3), meta())
    checkpoints.finish()
    assert checkpoints.steps() == [2, 3]
    assert "2 cannot be renamed to 2.deleted" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints cannot be used"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_the_error_of_a_save_does_not_hide_what_ended_the_run(tmp_path, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise OSError("I/O error")

    checkpoints = saved(tmp_path, (1,))
    monkeypatch.setattr(checkpoints._orbax, "save", fail)
    checkpoints.save(2, make_state(2), meta())
    with pytest.raises(KeyError, match="the cause"), checkpoints:
        raise KeyError("the cause")
    assert "I/O error" in caplog.text


def test_a_folder_that_is_deleted_under_a_run_is_made_anew(tmp_path):
    checkpoints = saved(tmp_path, (1,))
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoints.steps() == []
    checkpoints.save(2, make_state(2), meta())
    assert checkpoints.last() == 2


def test_the_last_checkpoint_is_the_one_under_way(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.last() is None
    checkpoints.save(1, make_state(1), meta())
    assert checkpoints.last() == 1
