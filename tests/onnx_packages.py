"""The packages of ONNX, where they are installed."""

import pytest


def import_onnx():
    """Returns onnxruntime; the test is skipped where it, onnx or jax2onnx is not installed."""
    pytest.importorskip("onnx")
    pytest.importorskip("jax2onnx")
    return pytest.importorskip("onnxruntime")
