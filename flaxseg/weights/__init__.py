"""Reads weights from elsewhere without running code from files, and reports what was loaded.

`load_backbone` puts ImageNet weights into a model's backbone, `load_pretrained` and `import_model`
take whole segmentation networks, `load_into` starts from another model that flaxseg saved.
"""

from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.bases_file import load_bases, read_bases
from flaxseg.weights.load import load_backbone, load_into, load_weights
from flaxseg.weights.load_report import LoadReport
from flaxseg.weights.name_map import NameMap
from flaxseg.weights.pretrained import (
    Pretrained,
    import_model,
    load_pretrained,
    read_pretrained,
)
from flaxseg.weights.pruning import Channels, icnet_channels, prune_channels, prune_model
from flaxseg.weights.sources import HUB_WEIGHTS, find_source, list_hub_weights
from flaxseg.weights.tensor_files import read_tensors
from flaxseg.weights.torch_file import read_torch_file

__all__ = [
    "HUB_WEIGHTS",
    "NAME_MAPS",
    "Channels",
    "LoadReport",
    "NameMap",
    "Pretrained",
    "find_source",
    "icnet_channels",
    "import_model",
    "list_hub_weights",
    "load_backbone",
    "load_bases",
    "load_into",
    "load_pretrained",
    "load_weights",
    "prune_channels",
    "prune_model",
    "read_bases",
    "read_pretrained",
    "read_tensors",
    "read_torch_file",
]
