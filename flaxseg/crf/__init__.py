"""The dense CRF: mean-field inference between all pairs of pixels of an image.

Usable alone: JAX and Flax, nothing else of the package.
"""

from flaxseg.crf.crf_rnn import CrfRnn
from flaxseg.crf.filters import make_filter
from flaxseg.crf.kernels import (
    NORMALIZATIONS,
    PRESETS,
    BilateralKernel,
    CrfPreset,
    GaussianKernel,
    crf_preset,
)
from flaxseg.crf.lattice import Lattice, build_lattice, lattice_filter, scale_lattice
from flaxseg.crf.mean_field import dense_crf, mean_field
from flaxseg.crf.unary import unary_from_labels, unary_from_probabilities

__all__ = [
    "NORMALIZATIONS",
    "PRESETS",
    "BilateralKernel",
    "CrfPreset",
    "CrfRnn",
    "GaussianKernel",
    "Lattice",
    "build_lattice",
    "crf_preset",
    "dense_crf",
    "lattice_filter",
    "make_filter",
    "mean_field",
    "scale_lattice",
    "unary_from_labels",
    "unary_from_probabilities",
]
