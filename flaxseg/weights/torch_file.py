"""Reads the tensors of PyTorch's `.pth` and `.pt` files without PyTorch and without running pickle.

A pickle is a program for a small stack machine, and Python's `pickle` module lets it import and
call anything. Here the program is only parsed (`pickletools.genops` executes nothing) and followed
by an interpreter of our own that knows the few instructions and the few names that a file of
tensors needs. It imports nothing, it calls nothing but the functions below, and anything else in
the file is an error.

Both layouts of `torch.save` are read: the zip archive (PyTorch 1.6 and later) and the older
sequence of pickles followed by raw storages. No allocation exceeds the size of the file, and what
is done for an instruction does not grow with the objects before it: a few bytes can refer to an
object again and again, so nothing looks into one for a hash or a message.
"""

import io
import math
import os
import pickletools
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flaxseg.errors import WeightsError

_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# The names alone; of the largest networks they are a few hundred kilobytes.
_MAX_PICKLE_BYTES = 1 << 26
_MAX_INSTRUCTIONS = 2_000_000
# Of an integer. Python keeps no hash of a longer one, as it does of strings.
_MAX_BITS = 256
_MAX_AXES = 8
_MAX_DEPTH = 8
_CONVERT = (
    "Only files that hold nothing but tensors are read. In PyTorch, save the weights alone, "
    "`torch.save(model.state_dict(), path)`, or as safetensors."
)


class _Global(NamedTuple):
    """Holds a name that the pickle refers to; it is never imported."""

    module: str
    name: str


class _Storage(NamedTuple):
    """Holds raw numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int  # elements


class _Tensor(NamedTuple):
    """Describes a view of a storage that is not read yet."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Marks a place on the stack of the pickle machine."""


def read_torch_file(path: str | os.PathLike) -> dict[str, Any]:
    """Returns what a `.pth` or `.pt` file holds: nested dicts of NumPy arrays and plain values.

    Args:
      path: a file written by `torch.save` of a state dict, or of a dict (training checkpoint) that
        has one inside.

    Raises:
      WeightsError: the file is damaged, or holds anything but tensors, containers, numbers and
        strings; in particular a file that would run code when unpickled.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file, path)
            file.seek(0)
            return _read_legacy(file, path)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"could not read {path}: {error.strerror or error}.") from error
    except (
        *(ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError),
        *(EOFError, RuntimeError, struct.error, zipfile.BadZipFile),
    ) as error:
        raise WeightsError(
            f"{path} is damaged or not a file of PyTorch weights ({type(error).__name__}: "
            f"{error}). Take it from its source again."
        ) from error


def _read_zip(file: io.BufferedReader, path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(
                f"{path} is a zip archive without one data.pkl; wanted a file of `torch.save`. "
                f"It holds {', '.join(list(records)[:5])}."
            )
        folder = pickles[0].removesuffix("data.pkl")
        # The archive's numbers are what its table says, so nothing may be compressed: then the
        # size of the file bounds what is allocated.
        for info in records.values():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise WeightsError(
                    f"{path}: record {info.filename} is compressed, which `torch.save` never does."
                )
        if f"{folder}byteorder" in records:
            order = archive.read(f"{folder}byteorder")[:16]
            if order != b"little":
                raise WeightsError(f"{path} is in byte order {order!r}; only b'little' is read.")
        if records[pickles[0]].file_size > _MAX_PICKLE_BYTES:
            raise WeightsError(f"{path}: its data.pkl is too large for a list of tensors.")
        root = _interpret(io.BytesIO(archive.read(pickles[0])), path)

        # Records may lie over each other, so that together they are larger than the file.
        left = os.fstat(file.fileno()).st_size

        def read(storage: _Storage) -> np.ndarray:
            nonlocal left
            info = records.get(f"{folder}data/{storage.key}")
            wanted = storage.size * storage.dtype.itemsize
            if info is None or info.file_size != wanted:
                found = "none" if info is None else f"{info.file_size} bytes"
                raise WeightsError(
                    f"{path} is damaged: storage {storage.key} must have {wanted} bytes, "
                    f"found {found}."
                )
            left -= wanted
            if left < 0:
                raise WeightsError(f"{path}: its storages are larger than the file. {_CONVERT}")
            return np.frombuffer(archive.read(info), storage.dtype)

        return _Materialiser(_cached(read), path, os.fstat(file.fileno()).st_size)(root)


def _read_legacy(file: io.BufferedReader, path) -> dict[str, Any]:
    file_size = os.fstat(file.fileno()).st_size
    try:
        magic = _interpret(file, path)
    except (ValueError, WeightsError):
        magic = None
    if magic != _LEGACY_MAGIC:
        raise WeightsError(
            f"{path} is not a file of `torch.save`: it is neither its zip archive nor its older "
            "layout."
        )
    _interpret(file, path)  # the version of the protocol
    system = _interpret(file, path)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError(f"{path} was written on a big-endian machine, which is not read.")
    found: dict[str, _Storage] = {}
    root = _interpret(file, path, found)
    keys = _interpret(file, path)
    known = isinstance(keys, list) and all(isinstance(key, str) and key in found for key in keys)
    if not known:
        raise WeightsError(f"{path} is damaged: its list of storages does not fit its tensors.")
    storages = {}
    for key in keys:
        storage = found[key]
        (count,) = struct.unpack("<q", file.read(8))
        size = storage.dtype.itemsize * count
        if count != storage.size or size > file_size - file.tell():
            raise WeightsError(f"{path} is damaged or cut off in storage {key}.")
        storages[key] = np.frombuffer(file.read(size), storage.dtype)
    return _Materialiser(lambda storage: storages[storage.key], path, file_size)(root)


def _cached(read):
    cache: dict[_Storage, np.ndarray] = {}

    def get(storage: _Storage) -> np.ndarray:
        if storage not in cache:
            cache[storage] = read(storage)
        return cache[storage]

    return get


class _Materialiser:
    """Puts arrays in place of `_Tensor` in a tree of dicts.

    A few bytes of pickle can refer to one dict or tensor very often, so the arrays may together
    not take much more than the file.
    """

    def __init__(self, storage_of, path, file_size: int):
        self.storage_of = storage_of
        self.path = path
        self.bytes_left = 16 * file_size
        self.nodes_left = 1_000_000

    def __call__(self, node: Any, depth: int = 0) -> Any:
        self.nodes_left -= 1
        if self.nodes_left < 0 or depth > _MAX_DEPTH:
            raise WeightsError(f"{self.path} nests too many dicts. {_CONVERT}")
        if isinstance(node, _Tensor):
            return self._array(node)
        if isinstance(node, dict):
            return {key: self(value, depth + 1) for key, value in node.items()}
        return node

    def _array(self, tensor: _Tensor) -> np.ndarray:
        values, shape, strides = self.storage_of(tensor.storage), tensor.shape, tensor.strides
        count = math.prod(shape)
        self.bytes_left -= count * values.itemsize
        if self.bytes_left < 0:
            raise WeightsError(f"{self.path}: its tensors are far larger than the file. {_CONVERT}")
        if not count:
            return np.zeros(shape, values.dtype)
        last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if last >= values.size:
            raise WeightsError(
                f"{self.path} is damaged: a tensor of shape {shape} and strides {strides} reaches "
                f"beyond its storage of {values.size} numbers."
            )
        view = np.lib.stride_tricks.as_strided(
            values[tensor.offset :], shape, [s * values.itemsize for s in strides], writeable=False
        )
        return np.ascontiguousarray(view).reshape(shape)


def _interpret(file, path, storages: dict[str, _Storage] | None = None) -> Any:
    """Follows one pickle from the file's position to its STOP and returns the object it describes.

    The function is long because each instruction is a case: this way what can run is read in one
    place.

    Args:
      file: binary, positioned at a pickle.
      path: for messages.
      storages: filled with the storages that the pickle refers to, by key.

    Raises:
      WeightsError: an instruction or a name is not among those that tensors need.
      ValueError: the bytes are no pickle (from `pickletools`).
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    storages = {} if storages is None else storages

    def to_mark() -> list[Any]:
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _Mark:
                items = stack[index + 1 :]
                del stack[index:]
                return items
        raise ValueError("the pickle has no mark where it needs one")

    work = 0

    def spend(number: int) -> None:
        nonlocal work
        work += number
        if work > _MAX_INSTRUCTIONS:
            raise WeightsError(f"{path} has too many instructions for a list of tensors.")

    for opcode, argument, _ in pickletools.genops(file):
        spend(1)
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark)
            case "STOP":
                return stack.pop()
            case "POP":
                stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if argument.bit_length() > _MAX_BITS:
                    raise ValueError(f"the pickle has an integer of {argument.bit_length()} bits")
                stack.append(argument)
            case "FLOAT" | "BINFLOAT":
                stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES":
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "LIST":
                stack.append(to_mark())
            case "DICT":
                stack.append(_pairs(to_mark()))
            case "APPEND":
                value = stack.pop()
                _as(list, stack[-1]).append(value)
            case "APPENDS" | "ADDITEMS":
                items = to_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _as(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items = to_mark()
                _as(dict, stack[-1]).update(_pairs(items))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1), path))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_global(module, name, path))
            case "BINPERSID":
                storage = _storage(stack.pop(), path)
                storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                # Containers among the arguments are copied.
                spend(sum(len(a) for a in _as(tuple, arguments) if isinstance(a, list | tuple)))
                stack.append(_call(function, arguments, path))
            case "BUILD":
                # The attributes of an OrderedDict (state_dict's `_metadata`): not needed.
                stack.pop()
                _as(dict, stack[-1])
            case name:
                raise WeightsError(
                    f"{path} has the pickle instruction {name}, which no file of tensors needs; "
                    f"it was not run. {_CONVERT}"
                )
    raise ValueError("the pickle ends without STOP")


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"the pickle treats a {type(value).__name__} as a {kind.__name__}")
    return value


def _key(value: Any) -> Any:
    """Returns a key of a dict; the hash of any other one could take for ever."""
    if value is not None and type(value) not in (str, int, float, bool, bytes):
        raise ValueError(f"the pickle has a {type(value).__name__} as a key")
    return value


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_key, items[::2]), items[1::2], strict=True))


def _global(module: str, name: str, path) -> _Global:
    allowed = (module, name) in {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "Size"),
    } or (module == "torch" and name in _STORAGE_DTYPES)
    if not allowed:
        raise WeightsError(
            f"{path} refers to {module}.{name}, which no file of tensors needs; it was not "
            f"imported or run. {_CONVERT}"
        )
    return _Global(module, name)


def _call(function: Any, arguments: Any, path) -> Any:
    """Returns what the few known functions do with these arguments."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise WeightsError(
            f"{path} calls something that no file of tensors needs; it was not run. {_CONVERT}"
        )
    match function.name:
        case "OrderedDict" if arguments:
            (pairs,) = arguments  # as Python 2 wrote it
            return {_key(key): value for key, value in (_as(list, p) for p in _as(list, pairs))}
        case "OrderedDict":
            return {}
        case "Size":
            (numbers,) = arguments
            return tuple(_as(tuple, numbers))
        case "_rebuild_parameter":
            if not isinstance(arguments[0], _Tensor):
                raise ValueError("a parameter is not made of a tensor")
            return arguments[0]
        case "_rebuild_tensor_v2":
            storage, offset, shape, strides = arguments[:4]
            axes = len(_as(tuple, shape)), len(_as(tuple, strides))
            if not isinstance(storage, _Storage) or axes[0] != axes[1] or axes[0] > _MAX_AXES:
                raise ValueError("a tensor is not made of a storage, a shape and strides")
            if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
                raise ValueError("the offset, shape or strides of a tensor are no whole numbers")
            return _Tensor(storage, offset, tuple(shape), tuple(strides))
    raise WeightsError(f"{path} calls {function.module}.{function.name}. {_CONVERT}")


def _storage(identity: Any, path) -> _Storage:
    """Returns the storage that `("storage", type, key, device, size[, view])` names."""
    kind, storage_type, key, _, size = _as(tuple, identity)[:5]
    if kind != "storage" or not isinstance(storage_type, _Global) or not isinstance(key, str):
        raise WeightsError(f"{path} refers to something outside of the pickle. {_CONVERT}")
    if len(identity) > 5 and identity[5] is not None:
        raise WeightsError(f"{path} has views of storages, as only PyTorch before 0.4 wrote them.")
    if type(size) is not int or size < 0 or storage_type.name not in _STORAGE_DTYPES:
        raise ValueError(f"a {storage_type.name} of no known type or size")
    return _Storage(key, _STORAGE_DTYPES[storage_type.name], size)
