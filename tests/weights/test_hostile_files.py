"""Files of weights made to cost time or memory: each is refused by name, at once."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

from flaxseg.errors import WeightsError
from flaxseg.weights import read_bases, read_tensors

DOUBLED = b")" + b"q\x000h\x00h\x00\x86" * 60  # each tuple holds the one before twice
ORDERED_DICT = b"ccollections\nOrderedDict\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
LONG_INTEGER = b"\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20)

PICKLES = {
    "a doubled tuple as a key": b"}" + DOUBLED + b"K\x01s.",
    "as a key among several": b"}(" + DOUBLED + b"K\x01u.",
    "as a key of a new dict": b"(" + DOUBLED + b"K\x01d.",
    "as a key of an OrderedDict": ORDERED_DICT + b"]](" + DOUBLED + b"K\x01ea\x85R.",
    "as a storage": DOUBLED + b"Q.",
    "as the kind of a storage": b"(" + DOUBLED + b"K\x01K\x01K\x01K\x01tQ.",
    "as the size of a storage": STORAGE + DOUBLED + b"tQ.",
    "as the offset of a tensor": TENSOR + b"(" + STORAGE + b"K\x01tQ" + DOUBLED + b"))tR.",
    "as the shape of a tensor": TENSOR + b"(" + STORAGE + b"K\x01tQK\x00" + DOUBLED + b")tR.",
    "an integer of a megabyte": LONG_INTEGER + b".",
    "copies of copies": b"ctorch\nSize\nq\x02(("
    + b"K\x01" * 2000
    + b"ttq\x01"
    + b"h\x02h\x01R0" * 2000,
}


def torch_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program)
    return path


def torch_legacy(path, program):
    head = [
        pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    ]
    path.write_bytes(b"".join(head) + b"\x80\x02" + program)
    return path


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_a_pickle_that_costs_far_more_than_its_size_is_refused(tmp_path, write, name):
    path = write(tmp_path / "net.pth", PICKLES[name])
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600
    if " key" in name:
        assert "a tuple as a key" in str(caught.value)


def test_a_doubled_tuple_among_the_storages_is_refused(tmp_path):
    path = torch_legacy(tmp_path / "net.pth", b"}.\x80\x02](" + DOUBLED + b"e.")
    with pytest.raises(WeightsError, match="its list of storages"):
        read_tensors(path)


def test_deeply_nested_tuples_hold_no_tensors(tmp_path):
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_tensors(
            torch_zip(tmp_path / "net.pth", b"}X\x01\x00\x00\x00a)" + b"\x85" * 300_000 + b"s.")
        )


def npy(shape, content=b"", dtype="<f4"):
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def npz(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy((2**40,)), "says that it has 4398046511104 bytes, and has 0"),
        (npy((2**40,), dtype="<U0"), "itemsize"),
        (npy((2,), b"1234"), "says that it has 8 bytes, and has 4"),
        (npy((1,), b"12345678"), "says that it has 4 bytes, and has 8"),
        (npy((1,) * 200, b"1234"), "dimension"),
        (npy((-1, -1), b"1234"), ""),
        (npy((1,), b"12345678", "|O"), "Python objects"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b" " * 100, "no plain array"),
        (npy((2**25,), bytes(2**27)), "more than"),
        (b"text", "magic string"),
    ],
)
def test_an_npz_file_has_the_bytes_that_it_states(tmp_path, content, words):
    path = npz(tmp_path / "net.npz", x=content)
    for read in (read_tensors, read_bases):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert words in str(caught.value)


def test_a_method_of_compression_without_bounds_is_refused(tmp_path):
    path = npz(tmp_path / "net.npz", zipfile.ZIP_LZMA, x=npy((1,), b"1234"))
    with pytest.raises(WeightsError, match="compressed by method 14"):
        read_tensors(path)


def test_a_safetensors_file_of_many_axes_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [1] * 200, "data_offsets": [0, 4]}
    head = json.dumps({"x": entry}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    with pytest.raises(WeightsError, match=r"net\.safetensors: tensor x"):
        read_tensors(path)
