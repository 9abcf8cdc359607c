"""Defines the pairwise terms of a dense CRF, and published sets of them by name."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

NORMALIZATIONS = ("symmetric", "before", "after", "none")

Number = float | jax.Array | np.ndarray


@flax.struct.dataclass
class GaussianKernel:
    """Describes smoothness: `k(i, j) = exp(-|p_i - p_j|^2 / (2 sigma^2))` of the positions of two
    pixels.

    Attributes:
      sigma: standard deviation in pixels, or (along x, along y).
      compat: what the two pixels' labels cost. A number w is the Potts model, the reward w for
        equal labels; `[C]` the cost of equal labels by class; `[C, C]` the cost of each pair, of
        which the symmetric part is taken. So w, `-w * ones(C)` and `-w * eye(C)` are the same.
      normalization: of the kernel K by its sums n = K 1: `"symmetric"` n^-1/2 K n^-1/2, the default
        of pydensecrf; `"after"` K / n_i, an average over the others, in DeepLab's code of 2011;
        `"before"` K / n_j; `"none"`.
    """

    sigma: Number | Sequence[float] = 3.0
    compat: Number = 3.0
    normalization: str = flax.struct.field(pytree_node=False, default="symmetric")


@flax.struct.dataclass
class BilateralKernel:
    """Describes appearance: `exp(-|p_i - p_j|^2 / (2 sigma_xy^2) - |I_i - I_j|^2 / (2
    sigma_rgb^2))` of the positions and colours of two pixels.

    Attributes:
      sigma_xy: standard deviation in pixels, or (along x, along y).
      sigma_rgb: standard deviation in grey levels 0..255, or of each channel.
      compat: as in `GaussianKernel`.
      normalization: as in `GaussianKernel`.
    """

    sigma_xy: Number | Sequence[float] = 80.0
    sigma_rgb: Number | Sequence[float] = 13.0
    compat: Number = 10.0
    normalization: str = flax.struct.field(pytree_node=False, default="symmetric")


Kernel = GaussianKernel | BilateralKernel


class CrfPreset(NamedTuple):
    """Holds kernels and the number of iterations that they are used with."""

    kernels: tuple[Kernel, ...]
    iterations: int


def _deeplab(weight: float, sigma_xy: float, sigma_rgb: float, sigma: float = 3.0) -> CrfPreset:
    return CrfPreset(
        (
            GaussianKernel(sigma, 3.0, "after"),
            BilateralKernel(sigma_xy, sigma_rgb, weight, "after"),
        ),
        10,
    )


# DeepLab's numbers are those of the run scripts and of ports of the models; the row-wise
# normalisation is that of the code which they were tuned with. CRF-as-RNN: Zheng et al. 2015, the
# initial weights of the released network.
PRESETS = {
    "deeplab_v1_largefov": _deeplab(4.0, 121.0, 5.0),
    "deeplab_v2_vgg16": _deeplab(4.0, 49.0, 5.0),
    "deeplab_v2_resnet101": _deeplab(4.0, 67.0, 3.0, sigma=1.0),
    "pydensecrf_readme": CrfPreset((GaussianKernel(), BilateralKernel()), 5),
    "crfasrnn": CrfPreset(
        (GaussianKernel(3.0, 3.0, "after"), BilateralKernel(160.0, 3.0, 5.0, "after")), 10
    ),
}


def crf_preset(name: str) -> CrfPreset:
    """Returns the published parameters of that name; `PRESETS` lists them.

    >>> crf_preset("deeplab_v2_vgg16").kernels[1].sigma_xy
    49.0

    Raises:
      ValueError: there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(f"there is no CRF preset {name!r}; presets: {', '.join(PRESETS)}.")
    return PRESETS[name]


def check_kernel(kernel: Kernel, num_classes: int) -> None:
    """Raises ValueError or TypeError, naming the argument, unless the kernel can be used with that
    many classes. Traced values are not checked."""
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"kernels holds a {type(kernel).__name__}; give GaussianKernel or BilateralKernel."
        )
    if kernel.normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization is {kernel.normalization!r}; it must be one of "
            f"{', '.join(NORMALIZATIONS)}."
        )
    sigmas = {"sigma": 2} if isinstance(kernel, GaussianKernel) else {"sigma_xy": 2, "sigma_rgb": 3}
    for name, length in sigmas.items():
        sigma = getattr(kernel, name)
        if np.shape(sigma) not in ((), (length,)):
            raise ValueError(f"{name} is {sigma}; give one number, or {length}.")
        value = concrete(sigma)
        if value is not None and not (np.all(np.isfinite(value)) and np.all(value > 0)):
            raise ValueError(f"{name} is {sigma}; standard deviations must be above 0.")
    if np.shape(kernel.compat) not in ((), (num_classes,), (num_classes, num_classes)):
        raise ValueError(
            f"compat has shape {np.shape(kernel.compat)}; with {num_classes} classes give a "
            f"number, [{num_classes}] or [{num_classes}, {num_classes}]."
        )
    compat = concrete(kernel.compat)
    if compat is not None and not np.all(np.isfinite(compat)):
        raise ValueError("compat holds nan or infinite values; give finite ones.")


def is_traced(values: object) -> bool:
    """Returns whether there is a leaf whose numbers cannot be read because it is traced."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def concrete(value: object) -> np.ndarray | None:
    """Returns the numbers of a value, or None where it is traced."""
    return None if is_traced(value) else np.asarray(value)
