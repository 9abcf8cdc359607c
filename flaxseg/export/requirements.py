"""Packages that only some exports need."""

import importlib

from flaxseg.errors import ExportError

# jax2onnx pins an older orbax-checkpoint than training needs and does not use it for this, so pip
# must be told not to resolve what it asks for.
INSTALL_ONNX = 'pip install "flaxseg[onnx]" && pip install --no-deps "jax2onnx==0.17.*"'


def require(package: str, what: str, install: str | None = None):
    """Imports a package.

    Raises:
      ExportError: it is not there; says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            f"the export to {what} needs {package}, which cannot be imported ({error}): "
            f"{install or f'pip install {package}'}"
        ) from error
