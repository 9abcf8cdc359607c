"""How long the imports take, as ratios to that of Flax, in fresh processes that take turns.

python benchmarks/import_time.py --rounds 7
"""

import argparse
import statistics
import subprocess
import sys
import time

MODULES = (
    "flax",
    "jax",
    "flaxseg",
    "flaxseg.layers",
    "flaxseg.models",
    "flaxseg.crf",
    "flaxseg.training.config",
    "flaxseg.evaluation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    seconds = {module: [] for module in MODULES}
    for _ in range(args.rounds):
        for module in MODULES:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            seconds[module].append(time.perf_counter() - began)
    bare = statistics.median(seconds["flax"])
    for module, times in seconds.items():
        middle = statistics.median(times)
        print(f"{module:26s} {middle:6.2f} s  {middle / bare:5.2f} of flax")


if __name__ == "__main__":
    main()
