"""Times training steps and inferences of whole systems against PyTorch's, side by side.

    python benchmarks/systems.py                            # all systems, at sizes for this machine
    python benchmarks/systems.py deeplabv3_r50_d8 --batch 2 --size 257 --rounds 9
    python benchmarks/systems.py --json speed.json --chart speed.svg

Both programs are started once per system and then take turns, so that whatever else the machine
does meets both. Peers are torchvision and segmentation_models.pytorch in channels-last memory
format with the same network and SGD with momentum; on a GPU compiled by `torch.compile`, in
bfloat16 autocast, beside ours in bfloat16. Systems that neither has are timed alone.

Prints medians, images per second, the ratio of the speeds, and the arithmetic done per second: that
of the convolutions and products of a forward pass as XLA counts it, three times that for a training
step. On GPUs that are known also its share of the published dense bfloat16 peak (MFU), and the peak
of memory. `--json` keeps the figures with versions and machine, `--chart` draws the ratios.

Peers need `pip install torch torchvision segmentation-models-pytorch timm`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class System(NamedTuple):
    """A network in our names, and a function of the number of classes to the peer's."""

    model: str
    options: dict
    peer: Callable | None = None
    classes: int = 21
    # Height and width for a training step and an inference, where they are not those asked for.
    size: tuple[int, int] | None = None
    # What the peer wants sizes to be divisible by.
    multiple: int = 1


KINDS = ("train", "infer")


class Workload(NamedTuple):
    batch: int
    size: int
    repeat: int
    kinds: tuple[str, ...] = KINDS


# Inferences for each training step of a turn, so that neither is over before the machine has
# turned from the other program to this one.
INFERENCES = 4
CPU, GPU = Workload(2, 257, 1), Workload(16, 513, 10)
# Dense bfloat16 arithmetic per second, from the data sheets of the devices.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def torchvision_model(name: str) -> Callable:
    def make(classes: int):
        import torchvision

        return getattr(torchvision.models.segmentation, name)(
            weights=None, weights_backbone=None, num_classes=classes, aux_loss=False
        )

    return make


def smp_model(name: str, encoder: str, **options) -> Callable:
    def make(classes: int):
        import segmentation_models_pytorch as smp

        return getattr(smp, name)(encoder, encoder_weights=None, classes=classes, **options)

    return make


_PLUS = {"encoder_output_stride": 16, "decoder_atrous_rates": (6, 12, 18)}
_RELEASED_TORCHVISION = {"backbone": "resnet50", "output_stride": 8}
SYSTEMS = {
    "deeplabv3_r50_d8": System(
        "deeplabv3",
        {**_RELEASED_TORCHVISION, "rates": (12, 24, 36), "head_conv": True},
        torchvision_model("deeplabv3_resnet50"),
    ),
    "fcn_r50_d8": System("fcn", _RELEASED_TORCHVISION, torchvision_model("fcn_resnet50")),
    "deeplabv3plus_mobilenet_v2": System(
        "deeplabv3plus",
        {"backbone": "mobilenet_v2", "decoder_convs": 1},
        smp_model("DeepLabV3Plus", "mobilenet_v2", **_PLUS),
        multiple=16,
    ),
    "deeplabv3plus_efficientnet_lite0": System(
        "deeplabv3plus",
        {"backbone": "efficientnet_lite0", "decoder_convs": 1},
        smp_model("DeepLabV3Plus", "timm-tf_efficientnet_lite0", **_PLUS),
        multiple=16,
    ),
    "pspnet_r50_d8": System("pspnet", {"backbone": "resnet50"}),
    "fcn8s": System("fcn8s", {}),
    "icnet_r50": System("icnet", {}, classes=19, size=(1024, 2048)),
    "gcn_r50": System("gcn", {"backbone": "resnet50"}),
    "refinenet_r50": System("refinenet", {"backbone": "resnet50"}),
    "lrr_vgg16": System("lrr", {}),
}


def sizes(system: System, work: Workload) -> tuple[int, int]:
    side = work.size - work.size % system.multiple
    return system.size or (side, side)


def batch(system: System, work: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels, the same for both programs."""
    rng = np.random.default_rng(0)
    shape = (work.batch, *sizes(system, work))
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    return image, rng.integers(0, system.classes, shape, dtype=np.uint8)


def flaxseg_program(system: System, work: Workload):
    """Returns functions that run a training step and an inference of ours, and facts."""
    import jax
    import jax.numpy as jnp

    import flaxseg
    from flaxseg.host_memory import keep_freed_memory
    from flaxseg.inference import Segmenter
    from flaxseg.layers import normalize
    from flaxseg.training.optimizer import make_optimizer
    from flaxseg.training.parallel import make_parallel
    from flaxseg.training.schedules import make_schedule
    from flaxseg.training.state import create_state
    from flaxseg.training.step import make_train_step

    keep_freed_memory()
    on_cpu = jax.default_backend() == "cpu"
    model = flaxseg.create_model(
        system.model,
        system.classes,
        dtype=jnp.float32 if on_cpu else jnp.bfloat16,
        **system.options,
    )
    size = sizes(system, work)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    )
    tx = make_optimizer(shapes["params"], head_lr_multiplier=1.0)
    parallel = make_parallel("jit", jax.devices()[:1])
    fresh = create_state(model, tx, 0, size)
    state = [parallel.put_state(fresh)]
    schedule = make_schedule("poly", 0.001, 600)
    step = parallel.compile_train_step(make_train_step(model, tx, schedule=schedule))
    image, label = batch(system, work)
    variables = fresh.variables()
    segmenter = Segmenter(model, variables)

    def forward(variables, pixels):
        return model.apply(variables, normalize(pixels, model.normalization)).logits

    costs = jax.jit(forward).lower(variables, image[:1]).cost_analysis()
    one_image = jax.device_put(image[:1])

    def train() -> None:
        for _ in range(work.repeat):
            # The step takes its batch over.
            device_batch = parallel.put_batch({"image": image, "label": label})
            state[0], metrics = step(state[0], device_batch)
        jax.block_until_ready(metrics)

    def infer() -> None:
        for _ in range(work.repeat * INFERENCES):
            result = segmenter.run_batch(one_image)
        jax.block_until_ready(result)

    def memory() -> int:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    facts = {
        "flops": costs["flops"],
        "parameters": int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))),
        "versions": {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
    }
    return train, infer, memory, facts


def peer_program(system: System, work: Workload):
    """Returns the same of the peer's."""
    import torch

    # Beside a CPU build of torch, torchvision's compiled operators may be absent. What is timed
    # does not use them, but importing the package needs their signatures.
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = system.peer(system.classes).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, weight_decay=1e-4)
    run = torch.compile(model) if cuda else model
    image, label = (torch.from_numpy(array).to(device) for array in batch(system, work))

    def logits(image):
        x = image.permute(0, 3, 1, 2).to(torch.float32)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            result = run(x)
        return (result["out"] if isinstance(result, dict) else result).float()

    def finish() -> None:
        if cuda:
            torch.cuda.synchronize()

    def train() -> None:
        model.train()
        for _ in range(work.repeat):
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(logits(image), label.long(), ignore_index=255)
            loss.backward()
            optimizer.step()
        finish()

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            for _ in range(work.repeat * INFERENCES):
                logits(image[:1]).argmax(1).to(torch.uint8)
        finish()

    def memory() -> int:
        return torch.cuda.max_memory_allocated() if cuda else 0

    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__},
    }
    return train, infer, memory, facts


PROGRAMS = {"flaxseg": flaxseg_program, "peer": peer_program}


def serve(program: str, system: System, work: Workload) -> None:
    """The child: runs what its standard input names, and answers with the seconds it took."""
    train, infer, memory, facts = PROGRAMS[program](system, work)
    runs = {"train": (train, work.repeat), "infer": (infer, work.repeat * INFERENCES)}
    for kind in work.kinds * 2:
        runs[kind][0]()
    print(json.dumps(facts | {"memory": memory()}), flush=True)
    for line in sys.stdin:
        run, count = runs[line.strip()]
        began = time.perf_counter()
        run()
        print((time.perf_counter() - began) / count, flush=True)


def start(program: str, name: str, work: Workload) -> subprocess.Popen:
    command = [sys.executable, __file__, name, "--worker", program]
    for field, value in work._asdict().items():
        values = value if isinstance(value, tuple) else [value]
        command += [f"--{field}", *map(str, values)]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # Beside each other on a GPU, neither may take all memory at the start.
    extra = {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **extra},
    )


def compare(name: str, work: Workload, rounds: int, alone: bool) -> dict:
    """Runs both programs in turns; returns the figures of a system."""
    system = SYSTEMS[name]
    programs = ["flaxseg"] if alone or system.peer is None else ["flaxseg", "peer"]
    children, facts = {}, {}
    for program in programs:
        children[program] = start(program, name, work)
        line = children[program].stdout.readline()
        if not line:
            sys.exit(f"{program} of {name} ended before its first answer; see its words above.")
        facts[program] = json.loads(line)
    times = {(program, kind): [] for program in programs for kind in work.kinds}
    for _ in range(rounds):
        for (program, kind), seconds in times.items():
            child = children[program]
            child.stdin.write(kind + "\n")
            child.stdin.flush()
            seconds.append(float(child.stdout.readline()))
    for child in children.values():
        child.stdin.close()
        child.wait()
    device = facts["flaxseg"]["versions"]["device"]
    peak = next((value for key, value in PEAKS.items() if key in device), None)
    row = {"system": name, "size": sizes(system, work), "batch": work.batch, "facts": facts}
    for kind in work.kinds:
        count, factor = (work.batch, 3) if kind == "train" else (1, 1)
        medians = {program: statistics.median(times[program, kind]) for program in programs}
        flops = factor * count * facts["flaxseg"]["flops"]
        row[kind] = {
            program: {
                "seconds": seconds,
                "images_per_second": count / seconds,
                "flops_per_second": flops / seconds,
                "mfu": peak and flops / seconds / peak,
            }
            for program, seconds in medians.items()
        }
        if "peer" in medians:
            row[kind]["speed_over_peer"] = medians["peer"] / medians["flaxseg"]
    return row


def describe(row: dict) -> list[str]:
    """A line for training and one for inference, where they were timed."""
    lines = []
    for kind in (kind for kind in KINDS if kind in row):
        text = f"{row['system']:<34}{kind:<7}"
        count = row["batch"] if kind == "train" else 1
        text += f"{f'{count} x ' + ' x '.join(map(str, row['size'])):<18}"
        for program in PROGRAMS:
            figures = row[kind].get(program)
            if figures is None:
                text += f"{'-':>30}"
                continue
            speed = f"{figures['flops_per_second'] / 1e9:.0f} GF/s"
            if figures["mfu"]:
                speed = f"MFU {100 * figures['mfu']:.1f} %"
            text += f"{figures['seconds']:>10.4f} s {speed:>18}"
        ratio = row[kind].get("speed_over_peer")
        lines.append(text + (f"{ratio:>8.2f}" if ratio else f"{'-':>8}"))
    return lines


def chart(rows: list[dict]) -> str:
    """Our speed over the peer's as bars, in SVG."""
    bars = [
        (f"{row['system']}, {kind}", row[kind]["speed_over_peer"])
        for row in rows
        for kind in KINDS
        if "speed_over_peer" in row.get(kind, {})
    ]
    left, unit, height = 330, 240, 22
    width = int(left + unit * max([1.2, *(ratio for _, ratio in bars)]) + 60)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
        f'height="{height * len(bars) + 40}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, (text, ratio) in enumerate(bars):
        y = 8 + height * index
        parts += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{text}</text>',
            f'<rect x="{left}" y="{y}" width="{unit * ratio:.0f}" height="{height - 5}" '
            f'fill="{"#2a7f62" if ratio >= 1 else "#c77d2e"}"/>',
            f'<text x="{left + unit * ratio + 6:.0f}" y="{y + 14}">{ratio:.2f}</text>',
        ]
    bottom = 8 + height * len(bars)
    parts += [
        f'<line x1="{left + unit}" y1="4" x2="{left + unit}" y2="{bottom}" stroke="black"/>',
        f'<text x="{left + unit}" y="{bottom + 16}" text-anchor="middle">as fast as PyTorch</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Compares the systems that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--batch", type=int, help="of a training step; an inference has 1")
    parser.add_argument("--size", type=int, help="height and width")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="both by default")
    parser.add_argument("--repeat", type=int, help="training steps that are timed together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--chart", default="", help="file for a chart of the ratios, SVG")
    parser.add_argument("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.systems) - set(SYSTEMS))
    if unknown:
        parser.error(f"there is no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    given = {field: getattr(arguments, field) for field in Workload._fields}
    given = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in given.items()
        if value is not None
    }
    if arguments.worker:
        serve(arguments.worker, SYSTEMS[arguments.systems[0]], Workload(**given))
        return
    has_gpu = os.path.exists("/dev/nvidiactl")
    work = (GPU if has_gpu else CPU)._replace(**given)
    print(f"{'':<59}{'flaxseg':>30}{'peer':>30}{'ratio':>8}")
    rows = []
    for name in arguments.systems or SYSTEMS:
        rows.append(compare(name, work, arguments.rounds, arguments.alone))
        print("\n".join(describe(rows[-1])), flush=True)
    if arguments.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        with open(arguments.json, "w") as file:
            json.dump({"machine": machine, "rows": rows}, file, indent=2)
    if arguments.chart:
        with open(arguments.chart, "w") as file:
            file.write(chart(rows))


if __name__ == "__main__":
    main()
