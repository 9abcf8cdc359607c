"""Times a training step and an inference of DeepLabv3+ on EfficientNet-Lite0 against PyTorch's,
side by side.

    python benchmarks/train_step.py --batch 8 --size 256 --rounds 5

Both programs are started once and then take turns, so that whatever else the machine does meets
both. The peer is segmentation_models.pytorch in channels-last memory format, the same network: one
decoder convolution, separable ASPP, output stride 16, SGD with momentum. Prints medians and
ratios, and with `--json FILE` writes them with versions and machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import numpy as np

NUM_CLASSES = 11


def batch(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures and labels, the same for both programs."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (count, size, size, 3), dtype=np.uint8)
    label = rng.integers(0, NUM_CLASSES, (count, size, size), dtype=np.uint8)
    return image, label


def flaxseg_program(size: int, count: int):
    """Returns functions that run one training step and one inference of ours."""
    import jax

    import flaxseg
    from flaxseg.evaluation import make_predict_step
    from flaxseg.host_memory import keep_freed_memory
    from flaxseg.training.optimizer import make_optimizer
    from flaxseg.training.parallel import make_parallel
    from flaxseg.training.schedules import make_schedule
    from flaxseg.training.state import create_state
    from flaxseg.training.step import make_train_step

    if jax.default_backend() == "cpu":
        keep_freed_memory()
    model = flaxseg.create_model(
        "deeplabv3plus", NUM_CLASSES, backbone="efficientnet_lite0", decoder_convs=1
    )
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 65, 65, 3), np.float32)
    )
    tx = make_optimizer(shapes["params"], head_lr_multiplier=10.0)
    parallel = make_parallel("jit", jax.devices()[:1])
    state = [parallel.put_state(create_state(model, tx, 0, (65, 65)))]
    schedule = make_schedule("poly", 0.01, 600)
    step = parallel.compile_train_step(make_train_step(model, tx, schedule=schedule))
    image, label = batch(size, count)
    predict = jax.jit(make_predict_step(model))
    variables = create_state(model, tx, 0, (65, 65)).variables()
    picture = image[:1]

    def train() -> None:
        state[0], metrics = step(state[0], parallel.put_batch({"image": image, "label": label}))
        jax.block_until_ready(metrics)

    def infer() -> None:
        jax.block_until_ready(predict(variables, picture))

    versions = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return train, infer, versions


def peer_program(size: int, count: int):
    """Returns functions that run one training step and one inference of the peer's."""
    import torch

    # Beside a CPU build of torch, torchvision's compiled operators may be absent. What is timed
    # does not use them, but importing the package needs their signatures.
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus(
        "timm-tf_efficientnet_lite0",
        encoder_weights=None,
        encoder_output_stride=16,
        decoder_atrous_rates=(6, 12, 18),
        classes=NUM_CLASSES,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    image, label = batch(size, count)

    def pixels(image):
        x = torch.from_numpy(image).permute(0, 3, 1, 2).to(torch.float32)
        return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        logits = model(pixels(image))
        target = torch.from_numpy(label).long()
        torch.nn.functional.cross_entropy(logits, target, ignore_index=255).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            model(pixels(image[:1])).argmax(1)

    versions = {"torch": torch.__version__, "segmentation_models_pytorch": smp.__version__}
    return train, infer, versions


PROGRAMS = {"flaxseg": flaxseg_program, "peer": peer_program}


def work(name: str, size: int, count: int) -> None:
    """The child: runs what its standard input names, and answers with the seconds it took."""
    train, infer, versions = PROGRAMS[name](size, count)
    runs = {"train": train, "infer": infer}
    for run in (train, infer, train, infer):
        run()
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        runs[line.strip()]()
        print(time.perf_counter() - began, flush=True)


def start(name: str, size: int, count: int) -> subprocess.Popen:
    command = [
        sys.executable,
        __file__,
        "--worker",
        name,
        "--size",
        str(size),
        "--batch",
        str(count),
    ]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def main() -> None:
    """Runs both programs in turns and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.size, arguments.batch)
        return
    children, versions = {}, {}
    for name in PROGRAMS:
        children[name] = start(name, arguments.size, arguments.batch)
        versions |= json.loads(children[name].stdout.readline())
    times = {(name, kind): [] for name in PROGRAMS for kind in ("train", "infer")}
    for _ in range(arguments.rounds):
        for name, kind in times:
            child = children[name]
            child.stdin.write(kind + "\n")
            child.stdin.flush()
            times[name, kind].append(float(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    result = {
        "batch": arguments.batch,
        "size": arguments.size,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
    }
    for kind, count in (("train", arguments.batch), ("infer", 1)):
        ours, peers = (statistics.median(times[name, kind]) for name in ("flaxseg", "peer"))
        result[kind] = {"flaxseg_s": ours, "peer_s": peers, "speed_over_peer": peers / ours}
        print(
            f"{kind}, {count} x {arguments.size} x {arguments.size}: flaxseg {ours:.3f} s, "
            f"peer {peers:.3f} s, {peers / ours:.2f} times the peer's speed"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    main()
