"""Two processes train as one does that has as many devices: a step, and the whole program."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SIZE = (64, 11)


KINDS = ("jit", "pmap", "split")


def train(kind: str, rank: int, processes: int) -> dict:
    """Metrics, and a digest of the parameters; "split" is jit with two devices to an image."""
    import jax
    from tiny_segmenter import TinySegmenter, new_run, tiny_batch

    from flaxseg.training.parallel import make_parallel
    from flaxseg.training.schedules import make_schedule

    split = {"space": 2} if kind == "split" else None
    across = make_parallel("jit" if split else kind, jax.devices()[:4], mesh=split)
    model = TinySegmenter(batch_norm_axis=across.batch_norm_axis)
    start, step = new_run(model, SIZE, schedule=make_schedule("constant", 0.05, 10))
    run = across.compile_train_step(step)
    state = across.put_state(start)
    rows = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    for seed in range(3):
        batch = {key: value[rows] for key, value in tiny_batch(seed, hw=SIZE).items()}
        state, metrics = run(state, across.put_batch(batch))
    params = jax.tree.leaves(across.get_state(state).params)
    return {
        "metrics": {key: float(value) for key, value in jax.device_get(metrics).items()},
        "params": [float(np.abs(leaf).sum()) for leaf in params],
    }


def free_address() -> str:
    """HOST:PORT that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def trained_by_two() -> list[dict[str, dict]]:
    """What `train` returns in each of two processes, by kind."""
    address = free_address()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [child.communicate(timeout=240) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, errors) in zip(children, outputs, strict=True):
        assert child.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(trained_by_two, kind):
    expected = train(kind, 0, 1)
    for part in (process[kind] for process in trained_by_two):
        assert part["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        np.testing.assert_allclose(part["params"], expected["params"], rtol=1e-5, atol=1e-6)


STEPS, BATCH, RECORDS = 6, 8, 20  # two epochs and a bit, and 8 does not divide 20


def start_program(
    folder: pathlib.Path, data_dir: pathlib.Path, processes: int, **changes: object
) -> list[subprocess.Popen]:
    """Starts `train.py` over eight devices of so many processes, in the workdir `run`."""
    settings = {
        "model.name": "tiny",
        "data.dir": data_dir,
        "data.train_split": f"train[:{RECORDS}]",
        "data.eval_split": "val[:11]",  # an odd number, for processes that share it
        "data.crop_size": "24,24",
        "batch_size": BATCH,
        "steps": STEPS,
        "eval.batch_size": 8,
        "eval.num_images": 1,
        "log.every_steps": 2,
        "log.tensorboard": False,
        "optimizer.learning_rate": 0.05,
        **changes,
    }
    arguments = [
        str(pathlib.Path(__file__).with_name("recorded_program.py")),
        str(folder),
        "--config=configs/default.py",
        f"--workdir={folder / 'run'}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]
    if processes > 1:
        arguments += [f"--coordinator={free_address()}", f"--num_processes={processes}"]
    folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(8 // processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments, *([f"--process_id={rank}"] if processes > 1 else [])],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def train_program(folder: pathlib.Path, data_dir: pathlib.Path, processes: int) -> pathlib.Path:
    """Runs the program to its end; returns the workdir."""
    children = start_program(folder, data_dir, processes)
    try:
        said = [child.communicate(timeout=500)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    for child, errors in zip(children, said, strict=True):
        assert child.returncode == 0, errors
    return folder / "run"


def ids_in_order(folder: pathlib.Path, processes: int) -> list[str]:
    """Ids of the records of all steps, in the order of the global batches."""
    parts = [(folder / str(rank)).read_text().splitlines()[:STEPS] for rank in range(processes)]
    assert {len(part) for part in parts} == {STEPS}
    return [name for step in zip(*parts, strict=True) for rows in step for name in rows.split()]


@pytest.mark.slow
def test_the_program_in_two_processes_equals_one(tmp_path, shapes_dir):
    """The same records in the same steps, each once per epoch; the same model and mIoU."""
    one = train_program(tmp_path / "one", shapes_dir, 1)
    two = train_program(tmp_path / "two", shapes_dir, 2)

    order = ids_in_order(tmp_path / "two", 2)
    assert order == ids_in_order(tmp_path / "one", 1)
    names = {f"shapes_train_{number:04d}" for number in range(RECORDS)}
    for epoch in (order[:RECORDS], order[RECORDS : 2 * RECORDS]):
        assert len(epoch) == RECORDS
        assert set(epoch) == names

    (step, found, history), (_, wanted, expected) = map(last_checkpoint, (two, one))
    assert step == STEPS
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert history["miou"] == pytest.approx(expected["miou"], abs=1e-4)
    assert 0 < history["miou"] < 1
    assert history["ignored_pixels"] == expected["ignored_pixels"]
    pixels = [np.sum(entry["matrix"]) for entry in (history, expected)]
    assert pixels[0] == pixels[1]


@pytest.mark.slow
def test_a_signal_to_one_of_two_programs_stops_both_and_saves(tmp_path, shapes_dir):
    folder = tmp_path / "two"
    endless = {"steps": 100000, "checkpoint.every_steps": 5, "eval.every_steps": 0}
    children = start_program(folder, shapes_dir, 2, **endless)
    try:
        end = time.monotonic() + 200
        while not (folder / "run" / "checkpoints" / "10").is_dir() and time.monotonic() < end:
            time.sleep(0.05)
        children[1].send_signal(signal.SIGTERM)
        said = [child.communicate(timeout=100)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [75, 75], said
    step = last_step(folder / "run")
    assert f"stopped by SIGTERM to process 1 after step {step}, saved" in said[0]


def last_step(workdir: pathlib.Path) -> int:
    from flaxseg.training.checkpoint import Checkpoints

    return Checkpoints(workdir / "checkpoints").steps()[-1]


def last_checkpoint(workdir: pathlib.Path) -> tuple[int, dict[str, np.ndarray], dict]:
    """Its step, the parameters and statistics of the exported model, and its evaluation."""
    from safetensors.numpy import load_file

    from flaxseg.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.steps()[-1]
    history = checkpoints._read_meta(step)["history"]
    return step, load_file(workdir / "model" / "model.safetensors"), history[-1]


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    process = int(sys.argv[1])
    jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=process)
    print("\n" + json.dumps({kind: train(kind, process, 2) for kind in KINDS}))
