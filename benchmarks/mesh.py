"""What one device holds, and what devices send each other in a training step, by how many share a
image.

    python benchmarks/mesh.py --model deeplabv3plus --backbone resnet50 --size 1024,2048 \
        --space 1,2,4,8 --markdown

The step is compiled and never run, so that virtual CPU devices do for any number and any size;
convolutions have the form of accelerators. Memory is XLA's own account of the compiled program
(`compiled.memory_analysis()`); what is sent is read out of its HLO:

* gradients: the all-reduced sums that have a kernel's shape;
* statistics: those of one number a channel or less: BatchNorm's, their gradients, biases, the loss;
* halos: collective-permute, rows sent to a neighbour;
* features: everything else, such as the few rows that are made whole before a resizing.

Bytes are those of the results on one device. A collective inside a loop is counted once.
"""

import argparse
import collections
import json
import math
import re
import time

DATA = 2  # images go to two groups of devices, so that what these send each other is seen too
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COLLECTIVE = re.compile(
    r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>.*?) (?P<kind>all-gather|all-reduce|reduce-scatter|"
    r"collective-permute|all-to-all)(?P<start>-start)?\("
)


def collectives(text: str, kernel_shapes: set[tuple[int, ...]]) -> list[dict]:
    """The collectives of a compiled program: kind, class, shape, bytes and where they come from."""
    found = []
    for number, line in enumerate(text.splitlines()):
        match = _COLLECTIVE.match(line)
        if not match:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        results = re.findall(r"(\w+)\[([\d,]*)\]", match["result"])
        if match["start"] and match["kind"] != "all-reduce":
            results = results[1:2]  # (operand, result, ...)
        for dtype, sizes in results:
            shape = tuple(int(n) for n in sizes.split(",")) if sizes else ()
            found.append(
                {
                    "line": number,
                    "kind": match["kind"],
                    "class": _class(match["kind"], shape, kernel_shapes),
                    "shape": shape,
                    "bytes": math.prod(shape) * _BYTES.get(dtype, 4),
                    "from": name.group(1) if name else "",
                }
            )
    return found


def _class(kind: str, shape: tuple[int, ...], kernel_shapes: set[tuple[int, ...]]) -> str:
    if kind == "collective-permute":
        return "halos"
    if kind == "all-reduce" and len([n for n in shape if n > 1]) <= 1:
        return "statistics"
    # The compiler drops, adds and reorders sides of length 1, and reorders the others.
    squeezed = tuple(sorted(n for n in shape if n > 1))
    return "gradients" if squeezed in kernel_shapes else "features"


def measure(args: argparse.Namespace, space: int) -> dict:
    """Compiles the step with `space` devices to an image."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import flaxseg
    from flaxseg.layers import convolution_form
    from flaxseg.training.optimizer import make_optimizer
    from flaxseg.training.parallel import make_parallel
    from flaxseg.training.schedules import make_schedule
    from flaxseg.training.state import create_state
    from flaxseg.training.step import make_train_step

    height, width = args.size
    devices = jax.devices()[: DATA * space]
    parallel = make_parallel("jit", devices, mesh={"data": DATA, "space": space})
    model = flaxseg.create_model(
        args.model, args.classes, backbone=args.backbone, dtype=jnp.dtype(args.dtype)
    )
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    )
    tx = make_optimizer(shapes["params"])
    state = jax.eval_shape(lambda: create_state(model, tx, 0, (height, width)))
    step = make_train_step(model, tx, schedule=make_schedule("poly", 0.01, 100))
    rows = DATA * args.batch
    batch = {
        "image": jax.ShapeDtypeStruct((rows, height, width, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((rows, height, width), np.uint8),
    }
    began = time.perf_counter()
    with convolution_form("native"):
        compiled = parallel.compile_train_step(step).lower(state, batch).compile()
    seconds = time.perf_counter() - began
    kernels = {
        tuple(sorted(n for n in leaf.shape if n > 1)) for leaf in jax.tree.leaves(state.params)
    }
    text = compiled.as_text()
    if args.hlo:
        with open(f"{args.hlo}.space{space}.txt", "w", encoding="utf-8") as file:
            file.write(text)
    sent = collectives(text, kernels)
    memory = compiled.memory_analysis()
    sums = collections.Counter()
    for one in sent:
        sums[one["class"]] += one["bytes"]
    features = [one for one in sent if one["class"] == "features"]
    largest = max(features, key=lambda one: one["bytes"], default=None)
    return {
        "space": space,
        "data": DATA,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "parameters": sum(4 * leaf.size for leaf in jax.tree.leaves(state.params)),
        "tflop": compiled.cost_analysis().get("flops", math.nan) / 1e12,
        "sent": dict(sums),
        "operations": {
            name: len({one["line"] for one in sent if one["class"] == name}) for name in sums
        },
        "largest_features": largest,
        "compile_seconds": seconds,
    }


def table(results: list[dict]) -> str:
    """Memory and what is sent, in MiB per device."""
    lines = [
        "| space | memory of the step | against 1 | gradients | statistics | halos | features | "
        "largest of these |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = results[0]["temporary"]
    for one in results:
        sent = {name: f"{size / 2**20:.1f}" for name, size in one["sent"].items()}
        largest = one["largest_features"]["bytes"] if one["largest_features"] else 0
        lines.append(
            f"| {one['space']} | {one['temporary'] / 2**20:,.0f} | {one['temporary'] / first:.2f} "
            + "".join(
                f"| {sent.get(name, '0')} "
                for name in ("gradients", "statistics", "halos", "features")
            )
            + f"| {largest / 2**20:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="deeplabv3plus")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--size", type=_integers, default=(1024, 2048), help="HEIGHT,WIDTH")
    parser.add_argument("--batch", type=int, default=1, help="images to a group of devices")
    parser.add_argument("--space", type=_integers, default=(1, 2, 4, 8))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hlo", default="", help="beginning of the files to write the HLO to")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", help="file to write the results to")
    args = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DATA * max(args.space))
    results = []
    for space in args.space:
        results.append(measure(args, space))
        if not args.markdown:
            print(json.dumps(results[-1]), flush=True)
    if args.markdown:
        print(table(results))
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"settings": settings, "jax": jax.__version__, "results": results}, file)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
