"""Learns what the masks of each class look like nearby, from the labels alone.

(Ghiasi and Fowlkes, "Laplacian Pyramid Reconstruction and Refinement for Semantic Segmentation",
2016; scales and sizes are those of the released code.) `LearnedBasisDeconv` upsamples with them.
"""

from flaxseg.data.label_bases.components import SCALES, LabelBases, learn_bases
from flaxseg.data.label_bases.patches import LabelPatches, sample_patches
from flaxseg.data.label_bases.reconstruction import Reconstruction, measure_reconstruction

__all__ = [
    "SCALES",
    "LabelBases",
    "LabelPatches",
    "Reconstruction",
    "learn_bases",
    "measure_reconstruction",
    "sample_patches",
]
