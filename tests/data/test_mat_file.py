"""MAT-files: what MATLAB and SciPy write is read, and what is made to harm is refused."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import scipy.io

from flaxseg.data.raw.mat_file import read_mat_array
from flaxseg.image_files import UndecodableError

LABEL = np.random.default_rng(0).integers(0, 21, (37, 23)).astype(np.uint8)


def mat(compress=True, **variables) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compress)
    return file.getvalue()


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "u8", "f4", "f8"])
def test_arrays_of_all_types_as_scipy_writes_them(kind, compress):
    label = LABEL.astype(kind)
    content = mat(compress, other=np.ones(3), LabelMap=label, GTcls={"Segmentation": label})
    for found in (
        read_mat_array(content, "LabelMap"),
        read_mat_array(content, "GTcls", "Segmentation"),
    ):
        assert found.dtype == np.uint16
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, LABEL)


def test_large_ids_and_other_fields():
    deep = LABEL.astype(np.uint16) * 100
    strange = np.empty((2, 1), object)
    strange[:, 0] = ["a", np.eye(3)]
    content = mat(GTcls={"Boundaries": strange, "Segmentation": deep, "Note": "x"}, text="y")
    np.testing.assert_array_equal(read_mat_array(content, "GTcls", "Segmentation"), deep)
    # Four bytes and fewer lie within the tag of their element.
    np.testing.assert_array_equal(read_mat_array(mat(a=np.uint8([[1, 2]])), "a"), [[1, 2]])


def big_endian(label: np.ndarray) -> bytes:
    """As MATLAB writes on a machine of that order, which SciPy does not."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(">2L", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    matrix = element(6, struct.pack(">2L", 11, 0)) + element(5, struct.pack(">2l", *label.shape))
    matrix += element(1, b"LabelMap") + element(4, label.astype(">u2").tobytes("F"))
    return b"MATLAB 5.0".ljust(124) + b"\1\0MI" + element(14, matrix)


def test_the_other_byte_order():
    content = big_endian(LABEL * 12)
    np.testing.assert_array_equal(scipy.io.loadmat(io.BytesIO(content))["LabelMap"], LABEL * 12)
    np.testing.assert_array_equal(read_mat_array(content, "LabelMap"), LABEL * 12)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a MAT-file"),
        (b"\x89PNG" + bytes(200), r"not a MAT-file of version 5 \(it starts with b'\\x89PNG"),
        (b"MATLAB 7.3 MAT-file".ljust(300), "version 7.3; save it with -v7"),
        (mat(other=LABEL, third=LABEL), "no variable 'LabelMap' in the MAT-file; it has other, th"),
        (mat(LabelMap=LABEL)[:-20], "ends early"),
        (mat(LabelMap=LABEL - 0.5), "other than ids from 0 to 65535"),
        (mat(LabelMap=LABEL.astype(float) * np.nan), "other than ids from 0 to 65535"),
        (mat(LabelMap=-LABEL.astype(int)), "other than ids from 0 to 65535"),
        (mat(LabelMap=np.zeros((2, 3, 4))), r"bytes for an array of \(2, 3, 4\)"),
        (mat(LabelMap="words"), "no array of real numbers"),
        (mat(LabelMap=LABEL + 1j), "no array of real numbers"),
        (mat(LabelMap=scipy.sparse.csc_matrix(LABEL)), "no array of real numbers"),
    ],
)
def test_other_content_is_named(content, words):
    with pytest.raises(UndecodableError, match=words):
        read_mat_array(content, "LabelMap")


def test_structures_that_are_not_as_wanted():
    for value, words in (
        ({"Other": LABEL}, r"no field 'Segmentation'; it has Other"),
        (LABEL, "no structure of size 1x1"),
        ([{"Segmentation": LABEL}] * 2, "no structure of size 1x1"),
        ({"Segmentation": np.zeros((0, 0))}, "an array of"),
    ):
        with pytest.raises(UndecodableError, match=words):
            read_mat_array(mat(GTcls=value), "GTcls", "Segmentation")


def test_a_bomb_is_refused_before_it_unpacks():
    packed = zlib.compress(bytes(1 << 25), 1)
    bomb = mat()[:128] + struct.pack("<2L", 15, len(packed)) + packed
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableError, match="unpacks to more than the limit"):
            read_mat_array(bomb, "LabelMap", max_bytes=1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 23


def test_random_damage_is_always_an_error_in_words():
    """A thousand files with some bytes changed: read, or refused by our own error."""
    rng = np.random.default_rng(1)
    plain = mat(False, GTcls={"Note": "x", "Segmentation": LABEL, "Last": np.eye(3)})
    refused = 0
    for _ in range(1000):
        content = bytearray(plain)
        for place in rng.integers(116, 400, rng.integers(1, 4)):
            content[place] = rng.integers(256)
        try:
            found = read_mat_array(bytes(content), "GTcls", "Segmentation")
            assert found.size <= LABEL.size
        except UndecodableError:
            refused += 1
    assert 100 < refused < 1000
