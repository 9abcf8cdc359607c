"""Trained models as files that run without flaxseg: StableHLO and ONNX."""

from flaxseg.export.batch_norm_folding import fold_batch_norm
from flaxseg.export.file_card import OUTPUTS
from flaxseg.export.onnx_file import export_onnx, read_onnx_card
from flaxseg.export.stablehlo import PLATFORMS, export_stablehlo, read_stablehlo_card

__all__ = [
    "OUTPUTS",
    "PLATFORMS",
    "export_onnx",
    "export_stablehlo",
    "fold_batch_norm",
    "read_onnx_card",
    "read_stablehlo_card",
]
