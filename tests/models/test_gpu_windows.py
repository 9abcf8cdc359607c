"""Convolutions of the models' gradients, as XLA finds them for a GPU: none with a window that only
an ordinary convolution would have, such as one as large as the feature map."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import flaxseg
from flaxseg.layers import traced_for

# The largest kernel of a network: one of 15 rows, in GCN.
LARGEST = 15

# What the quick tests trace: dilated and transposed kernels.
LIGHT = {"deeplabv3": {"backbone": "resnet18"}, "gcn": {"backbone": "resnet18"}}

H100 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
registers_per_block_limit: 65536 } runtime_version: { major: 12 minor: 9 patch: 0 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3" """

# Compiles the gradients of layers for that GPU, which need not be there, and prints their programs.
COMPILE = """
import sys
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from flaxseg.layers import atrous_conv, depthwise_conv, traced_for, transposed_conv

topology = topologies.get_topology_desc("h100", "cuda", target_config=sys.argv[1], topology="1x1x1")
here = jax.sharding.SingleDeviceSharding(topology.devices[0])
image = (2, 40, 40, 16)
for layer, kernel in (
    (partial(atrous_conv, rate=2), (3, 3, 16, 24)),
    (partial(atrous_conv, rate=18), (3, 3, 16, 24)),
    (partial(atrous_conv, rate=2, strides=2), (3, 3, 16, 24)),
    (partial(atrous_conv, padding=50), (3, 3, 16, 24)),
    (partial(depthwise_conv, rate=2), (3, 3, 1, 16)),
    (partial(transposed_conv, strides=2), (4, 4, 16, 24)),
    (partial(transposed_conv, strides=2), (2, 2, 16, 24)),
):
    x, k = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here) for shape in (image, kernel))
    with traced_for(topology.devices[0].platform):
        gradient = jax.jit(lambda x, k: jax.vjp(layer, x, k)[1](jnp.cos(layer(x, k))))
        print(gradient.lower(x, k).compile().as_text())
"""


def equations(jaxpr):
    """Yields the equations of a program, those of its parts too."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(part, "eqns"):
                yield from equations(getattr(part, "jaxpr", part))


def large_windows(program):
    """Returns the convolutions with a large window that XLA does not recognise as the gradient of a
    kernel: its outputs are taps side by side, and it has no more of them than the input has."""
    found = []
    for equation in equations(program.jaxpr):
        if equation.primitive.name != "conv_general_dilated":
            continue
        image, window = (variable.aval.shape for variable in equation.invars)
        options = equation.params
        numbers = options["dimension_numbers"]
        cells = [image[axis] for axis in numbers.lhs_spec[2:]]
        size = [window[axis] for axis in numbers.rhs_spec[2:]]
        reach = [d * (n - 1) + 1 for n, d in zip(size, options["rhs_dilation"], strict=True)]
        recognised = (
            set(options["window_strides"]) == {1}
            and set(options["lhs_dilation"]) == {1}
            and all(n <= m for n, m in zip(reach, cells, strict=True))
        )
        if max(size) > LARGEST and not recognised:
            found.append((image, window, options["window_strides"], options["padding"]))
    return found


def gradient_program(name, size, options, platform):
    model = flaxseg.create_model(name, num_classes=21, **options)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(lambda x: model.init(keys, x), image)

    def loss(params, rest, x):
        outputs, _ = model.apply(
            {"params": params, **rest},
            x,
            train=True,
            rngs={"dropout": keys["dropout"]},
            mutable=["batch_stats"],
        )
        leaves = (
            leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)
        )
        return sum(leaf.astype(jnp.float32).sum() for leaf in leaves)

    rest = {key: value for key, value in variables.items() if key != "params"}
    with traced_for(platform):
        return jax.make_jaxpr(jax.grad(loss))(variables["params"], rest, image)


@pytest.mark.parametrize(
    "name",
    [
        name if name in LIGHT else pytest.param(name, marks=pytest.mark.slow)
        for name in flaxseg.list_models()
    ],
)
def test_gradients_for_a_gpu_have_no_window_that_the_network_has_not(name):
    size = (384, 384)
    program = gradient_program(name, size, LIGHT.get(name, {}), "gpu")
    assert large_windows(program) == []


def test_xlas_own_gradient_of_a_dilated_kernel_has_a_window_of_the_feature_map():
    program = gradient_program("deeplabv3", (384, 384), LIGHT["deeplabv3"], "tpu")
    assert {window[:2] for _, window, *_ in large_windows(program)}


@pytest.mark.peer
def test_programs_that_are_compiled_for_a_gpu_have_no_such_window():
    pytest.importorskip("jax_cuda12_plugin")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu,cuda",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false",
    }
    command = [sys.executable, "-c", COMPILE, H100]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    convolutions = re.findall(r"window=\{size=(\d+)x(\d+).*__cudnn\$conv(\w+)", done.stdout)
    assert {kind for *_, kind in convolutions} >= {"Forward", "BackwardInput", "BackwardFilter"}
    assert max(int(side) for *size, _ in convolutions for side in size) <= LARGEST
