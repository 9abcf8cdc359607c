"""Times the reconstruction by learned bases against XLA's grouped transposed convolution and
PyTorch's, side by side.

    python benchmarks/learned_basis.py --cells 48 --classes 21 --rounds 5

The three take turns in one process, so that whatever else the machine does meets all of them, on
the same arrays; their results are compared first. Prints the median milliseconds of a forward pass
and of one with its gradient, and how many times as long as ours the others take. `--json FILE`
writes them with versions and machine. XLA's form is left out where it would take minutes
(`--no-xla`).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.layers import learned_basis_deconv

BASES, SIZE, STRIDES = 10, 8, 4


def grouped(x: jax.Array, kernel: jax.Array, classes: int) -> jax.Array:
    """The transposed convolution as XLA has it: a dilated input and a group per class."""
    kernel = kernel.reshape(SIZE, SIZE, classes, -1).transpose(0, 1, 3, 2)[::-1, ::-1]
    pad = SIZE - 1 - (SIZE - STRIDES) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(pad, pad), (pad, pad)],
        lhs_dilation=(STRIDES, STRIDES),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=classes,
    )


def jax_programs(form: Callable, x, kernel, weight, classes: int) -> tuple[Callable, Callable]:
    """A forward pass, and one with the gradient of both arguments."""
    forward = jax.jit(lambda x, k: form(x, k, classes))
    both = jax.jit(lambda x, k, g: jax.vjp(lambda *a: form(*a, classes), x, k)[1](g))
    return (
        lambda: np.asarray(forward(x, kernel)),
        lambda: jax.block_until_ready(both(x, kernel, weight)),
    )


def torch_programs(x, kernel, weight, classes: int) -> tuple[Callable, Callable]:
    """The same in PyTorch."""
    import torch

    x = torch.tensor(np.ascontiguousarray(np.moveaxis(x, 3, 1)), requires_grad=True)
    kernel = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    weight = torch.tensor(np.ascontiguousarray(np.moveaxis(weight, 3, 1)))

    def run():
        crop = (SIZE - STRIDES) // 2
        return torch.nn.functional.conv_transpose2d(
            x, kernel, stride=STRIDES, padding=crop, groups=classes
        )

    def forward() -> np.ndarray:
        with torch.no_grad():
            return np.moveaxis(run().numpy(), 1, 3)

    return forward, lambda: torch.autograd.grad(run(), (x, kernel), weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--cells", type=int, default=24, help="rows and columns of coefficients")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-xla", action="store_true", help="leave XLA's form out")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (args.batch, args.cells, args.cells, args.classes * BASES)
    x = rng.normal(size=shape).astype(np.float32)
    kernel = rng.normal(size=(SIZE, SIZE, 1, shape[3])).astype(np.float32)
    side = STRIDES * args.cells
    weight = rng.normal(size=(args.batch, side, side, args.classes)).astype(np.float32)
    arrays = [jnp.asarray(a) for a in (x, kernel, weight)]
    programs = {"ours": jax_programs(learned_basis_deconv, *arrays, args.classes)}
    programs["torch"] = torch_programs(x, kernel, weight, args.classes)
    if not args.no_xla:
        programs["xla"] = jax_programs(grouped, *arrays, args.classes)

    wanted = programs["torch"][0]()
    for forward, both in programs.values():
        np.testing.assert_allclose(forward(), wanted, atol=1e-4 * np.abs(wanted).max())
        both()
    times = {name: ([], []) for name in programs}
    for _ in range(args.rounds):
        for name, pair in programs.items():
            for program, taken in zip(pair, times[name], strict=True):
                start = time.perf_counter()
                program()
                taken.append(1e3 * (time.perf_counter() - start))

    report = {"shape": shape, "jax": jax.__version__, "machine": platform.processor()}
    report["device"] = jax.devices()[0].device_kind
    ours = [statistics.median(taken) for taken in times["ours"]]
    for name, pair in times.items():
        medians = [statistics.median(taken) for taken in pair]
        report[name] = {"forward_ms": medians[0], "with_gradient_ms": medians[1]}
        ratios = [theirs / own for theirs, own in zip(medians, ours, strict=True)]
        print(
            f"{name:6s} forward {medians[0]:8.2f} ms ({ratios[0]:6.1f} x)   "
            f"with gradient {medians[1]:8.2f} ms ({ratios[1]:6.1f} x)"
        )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
