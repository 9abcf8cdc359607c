"""Times each layer that has several forms in all of them, and PyTorch's, side by side.

    python benchmarks/layers.py                          # all layers
    python benchmarks/layers.py atrous_d12 resize_x8 --rounds 9 --json layers.json
    python benchmarks/layers.py --dtype bfloat16         # on a GPU

The forms take turns in one process on the same arrays, and their results are compared first.
Prints the median milliseconds of the layer alone and, where it has one, of its gradient (which the
compiler frees from what only the value needs). `native` is what XLA has of its own, `products` what
flaxseg takes on a CPU and `phases` on a GPU; see `flaxseg.layers.preferred_form`. PyTorch runs
channels-last, on a GPU where JAX does and it sees one; without `pip install torch` its column stays
empty.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxseg.host_memory import keep_freed_memory
from flaxseg.layers import (
    adaptive_average_pool,
    atrous_conv,
    depthwise_conv,
    largest_class,
    line_conv,
    max_pool,
    resize,
    transposed_conv,
)

FORMS = ("native", "products", "phases")
# Of an image [N, H, W, C] and, where the layer has one, its kernel.
Form = Callable[..., jax.Array]


class Case(NamedTuple):
    """A layer at one size: shapes of its arguments, and functions of these."""

    shapes: tuple[tuple[int, ...], ...]
    forms: Mapping[str, Form]
    torch: Callable | None
    gradient: bool = True


def conv_case(shape, features: int, kernel=(3, 3), rate: int = 1) -> Case:
    def torch_form(x, k):
        import torch

        pads = [rate * (side // 2) for side in kernel]
        return torch.nn.functional.conv2d(x, k, padding=pads, dilation=rate)

    lines = 1 in kernel and max(kernel) > 1
    layer = line_conv if lines else atrous_conv
    forms = {form: lambda x, k, form=form: layer(x, k, rate=rate, form=form) for form in FORMS}
    return Case((shape, (*kernel, shape[3], features)), forms, torch_form)


def depthwise_case(shape, rate: int = 1, strides: int = 1) -> Case:
    def torch_form(x, k):
        import torch

        return torch.nn.functional.conv2d(
            x, k, stride=strides, padding=rate, dilation=rate, groups=shape[3]
        )

    forms = {
        form: lambda x, k, form=form: depthwise_conv(x, k, strides=strides, rate=rate, form=form)
        for form in FORMS
    }
    return Case((shape, (3, 3, 1, shape[3])), forms, torch_form)


def deconv_case(shape, features: int, factor: int) -> Case:
    def native(x, k):
        pads = [(k.shape[0] - 1,) * 2] * 2
        return lax.conv_general_dilated(
            x,
            k[::-1, ::-1],
            (1, 1),
            pads,
            lhs_dilation=(factor, factor),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def torch_form(x, k):
        import torch

        return torch.nn.functional.conv_transpose2d(x, k.transpose(0, 1), stride=factor)

    ours = {
        form: lambda x, k, form=form: transposed_conv(x, k, factor, form=form)
        for form in ("products", "phases")
    }
    forms = {"native": native, **ours}
    return Case((shape, (2 * factor, 2 * factor, shape[3], features)), forms, torch_form)


def max_pool_case(shape) -> Case:
    def native(x):
        window, strides, pads = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads)

    def torch_form(x):
        import torch

        return torch.nn.functional.max_pool2d(x, 3, 2, 1)

    ours = {"products": lambda x: max_pool(x, 3, strides=2, padding="torch")}
    return Case((shape,), {"native": native, **ours}, torch_form)


def average_pool_case(shape, bins: int) -> Case:
    def native(x):
        edges = [(i * n // bins, -(-(i + 1) * n // bins)) for n in shape[1:3] for i in range(bins)]
        rows, columns = edges[:bins], edges[bins:]
        return jnp.stack(
            [jnp.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in columns], axis=1) for a, b in rows],
            axis=1,
        )

    def torch_form(x):
        import torch

        return torch.nn.functional.adaptive_avg_pool2d(x, bins)

    forms = {"native": native, "products": lambda x: adaptive_average_pool(x, bins)}
    return Case((shape,), forms, torch_form)


def resize_case(shape, size: int, align_corners: bool) -> Case:
    def torch_form(x):
        import torch

        return torch.nn.functional.interpolate(
            x, (size, size), mode="bilinear", align_corners=align_corners
        )

    forms = {
        form: lambda x, form=form: resize(x, (size, size), align_corners=align_corners, form=form)
        for form in FORMS
    }
    return Case((shape,), forms, torch_form)


def classes_case(shape, size: int) -> Case:
    """Logits at the image's size and the class of each pixel: the end of every prediction."""

    def torch_form(x):
        import torch

        y = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=True)
        return y.argmax(1, keepdim=True)

    def ours(x, form: str):
        logits = resize(x, (size, size), align_corners=True, form=form)
        return largest_class(logits, form=form)[..., None]

    forms = {form: lambda x, form=form: ours(x, form) for form in FORMS}
    return Case((shape,), forms, torch_form, gradient=False)


def cases(shrink: int) -> dict[str, Case]:
    """By name; all numbers of cells and channels divided by `shrink`."""

    def s(*shape: int) -> tuple[int, ...]:
        return (shape[0], *(max(3, n // shrink) for n in shape[1:]))

    def c(channels: int) -> int:
        return max(2, channels // shrink)

    return {
        "pointwise": conv_case(s(2, 33, 33, 2048), c(512), (1, 1)),
        "dense_3x3": conv_case(s(2, 33, 33, 256), c(256)),
        "atrous_d4": conv_case(s(2, 33, 33, 512), c(512), rate=4),
        "atrous_d12": conv_case(s(2, 33, 33, 2048), c(256), rate=12),
        "atrous_d24": conv_case(s(1, 65, 65, 2048), c(256), rate=24),
        "line_15": conv_case(s(2, 16, 16, 2048), 21, (15, 1)),
        "depthwise": depthwise_case(s(2, 64, 64, 256)),
        "depthwise_stride2": depthwise_case(s(2, 128, 128, 96), strides=2),
        "depthwise_d12": depthwise_case(s(2, 33, 33, 320), rate=12),
        "deconv_x8": deconv_case((1, *s(2, 33, 33, 21)[1:]), 21, 8),
        "max_pool": max_pool_case(s(2, 129, 129, 64)),
        "pyramid_pool_6": average_pool_case(s(2, 60, 60, 2048), 6),
        "resize_x8": resize_case((1, *s(2, 65, 65, 21)[1:]), c(513), True),
        "resize_x4": resize_case((1, *s(2, 128, 128, 21)[1:]), c(512), False),
        "resize_and_class": classes_case((1, *s(2, 65, 65, 21)[1:]), c(513)),
    }


def jax_programs(form: Form, arrays, weight, dtype: str) -> list[Callable[[], object]]:
    """The value and, with a weight of the output, the gradient of all arguments."""
    arrays = [jnp.asarray(array, dtype) for array in arrays]
    value = jax.jit(form)
    programs = [lambda: jax.block_until_ready(value(*arrays))]
    if weight is not None:
        weight = jnp.asarray(weight, dtype)
        gradient = jax.jit(lambda g, *a: jax.vjp(form, *a)[1](g))
        programs.append(lambda: jax.block_until_ready(gradient(weight, *arrays)))
    return programs


def torch_programs(form: Callable, arrays, weight, dtype: str) -> list[Callable[[], object]]:
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    to = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, dtype)}
    image, *kernels = (torch.from_numpy(array).to(**to) for array in arrays)
    tensors = [image.permute(0, 3, 1, 2), *(k.permute(3, 2, 0, 1) for k in kernels)]

    def finish(result):
        if on_gpu:
            torch.cuda.synchronize()
        return result

    def value():
        with torch.inference_mode():
            return finish(form(*tensors).permute(0, 2, 3, 1))

    if weight is None:
        return [value]
    weight = torch.from_numpy(weight).to(**to).permute(0, 3, 1, 2)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = form(*leaves)
    return [value, lambda: finish(torch.autograd.grad(result, leaves, weight, retain_graph=True))]


def as_numpy(result) -> np.ndarray:
    """Of either library, float32."""
    return (
        np.asarray(result, np.float32)
        if isinstance(result, jax.Array)
        else result.float().cpu().numpy()
    )


def measure(case: Case, rounds: int, with_torch: bool, dtype: str) -> dict[str, list[float]]:
    """Median milliseconds of each form, of the value and of the gradient."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in case.shapes]
    wanted = np.asarray(jax.jit(case.forms["native"])(*arrays), np.float32)
    precision = (1e-4 if dtype == "float32" else 5e-2) * np.abs(wanted).max()
    weight = rng.normal(size=wanted.shape).astype(np.float32) if case.gradient else None
    programs = {
        name: jax_programs(form, arrays, weight, dtype) for name, form in case.forms.items()
    }
    if with_torch and case.torch:
        programs["torch"] = torch_programs(case.torch, arrays, weight, dtype)
    for name, (value, *_) in programs.items():
        wrong = np.abs(as_numpy(value()) - wanted) > precision
        # Of two classes that are nearly equal, rounding decides.
        if wrong.mean() > (0 if case.gradient else 1e-4 if dtype == "float32" else 0.1):
            raise SystemExit(f"{name} has another result than native at {wrong.sum()} places")
    times = {(name, i): [] for name, own in programs.items() for i in range(len(own))}
    for turn in range(rounds + 1):
        for (name, i), taken in times.items():
            began = time.perf_counter()
            programs[name][i]()
            if turn:  # the first compiles
                taken.append(1e3 * (time.perf_counter() - began))
    return {
        name: [statistics.median(times[name, i]) for i in range(len(own))]
        for name, own in programs.items()
    }


def main() -> None:
    """Measures the layers that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layers", nargs="*", help=f"of {', '.join(cases(1))}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shrink", type=int, default=1, help="divides cells and channels")
    parser.add_argument("--json", default="", help="file for the results")
    arguments = parser.parse_args()
    known = cases(arguments.shrink)
    unknown = sorted(set(arguments.layers) - set(known))
    if unknown:
        parser.error(f"there is no layer {', '.join(unknown)}; there are {', '.join(known)}")
    keep_freed_memory()
    with_torch = importlib.util.find_spec("torch") is not None
    columns = (*FORMS, "torch")
    print(f"{'value, gradient in ms':<24}" + "".join(f"{name:>20}" for name in columns))
    rows = []
    for name in arguments.layers or known:
        figures = measure(known[name], arguments.rounds, with_torch, arguments.dtype)
        rows.append({"layer": name, "shapes": known[name].shapes, "milliseconds": figures})
        cells = (" ".join(f"{ms:9.2f}" for ms in figures.get(key, ())) for key in columns)
        print(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    if arguments.json:
        report = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "dtype": arguments.dtype,
            "rows": rows,
        }
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
