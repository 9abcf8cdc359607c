"""Two processes with two devices each train as one process with four does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SIZE = (9, 11)


def train(kind: str, rank: int, processes: int) -> dict:
    """Metrics, and a digest of the parameters."""
    import jax
    import jax.numpy as jnp
    from tiny_segmenter import TinySegmenter, tiny_batch

    from flaxseg.training.optimizer import make_optimizer
    from flaxseg.training.parallel import make_parallel
    from flaxseg.training.schedules import make_schedule
    from flaxseg.training.state import create_state
    from flaxseg.training.step import make_train_step

    across = make_parallel(kind, jax.devices()[:4])
    model = TinySegmenter(batch_norm_axis=across.batch_norm_axis)
    image = jnp.zeros((1, *SIZE, 3))
    tx = make_optimizer(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    schedule = make_schedule("constant", 0.05, 10)
    run = across.compile_train_step(make_train_step(model, tx, schedule=schedule))
    state = across.put_state(create_state(model, tx, 0, SIZE))
    rows = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    for seed in range(3):
        batch = {key: value[rows] for key, value in tiny_batch(seed).items()}
        state, metrics = run(state, across.put_batch(batch))
    params = jax.tree.leaves(across.get_state(state).params)
    return {
        "metrics": {key: float(value) for key, value in jax.device_get(metrics).items()},
        "params": [float(np.abs(leaf).sum()) for leaf in params],
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_two_processes_equal_one(kind):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, kind, str(rank), address],
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
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    expected = train(kind, 0, 1)
    for part in (first, second):
        assert part["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        np.testing.assert_allclose(part["params"], expected["params"], rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[2]))
    print("\n" + json.dumps(train(sys.argv[1], int(sys.argv[2]), 2)))
