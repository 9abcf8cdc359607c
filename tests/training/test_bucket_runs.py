"""Runs whose folder is in a bucket: trained, stopped, killed, resumed, and their models used."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import bucket
import numpy as np
import pytest
import tiny_program
from etils import epath
from etils.epath import backend

import flaxseg
from flaxseg import cli, paths
from flaxseg.errors import CheckpointError, ConfigError, FlaxsegError, WeightsError, WriteError
from flaxseg.training import default_config, run, run_directory, train_and_evaluate
from flaxseg.training.checkpoint import Checkpoints
from flaxseg.training.log_file import LogFile
from flaxseg.training.run_log import MetricsFile

WORKDIR = "gs://bucket/runs/tiny"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A bucket, and a place for what is staged."""
    monkeypatch.setitem(flaxseg.models.MODELS, "tiny", tiny_program.TINY)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", None, raising=False)
    monkeypatch.setattr(paths, "_reaches_buckets", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run_directory, "_LOOK_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    return bucket.install(tmp_path / "bucket")


@pytest.fixture
def config(shapes_dir):
    """A run of a few seconds."""
    config = default_config()
    config.model.name, config.model.backbone = "tiny", "resnet18"
    config.data.dir, config.data.eval_split = str(shapes_dir), "val[:8]"
    config.data.crop_size = (16, 16)
    config.batch_size, config.steps = 8, 6
    config.log.every_steps = config.checkpoint.every_steps = 2
    config.eval.every_steps, config.eval.batch_size, config.eval.num_images = 3, 8, 1
    return config


def digests(workdir, step=6):
    return Checkpoints(workdir)._read_meta(step)["leaves"]


def test_a_run_in_a_bucket_is_the_run_on_a_disk(store, config, tmp_path, monkeypatch, capsys):
    train_and_evaluate(config, str(tmp_path / "disk"))
    advance = run.RunProgress.advance

    def advance_and_stop(progress, done):
        advance(progress, done)
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run.RunProgress, "advance", advance_and_stop)
        assert train_and_evaluate(config, WORKDIR).stopped_by == "SIGTERM"
    result = train_and_evaluate(config, WORKDIR)
    assert f"going on from step 5 in {WORKDIR}" in capsys.readouterr().err
    assert str(result.model) == f"{WORKDIR}/model"
    assert digests(f"{WORKDIR}/checkpoints") == digests(tmp_path / "disk" / "checkpoints")

    assert not (tmp_path / "gs:").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))  # nothing staged is left
    keys = [key.removeprefix("bucket/runs/tiny/") for key in store.names()]
    assert {"config.json", "metrics.jsonl"} <= set(keys)
    assert sum(key.startswith("images/step_000006/") for key in keys) == 1
    assert "checkpoints/6/meta/metadata" in keys
    assert not [key for key in keys if key.startswith((".lock", ".probe"))]
    assert sum(key.startswith("tensorboard/events") for key in keys) == 2
    assert sum(key.endswith(".safetensors") for key in keys) == 1
    disk, lines = (
        [(line["kind"], line["step"]) for line in map(json.loads, text.splitlines())]
        for text in (
            (tmp_path / "disk" / "metrics.jsonl").read_text(),
            epath.Path(WORKDIR, "metrics.jsonl").read_text(),
        )
    )
    assert lines == disk

    _, here = flaxseg.load_model(tmp_path / "disk")
    for place in (WORKDIR, f"{WORKDIR}/model"):
        _, there = flaxseg.load_model(place)
        np.testing.assert_array_equal(
            here["params"]["stem"]["kernel"], there["params"]["stem"]["kernel"]
        )
    command = ["evaluate", WORKDIR, "--data=shapes", "--split=val[:4]"]
    assert cli.main([*command, f"--data_dir={config.data.dir}", "--batch_size=4"]) == 0
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_goes_on_from_the_bucket(store, config, tmp_path, repository, shapes_dir):
    arguments = [
        *(sys.executable, str(pathlib.Path(__file__).with_name("bucket_program.py"))),
        *(str(store.root), "--config=configs/default.py", f"--workdir={WORKDIR}"),
    ]
    for name, value in {
        "data.crop_size": "16,16",
        "batch_size": 2,
        "steps": 60,
        "checkpoint.every_steps": 3,
        "eval.every_steps": 30,
        "eval.num_images": 0,
        "data.eval_split": "val[:8]",
        "data.dir": shapes_dir,
        "model.name": "tiny",
        "log.tensorboard": False,
    }.items():
        arguments.append(f"--config.{name}={value}")
    environment = {**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    running = subprocess.Popen(arguments, cwd=repository, env=environment)
    saved = Checkpoints(f"{WORKDIR}/checkpoints")
    deadline = time.monotonic() + 120
    while len(saved.steps()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait()
    assert saved.steps()
    lock = epath.Path(WORKDIR, ".lock")
    assert json.loads(lock.read_text())["pid"] == running.pid
    again = subprocess.run(arguments, cwd=repository, env=environment, capture_output=True)
    assert again.returncode == 0, again.stderr.decode()[-2000:]
    assert b"going on from step " in again.stderr
    assert saved.steps()[-1] == 60
    assert not lock.exists()


def test_a_folder_that_was_not_copied_whole_counts_for_nothing(store, monkeypatch):
    checkpoints = Checkpoints("gs://bucket/c", keep_last=3)
    meta = flaxseg.training.checkpoint.Meta({}, "", [], {})
    for step in (1, 2):
        checkpoints.save(step, {"w": np.full(3, step, np.float32)}, meta)
        checkpoints.finish()
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "_open", _no_room_for("3/state"))
        checkpoints.save(3, {"w": np.ones(3, np.float32)}, meta)
        with pytest.raises(
            WriteError, match="checkpoint 3 could not be written to gs://bucket/c/3"
        ):
            checkpoints.finish()
    epath.Path("gs://bucket/c/4/meta/metadata").write_text("{}")  # cut short by a kill
    again = Checkpoints("gs://bucket/c")
    assert again.steps() == [1, 2]
    assert not [key for key in store.names() if key.startswith(("bucket/c/3", "bucket/c/4"))]
    store._rm("bucket/c/2/meta/metadata")
    restored = again.restore({"w": np.zeros(3, np.float32)})
    assert restored.step == 1
    again.go_on_from(restored)
    assert again.steps() == [1]
    assert [key for key in store.names() if key.startswith("bucket/c/2.damaged/state")]


def test_a_bucket_that_is_out_of_reach_is_not_an_empty_one(store, config, monkeypatch, capsys):
    """What a moment's failure hides must not be deleted, begun anew, or written over."""
    checkpoints = Checkpoints("gs://bucket/c")
    checkpoints.save(1, {"w": np.ones(3)}, flaxseg.training.checkpoint.Meta({}, "", [], {}))
    checkpoints.finish()
    log = epath.Path(WORKDIR, "metrics.jsonl")
    log.write_text('{"kind": "train", "step": 1}\n')
    before = store.names()
    with monkeypatch.context() as patch:

        def fail(self, path, *args, **options):
            raise RuntimeError("no route to host")

        for name in ("ls", "_open"):
            patch.setattr(bucket.Bucket, name, fail)
        for broken in (
            lambda: Checkpoints("gs://bucket/c"),
            lambda: MetricsFile(log, from_step=5),
            lambda: train_and_evaluate(config, WORKDIR),
            lambda: flaxseg.load_model(WORKDIR),
        ):
            with pytest.raises(FlaxsegError, match=r"gs://bucket.*: no route to host\."):
                broken()
        assert cli.main(["evaluate", WORKDIR, "--data=shapes"]) == 1
    assert "cannot read gs://bucket/runs/tiny: no route to host" in capsys.readouterr().err
    assert store.names() == before


def _no_room_for(part):
    opened = bucket.Bucket._open

    def open_or_fail(self, path, mode="rb", **options):
        if part in path and mode == "wb":
            raise RuntimeError("quota exceeded")  # clients of buckets raise errors of many types
        return opened(self, path, mode, **options)

    return open_or_fail


def test_one_process_has_the_run(store, monkeypatch):
    directory = run_directory.RunDirectory(WORKDIR)
    lock = epath.Path(WORKDIR, ".lock")
    other = {"host": "elsewhere", "pid": 1}
    with directory.lock():
        assert json.loads(lock.read_text())["pid"] == os.getpid()
        lock.write_text(json.dumps({**other, "time": time.time()}))
    assert lock.exists()  # it is another's now
    signs = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "_renewed", lambda path: next(signs))
        with pytest.raises(CheckpointError, match="in use by process 1 on elsewhere"):
            directory.lock().__enter__()
    lock.unlink()

    def start_too(seconds):
        lock.write_text(json.dumps({**other, "time": time.time()}))

    monkeypatch.setattr(run_directory.time, "sleep", start_too)  # at the same moment
    with pytest.raises(CheckpointError, match="in use by process 1 on elsewhere"):
        directory.lock().__enter__()


def test_a_log_in_a_bucket_is_written_now_and_then(store, monkeypatch):
    path = epath.Path("gs://bucket/log")
    path.write_bytes(b"0")
    log = LogFile(path)
    for number in b"123":
        log.append(bytes([number]))
    assert path.read_bytes() == b"01"  # the rest waits for half a minute
    log.sync()
    assert path.read_bytes() == b"0123"
    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "_open", _no_room_for("log"))
        log.append(b"4")
        log.sync()
    log.append(b"5")
    log.close()
    assert path.read_bytes() == b"012345"


def test_a_model_in_a_bucket_is_replaced_with_its_card(store, config):
    """Of two files the card comes last, and names the other: a reader sees either version."""
    train_and_evaluate(config, WORKDIR)
    folder = epath.Path(WORKDIR, "model")
    card = folder.joinpath("config.json").read_text()
    weights = json.loads(card)["weights"]["file"]
    _, variables = flaxseg.load_model(WORKDIR)
    variables["params"]["stem"]["bias"] += 1
    card = flaxseg.read_model_card(WORKDIR)
    arguments = {"name": "tiny", "num_classes": card["num_classes"], "options": card["options"]}
    options = {key: value for key, value in arguments["options"].items() if key != "normalization"}
    flaxseg.save_model(folder, variables, **{**arguments, "options": options})
    assert not (folder / weights).exists()
    _, found = flaxseg.load_model(WORKDIR)
    np.testing.assert_array_equal(
        found["params"]["stem"]["bias"], variables["params"]["stem"]["bias"]
    )
    with pytest.raises(WeightsError, match="there is no folder gs://bucket/nothing"):
        flaxseg.load_model("gs://bucket/nothing")


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", "ftp://host/run", "gs:/bucket/run", "gs://x/y"]
)
def test_what_cannot_be_reached_is_refused_at_once(path, tmp_path, monkeypatch, capsys):
    """Without the package that reaches buckets, gs:// is as unknown as the others."""
    monkeypatch.setattr(paths, "_reaches_buckets", lambda: False)
    monkeypatch.chdir(tmp_path)
    wanted = "flaxseg\\[gcs\\]" if path == "gs://x/y" else "a path on this machine; mount"
    with pytest.raises(ConfigError, match=f"the workdir is .*{wanted}"):
        train_and_evaluate(default_config(), path)
    assert cli.main(["evaluate", path, "--data=shapes"]) == 2
    assert "model is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_only_runs_and_models_are_in_buckets(store, tmp_path, capsys):
    config = default_config()
    config.data.dir = "gs://bucket/data"
    with pytest.raises(ConfigError, match=r"data\.dir is 'gs://bucket/data'; it must be a path on"):
        train_and_evaluate(config, WORKDIR)
    assert cli.main(["predict", "x.png", "--model=gs://bucket/m", "--out=gs://bucket/o"]) == 2
    assert "out is 'gs://bucket/o'" in capsys.readouterr().err
    assert store.names() == []
