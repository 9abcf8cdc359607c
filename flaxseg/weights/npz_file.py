"""Reads `.npz` files in bounded memory.

`numpy.load` allocates what the header of an array states, before it looks at the data, and unpacks
whatever a compressed file unpacks to.
"""

import math
import os
import pathlib
import zipfile
import zlib

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.paths import PathLike

# A file may unpack to so many times its size and so many bytes. Weights hardly compress; kernels of
# fixed upsampling, which are mostly zeros, do.
_MAX_GROWTH = 32
_FREE_BYTES = 64 << 20


def read_npz(path: PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` file by name; they cannot be written to.

    Raises:
      WeightsError: it cannot be read, is damaged, unpacks to far more than its size, or holds
        anything but arrays of numbers and texts.
    """
    path = pathlib.Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            claimed = sum(member.file_size for member in members)
            limit = _MAX_GROWTH * path.stat().st_size + _FREE_BYTES
            if claimed > limit:
                raise WeightsError(
                    f"{path} says that it unpacks to {claimed} bytes; more than {limit} are not "
                    "read from a file of its size."
                )
            return {
                member.filename.removesuffix(".npy"): _array(archive, member) for member in members
            }
    except OSError as error:
        raise WeightsError(
            f"could not read {os.fspath(path)}: {error.strerror or error}."
        ) from error
    except (
        *(ValueError, TypeError, EOFError, MemoryError, OverflowError, RuntimeError),
        *(NotImplementedError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise WeightsError(
            f"{path} is not a readable .npz file of arrays: {error}. Arrays of Python objects are "
            "never read."
        ) from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Reads one array; raises ValueError where its bytes are not as many as its header states."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {member.compress_type}")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is no plain array")
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        there = member.file_size - file.tell()
        if size != there:
            raise ValueError(f"{name} says that it has {size} bytes, and has {there}")
        content = file.read(size)
        if len(content) != size or file.read(1):  # at the end the checksum is compared
            raise ValueError(f"{name} is cut off")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")
