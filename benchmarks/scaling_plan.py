"""Weak and strong scaling on paper, from what `benchmarks/mesh.py --json FILE` counted.

    python benchmarks/scaling_plan.py FILE [--share 0.25] [--reached 0.5] [--latency 1e-5]

Counted: floating-point operations of a device, bytes and numbers of collectives. Assumed: the share
of the peak that the arithmetic reaches, the share of the published bandwidths that collectives
reach, the time that each of them takes however little it sends, and that nothing overlaps.
"""

import argparse
import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Machine:
    """Published figures of a chip.

    Attributes:
      tflops: dense bfloat16, 10^12 operations a second.
      near: GB/s that a chip sends to others of its group.
      far: GB/s that a chip sends beyond its group.
      group: chips that are connected at `near`.
    """

    tflops: float
    near: float
    far: float
    group: int


MACHINES = {
    # 1600 Gb/s per chip over a torus of up to 256 (cloud.google.com/tpu/docs/v5e).
    "TPU v5e": Machine(197, 200, 200, 256),
    # DGX H100: NVLink 900 GB/s both ways together, one 400 Gb/s adapter per GPU (NVIDIA, DGX H100
    # user guide and H100 data sheet).
    "H100": Machine(989, 450, 50, 8),
}
CHIPS = (8, 16, 32, 64, 128, 256)
CHIPS_OF_A_HOST = 8  # the most that can share an image


def ring(size: float, chips: int, bandwidth: float) -> float:
    """Seconds that an all-reduce of `size` bytes takes in a ring."""
    return 2 * (chips - 1) / chips * size / bandwidth


def all_reduce(size: float, chips: int, machine: Machine, reached: float) -> float:
    """Seconds, within groups first; of what is left, each chip of a group sends its part on."""
    near = min(chips, machine.group)
    seconds = ring(size, near, machine.near * 1e9 * reached)
    if chips > near:
        seconds += ring(size / near, chips // near, machine.far * 1e9 * reached)
    return seconds


def step_seconds(
    counted: dict, data: int, images: float, machine: Machine, args: argparse.Namespace
) -> dict[str, float]:
    """Seconds of arithmetic and of each class of collectives in a step.

    Args:
      counted: the entry of `mesh.py` for the number of chips to an image; of one image.
      data: groups of chips, each with images of its own.
      images: per group.
    """
    space, sent, operations = counted["space"], counted["sent"], counted["operations"]
    near = machine.near * 1e9 * args.reached
    kernels = counted["parameters"]
    chips = data * space
    gradients = all_reduce(kernels, chips, machine, args.reached)
    if space > 1:  # XLA adds up over the chips of an image first, then over all
        gradients += ring(kernels, space, near)
    return {
        "arithmetic": images * counted["tflop"] / (machine.tflops * args.share),
        "gradients": gradients,
        "statistics": args.latency * operations.get("statistics", 0),
        "halos": images * sent.get("halos", 0) / near + args.latency * operations.get("halos", 0),
        "features": images * sent.get("features", 0) / near
        + args.latency * operations.get("features", 0),
    }


def table(rows: list[tuple[str, dict[str, float], float]]) -> str:
    """Times in ms, images a second, and the efficiency against the first row."""
    lines = [
        "| chips | mesh | arithmetic | gradients | statistics | halos | features | step "
        "| images/s | efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    per_chip = None
    for name, parts, images in rows:
        chips = int(name.split("|")[0])
        total = sum(parts.values())
        rate = images / total
        per_chip = per_chip or rate / chips
        cells = " | ".join(f"{1e3 * seconds:.1f}" for seconds in (*parts.values(), total))
        lines.append(f"| {name} | {cells} | {rate:,.0f} | {rate / chips / per_chip:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--share", type=float, default=0.25, help="of the peak arithmetic")
    parser.add_argument("--reached", type=float, default=0.5, help="of the bandwidths")
    parser.add_argument("--latency", type=float, default=1e-5, help="seconds per collective")
    parser.add_argument("--images", type=int, default=32, help="in a batch, strong scaling")
    args = parser.parse_args()
    with open(args.file, encoding="utf-8") as file:
        counted = {one["space"]: one for one in json.load(file)["results"]}
    largest = min(max(counted), CHIPS_OF_A_HOST)
    for name, machine in MACHINES.items():
        for space in (1, 2):
            print(f"\n{name}, weak: one image for every {space} chips\n")
            rows = []
            for chips in CHIPS:
                data = chips // space
                parts = step_seconds(counted[space], data, 1, machine, args)
                rows.append((f"{chips} | data={data},space={space}", parts, data))
            print(table(rows))
        print(f"\n{name}, strong: {args.images} images a step\n")
        rows = []
        for chips in CHIPS:
            data = min(chips, args.images)
            space = chips // data
            if space > largest:
                continue
            parts = step_seconds(counted[space], data, args.images / data, machine, args)
            rows.append((f"{chips} | data={data},space={space}", parts, args.images))
        print(table(rows))


if __name__ == "__main__":
    main()
