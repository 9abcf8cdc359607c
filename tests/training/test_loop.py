"""Whole runs in this process, on eight devices: they resume bit for bit and end as they should."""

import json
import os
import signal
import sys
import types

import jax
import numpy as np
import pytest
import tiny_program
from PIL import Image

import flaxseg
from flaxseg.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    WeightsError,
    WriteError,
)
from flaxseg.paths import file_name
from flaxseg.saved_model import model_folder
from flaxseg.training import (
    assemble,
    default_config,
    log_file,
    loop,
    run,
    run_evaluation,
    run_log,
    train_and_evaluate,
    validate_config,
)
from flaxseg.training.checkpoint import Checkpoints
from flaxseg.training.compilation import CompilationWatch
from flaxseg.training.device_memory import explain_memory
from flaxseg.training.parallel import Parallel

STEPS = 6


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch):
    monkeypatch.setitem(flaxseg.models.MODELS, "tiny", tiny_program.TINY)


@pytest.fixture
def config(shapes_dir):
    """A run of a few seconds."""
    config = default_config()
    config.model.name = "tiny"
    config.model.backbone = "resnet18"  # not used by the tiny model
    config.data.dir = str(shapes_dir)
    config.data.eval_split = "val[:21]"
    config.data.crop_size = (24, 32)
    config.batch_size = 8
    config.steps = STEPS
    config.optimizer.learning_rate = 0.05
    config.log.every_steps = 2
    config.log.tensorboard = False
    config.checkpoint.every_steps = 2
    config.eval.every_steps = 3
    config.eval.batch_size = 8
    config.eval.num_images = 2
    return config


def final_state(workdir, step=STEPS):
    """The arrays of a checkpoint by name, read without a template, and their digest."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    content = checkpoints._read_meta(step)
    return {name: leaf["sha256"] for name, leaf in content["leaves"].items()}, content


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stable(workdir):
    """The lines of the log without times."""
    times = ("images_per_second", "data_wait", "seconds")
    return [{k: v for k, v in line.items() if k not in times} for line in lines(workdir)]


class StopAfter:
    """Sends this process a signal once `step` steps were given to the device."""

    def __init__(self, monkeypatch, step, number=signal.SIGTERM):
        advance = run.RunProgress.advance

        def advance_and_stop(progress, done):
            advance(progress, done)
            if done == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(run.RunProgress, "advance", advance_and_stop)


def test_a_run_from_start_to_end(config, tmp_path, capsys):
    config.log.tensorboard = True
    result = train_and_evaluate(config, str(tmp_path))
    assert (result.step, result.stopped_by) == (STEPS, "")
    assert [entry["step"] for entry in result.history] == [3, 6]
    assert result.best["miou"] == max(entry["miou"] for entry in result.history)

    kinds = [(line["kind"], line["step"]) for line in lines(tmp_path)]
    assert kinds == [("train", 2), ("eval", 3), ("train", 4), ("train", 6), ("eval", 6)]
    train = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert all(0 <= line["data_wait"] <= 1 and line["images_per_second"] > 0 for line in train)
    assert train[0]["learning_rate"] > train[-1]["learning_rate"] > 0

    # The exported model is the one that was evaluated.
    card = flaxseg.read_model_card(tmp_path)
    assert card["extra"]["step"] == result.best["step"]
    model, variables = flaxseg.load_model(tmp_path)
    metrics = flaxseg.evaluate(
        flaxseg.inference.Segmenter(model, variables).run_batch,
        flaxseg.data.open_split("shapes", config.data.eval_split, config.data.dir),
        9,
        batch_size=10,
    )
    assert metrics.miou == pytest.approx(result.best["miou"], abs=1e-9)

    images = sorted((tmp_path / "images").glob("*/*.png"))
    assert [p.parent.name for p in images] == ["step_000003"] * 2 + ["step_000006"] * 2
    assert np.asarray(Image.open(images[0])).shape[2] == 3
    # Named by the image, so that they stay with it when `eval.num_images` changes.
    records = flaxseg.data.open_split("shapes", config.data.eval_split, config.data.dir)
    known = {f"{file_name(record['id'])}.png" for record in records}
    assert images[0].name != images[1].name
    assert {image.name for image in images} <= known
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == STEPS
    said = capsys.readouterr().err
    assert "crescent" in said  # the table per class
    assert str(tmp_path / "images" / f"step_{result.best['step']:06d}" / images[0].name) in said
    assert said.index("compiling the training step") < said.index("first step took")


def test_stopped_and_resumed_is_the_uninterrupted_run(config, tmp_path, monkeypatch):
    config.optimizer.ema_decay = 0.9
    whole = train_and_evaluate(config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        StopAfter(patch, 1)
        stopped = train_and_evaluate(config, str(tmp_path / "parts"))
    assert (stopped.step, stopped.stopped_by) == (1, "SIGTERM")
    with monkeypatch.context() as patch:
        StopAfter(patch, 5, signal.SIGINT)
        stopped = train_and_evaluate(config, str(tmp_path / "parts"))
    assert (stopped.step, stopped.stopped_by) == (5, "SIGINT")
    parts = train_and_evaluate(config, str(tmp_path / "parts"))
    assert parts.history == whole.history
    leaves, meta = final_state(tmp_path / "whole")
    other_leaves, other_meta = final_state(tmp_path / "parts")
    assert leaves == other_leaves
    assert any(name.startswith("ema/") for name in leaves)
    assert meta["iterator_state"] == other_meta["iterator_state"]
    assert json.loads(meta["iterator_state"]) == {"batches_taken": 6, "broken": []}

    # Means are over the same steps, those before a stop included.
    assert stable(tmp_path / "parts") == stable(tmp_path / "whole")


def test_a_stop_within_an_evaluation_is_made_up_for(config, tmp_path, monkeypatch):
    whole = train_and_evaluate(config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        draw = run_evaluation.side_by_side

        def stop_and_draw(*arguments, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return draw(*arguments, **options)

        patch.setattr(run_evaluation, "side_by_side", stop_and_draw)
        stopped = train_and_evaluate(config, str(tmp_path / "parts"))
    assert (stopped.step, stopped.history) == (3, [])
    parts = train_and_evaluate(config, str(tmp_path / "parts"))
    assert parts.history == whole.history
    assert final_state(tmp_path / "parts")[0] == final_state(tmp_path / "whole")[0]


def test_a_complete_run_is_not_trained_again(config, tmp_path, monkeypatch, capsys):
    first = train_and_evaluate(config, str(tmp_path))
    monkeypatch.setattr(loop, "_run_steps", None)
    again = train_and_evaluate(config, str(tmp_path))
    assert again == first
    assert "crescent" in capsys.readouterr().err.split("going on from step 6")[1]


def test_pmap_and_jit_agree(config, tmp_path):
    config.steps = 2
    config.model.options = {"dropout": 0.0}  # under pmap it is drawn per device
    by_jit = train_and_evaluate(config, str(tmp_path / "jit"))
    config.parallel = "pmap"
    by_pmap = train_and_evaluate(config, str(tmp_path / "pmap"))
    assert by_pmap.best["miou"] == pytest.approx(by_jit.best["miou"], abs=1e-4)
    (one,), (other,) = (
        [line for line in lines(tmp_path / kind) if line["kind"] == "train"]
        for kind in ("jit", "pmap")
    )
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_images_split_over_devices_agree_and_the_run_goes_on_without(config, tmp_path, monkeypatch):
    config.data.crop_size = (64, 32)
    whole = train_and_evaluate(config, str(tmp_path / "whole"))
    config.mesh = "space=2"
    with monkeypatch.context() as patch:
        StopAfter(patch, 4)
        assert train_and_evaluate(config, str(tmp_path / "split")).step == 4
    config.mesh = ""
    split = train_and_evaluate(config, str(tmp_path / "split"))
    assert [entry["step"] for entry in split.history] == [3, 6]
    for one, other in zip(split.history, whole.history, strict=True):
        assert one["miou"] == pytest.approx(other["miou"], abs=0.01)
    loss = {
        name: [line["loss"] for line in lines(tmp_path / name) if line["kind"] == "train"]
        for name in ("whole", "split")
    }
    assert loss["split"] == pytest.approx(loss["whole"], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
    batches = flaxseg.data.train_batches(
        "shapes",
        "train",
        data_dir=config.data.dir,
        batch_size=8,
        crop_size=(24, 32),
        seed=config.seed,
    )
    ids = [list(map(str, next(batches)["id"])) for _ in range(5)]
    batches.close()
    make_schedule = assemble.make_schedule

    def explode(**arguments):
        schedule = make_schedule(**arguments)
        return lambda step: jax.numpy.where(step == 4, jax.numpy.inf, schedule(step))

    monkeypatch.setattr(assemble, "make_schedule", explode)
    with pytest.raises(NonFiniteLossError) as info:
        train_and_evaluate(config, str(tmp_path))
    message = str(info.value)
    assert "not finite in step 5" in message
    assert all(name in message for name in ids[4])
    assert "checkpoint 4 is the last" in message
    assert "optimizer.learning_rate" in message
    assert info.value.exit_code == 3
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 4
    # The last checkpoint is that of a run which never met the bad step.
    monkeypatch.setattr(assemble, "make_schedule", make_schedule)
    train_and_evaluate(config, str(tmp_path))
    train_and_evaluate(config, str(tmp_path.with_name("whole")))
    assert final_state(tmp_path)[0] == final_state(tmp_path.with_name("whole"))[0]


def test_other_settings_are_refused_unless_allowed(config, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2)
    train_and_evaluate(config, str(tmp_path))
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate: was 0.05, is 0.5"):
        train_and_evaluate(config, str(tmp_path))
    config.allow_change = "optimizer.learning_rate"
    config.log.every_steps = 1
    assert train_and_evaluate(config, str(tmp_path)).step == STEPS


def test_another_model_names_parameter_shapes_and_way_out(config, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2)
    train_and_evaluate(config, str(tmp_path))
    config.model.options = {"width": 6}
    with pytest.raises(ConfigError, match=r"model\.options\.width: was 'not set', is 6") as info:
        train_and_evaluate(config, str(tmp_path))
    assert "allow_change" not in str(info.value)  # which cannot help
    assert f"--config.init.model={tmp_path}" in str(info.value)
    config.allow_change = "model"
    with pytest.raises(CheckpointError) as info:
        train_and_evaluate(config, str(tmp_path))
    message = str(info.value)
    assert message.index("model.options.width: was") < message.index("params/")
    assert "params/stem/kernel: the checkpoint has [3, 3, 3, 4] float32" in message
    assert "this run [3, 3, 3, 6] float32" in message
    assert f"--config.init.model={tmp_path}" in message


def test_a_model_that_cannot_be_made_is_a_config_error(config, tmp_path):
    config.model.options = {"widht": 6}
    with pytest.raises(ConfigError, match=r"tiny has no option widht; it has .*width"):
        train_and_evaluate(config, str(tmp_path))
    config.model.name = "deeplabv3"
    config.model.options = {}
    config.model.output_stride = 12
    with pytest.raises(ConfigError, match="output_stride"):
        train_and_evaluate(config, str(tmp_path))


def test_settings_that_decide_the_arrays_are_named_first(config, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2)
    train_and_evaluate(config, str(tmp_path))
    for field, value in {"name": "adamw", "ema_decay": 0.9, "frozen": "stem"}.items():
        changed = config.copy_and_resolve_references()
        changed.optimizer[field] = value
        with pytest.raises(ConfigError, match=rf"optimizer\.{field}: was .* is {value!r}") as info:
            train_and_evaluate(changed, str(tmp_path))
        assert "params/" not in str(info.value)
        changed.allow_change = f"optimizer.{field}"
        with pytest.raises(CheckpointError, match=rf"go on with these:\s+- optimizer\.{field}"):
            train_and_evaluate(changed, str(tmp_path))


def test_logs_are_on_the_disk_before_each_checkpoint(config, tmp_path, monkeypatch):
    done = []
    for owner, name in (
        (log_file.LogFile, "append"),
        (log_file.LogFile, "sync"),
        (Checkpoints, "save"),
    ):
        method = getattr(owner, name)

        def noted(*arguments, _method=method, _name=name):
            done.append(_name)
            return _method(*arguments)

        monkeypatch.setattr(owner, name, noted)
    config.steps = 3
    train_and_evaluate(config, str(tmp_path))
    before = [done[place - 1] for place, name in enumerate(done) if name == "save"]
    assert before == ["sync", "sync"]
    assert "append" in done


def test_a_run_without_room_for_logs_images_and_model_goes_on(
    config, tmp_path, monkeypatch, caplog, capsys
):
    """All but images is there as soon as there is room."""
    whole = train_and_evaluate(config, str(tmp_path / "whole"))
    capsys.readouterr()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log_file, "open", full, raising=False)
        patch.setattr(run_log, "save_image", full)
        patch.setattr(model_folder, "_write_folder", full)
        workdir = tmp_path / "full"
        result = train_and_evaluate(config, str(workdir))
    assert result.history == whole.history
    assert final_state(workdir)[0] == final_state(tmp_path / "whole")[0]
    said = [record.getMessage() for record in caplog.records]
    for text in (
        f"{workdir / 'metrics.jsonl'} cannot be written: No space left on device.",
        f"cannot write {workdir / 'images/step_000003'}: No space left on device.",
        f"cannot write {workdir / 'model'}: No space left on device. It needs",
        f"{workdir / 'metrics.jsonl'} lacks the last 5 entries",
    ):
        assert any(line.startswith(text) for line in said), text
    assert f"model: {workdir / 'model'} is not this model" in capsys.readouterr().err
    again = train_and_evaluate(config, str(workdir))
    assert again.history == whole.history
    name = "model/model.safetensors"
    assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert flaxseg.read_model_card(workdir)["extra"]["step"] == whole.best["step"]
    assert f"model: {workdir / 'model'}\n" in capsys.readouterr().err


def test_a_run_without_its_checkpoints_is_not_begun_anew(config, tmp_path):
    for name in ("config.json", "metrics.jsonl", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match="give another --workdir, or delete this one"):
        train_and_evaluate(config, str(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_a_step_to_go_back_to(config, tmp_path, monkeypatch, capsys):
    config.checkpoint.keep_last = 9
    whole = train_and_evaluate(config, str(tmp_path))
    digests = final_state(tmp_path)[0]
    config.checkpoint.restore_step = 5
    with pytest.raises(CheckpointError, match=r"there are: 2, 3, 4, 6"):
        train_and_evaluate(config, str(tmp_path))
    config.checkpoint.restore_step = 2
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ConfigError, match="learning_rate"):
        train_and_evaluate(config, str(tmp_path))
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 3, 4, 6]
    config.optimizer.learning_rate = 0.05
    with monkeypatch.context() as patch:
        StopAfter(patch, 5)
        train_and_evaluate(config, str(tmp_path))
    assert (tmp_path / "checkpoints" / "6.set_aside").is_dir()
    capsys.readouterr()
    again = train_and_evaluate(config, str(tmp_path))
    said = capsys.readouterr().err
    assert "restore_step=2 was done at an earlier start; the run has gone on to step 5" in said
    assert "going on from step 5" in said
    assert again.history == whole.history
    assert final_state(tmp_path)[0] == digests


def test_a_start_that_fails_leaves_no_folder(config, tmp_path, monkeypatch):
    def fail(run):
        assert run.directory.path.is_dir()
        raise WeightsError("they could not be downloaded")

    monkeypatch.setattr(loop, "start_or_resume", fail)
    with pytest.raises(WeightsError):
        train_and_evaluate(config, str(tmp_path / "runs" / "new"))
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "old"
    kept.mkdir()
    with pytest.raises(WeightsError):
        train_and_evaluate(config, str(kept))
    assert kept.is_dir()


def test_weights_to_start_from_are_loaded_once(config, tmp_path, monkeypatch, capsys):
    """Only a new run begins with them: the checkpoint of a resumed one holds all."""
    asked = []

    def load_backbone(model, variables, source):
        asked.append(source)
        stem = jax.tree.map(lambda x: x * 0 + 0.125, variables["params"]["stem"])
        params = {**variables["params"], "stem": stem}
        return {**variables, "params": params}, "2 parameters loaded, 0 missing"

    module = types.ModuleType("flaxseg.weights")
    module.load_backbone = load_backbone
    module.find_source = module.read_bases = lambda source: None
    monkeypatch.setitem(sys.modules, "flaxseg.weights", module)
    monkeypatch.setattr(flaxseg, "weights", module, raising=False)
    config.init.backbone = "some_backbone"
    config.optimizer.learning_rate = 1e-9
    config.optimizer.weight_decay = 0.0
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        train_and_evaluate(config, str(tmp_path))
    assert "2 parameters loaded, 0 missing" in capsys.readouterr().err
    train_and_evaluate(config, str(tmp_path))
    assert asked == ["some_backbone"]
    _, variables = flaxseg.load_model(tmp_path)
    np.testing.assert_allclose(variables["params"]["stem"]["kernel"], 0.125, atol=1e-6)


def test_other_data_is_refused(config, tmp_path, monkeypatch):
    StopAfter(monkeypatch, 2)
    train_and_evaluate(config, str(tmp_path))
    manifest = flaxseg.data.read_manifest("shapes", config.data.dir)
    changed = type(manifest)(**{**vars(manifest), "fingerprint": "0" * 64})
    monkeypatch.setattr(loop.data, "read_manifest", lambda *arguments: changed)
    with pytest.raises(ConfigError, match=r"data.fingerprint: was"):
        train_and_evaluate(config, str(tmp_path))


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(config, tmp_path, monkeypatch):
    save = Checkpoints._check_room

    def check_room(checkpoints, step, size):
        if step == 4:
            raise checkpoints._save_failed(step, size, OSError("No space left on device"))
        save(checkpoints, step, size)

    monkeypatch.setattr(Checkpoints, "_check_room", check_room)
    with pytest.raises(WriteError, match=r"No space left on device.*checkpoint 3 is kept"):
        train_and_evaluate(config, str(tmp_path))
    monkeypatch.setattr(Checkpoints, "_check_room", save)
    assert train_and_evaluate(config, str(tmp_path)).step == STEPS


def test_the_host_does_not_wait_within_the_steps(config, tmp_path, monkeypatch):
    """Between two log points nothing is fetched: only their fetches are seen."""
    fetches = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetches.append(1) or device_get(tree))
    config.eval.every_steps = 0
    config.checkpoint.every_steps = 0
    config.log.every_steps = 3
    train_and_evaluate(config, str(tmp_path))
    # Two log points, each with the bad-step check and the metrics; one export of the model.
    assert len(fetches) == 5


def test_a_second_compilation_is_seen():
    watch = CompilationWatch()
    double = jax.jit(lambda x: 2 * x)
    double(np.ones(3))
    seen = watch.count
    double(np.zeros(3))
    assert watch.count == seen >= 1
    double(np.ones(4))
    assert watch.count > seen
    watch.close()
    double(np.ones(5))
    assert watch.count == seen + 1


def test_a_step_that_is_compiled_again_is_reported(config, tmp_path, monkeypatch, caplog):
    compile_train_step = Parallel.compile_train_step

    def compile_and_forget(parallel, step_fn):
        train_step, calls = compile_train_step(parallel, step_fn), []

        def step(state, batch):
            calls.append(batch)
            if len(calls) == 3:
                jax.clear_caches()
            return train_step(state, batch)

        return step

    monkeypatch.setattr(Parallel, "compile_train_step", compile_and_forget)
    config.steps, config.eval.every_steps, config.checkpoint.every_steps = 4, 0, 0
    train_and_evaluate(config, str(tmp_path))
    said = [record.message for record in caplog.records if "compiled again" in record.message]
    assert len(said) == 1
    assert said[0].startswith("step 3 was compiled again")


def test_too_little_memory_says_what_to_set(config):
    settings, _ = validate_config(config, device_count=8)
    with (
        pytest.raises(flaxseg.errors.FlaxsegError, match=r"--config.batch_size=4") as info,
        explain_memory(settings),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert "24x32 crops in float32" in str(info.value)
    assert "config.mesh" not in str(info.value)  # 24 rows are too few for it
    config.data.crop_size, config.mesh = (256, 32), "data=4, space=2"
    settings, _ = validate_config(config, device_count=8)
    with (
        pytest.raises(flaxseg.errors.FlaxsegError, match=r"--config.mesh=space=4"),
        explain_memory(settings),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_images_are_spread_over_the_split():
    assert run_evaluation._spread(100, 4) == [12, 37, 62, 87]
    assert run_evaluation._spread(3, 9) == [0, 1, 2]
    assert run_evaluation._spread(5, 0) == []


def test_the_same_seed_gives_the_same_run_and_another_seed_another(config, tmp_path):
    config.steps = 2
    digests = []
    for number, seed in enumerate([0, 0, 1]):
        config.seed = seed
        train_and_evaluate(config, str(tmp_path / str(number)))
        digests.append(final_state(tmp_path / str(number), 2)[0])
    assert digests[0] == digests[1] != digests[2]


def test_what_is_frozen_stays(config, tmp_path):
    """A longer run ends with the same frozen parameters as a shorter one."""
    config.schedule.name = "constant"
    config.optimizer.frozen = "stem, norm*"
    after = {}
    for steps in (1, 2):
        config.steps = steps
        train_and_evaluate(config, str(tmp_path / str(steps)))
        after[steps] = flaxseg.load_model(tmp_path / str(steps) / "model")[1]["params"]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), after[1], after[2])
    assert all(jax.tree.leaves([same["stem"], same["norm1"]]))
    assert not any(jax.tree.leaves(same["classifier"]))
    config.optimizer.frozen = "stam"
    with pytest.raises(ConfigError, match=r"frozen has 'stam'.*Did you mean 'stem'"):
        train_and_evaluate(config, str(tmp_path / "wrong"))
