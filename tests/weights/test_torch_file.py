"""The reader of `.pth` files: right values, and no code of the file is ever run."""

import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import peers
import pytest

from flaxseg.errors import WeightsError
from flaxseg.weights import read_tensors, read_torch_file


class TorchName:
    """Pickles as a reference to a name of a module that need not exist here."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def write(self) -> bytes:
        return b"c" + f"{self.module}\n{self.name}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def tensor_program(key: str, size: int, offset: int, shape, strides, kind="FloatStorage") -> bytes:
    """The instructions with which PyTorch describes a tensor."""
    storage = (
        b"(" + text("storage") + TorchName("torch", kind).write() + text(key) + text("cpu")
    ) + (number(size) + b"tQ")
    return (
        TorchName("torch._utils", "_rebuild_tensor_v2").write()
        + b"("
        + storage
        + number(offset)
        + b"("
        + b"".join(map(number, shape))
        + b"t("
        + b"".join(map(number, strides))
        + b"t\x89ccollections\nOrderedDict\n)R"
        + b"tR"
    )


def state_dict(**programs: bytes) -> bytes:
    items = b"".join(text(name) + program for name, program in programs.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def write_zip(path: pathlib.Path, program: bytes, storages=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def test_reads_views_of_a_shared_storage(tmp_path):
    values = np.arange(12, dtype=np.float32)
    program = state_dict(
        whole=tensor_program("0", 12, 0, (3, 4), (4, 1)),
        turned=tensor_program("0", 12, 0, (4, 3), (1, 4)),
        part=tensor_program("0", 12, 5, (2,), (3,)),
        single=tensor_program("0", 12, 7, (), ()),
        none=tensor_program("0", 12, 0, (0, 4), (4, 1)),
    )
    found = read_torch_file(write_zip(tmp_path / "a.pth", program, {"0": values.tobytes()}))
    np.testing.assert_array_equal(found["whole"], values.reshape(3, 4))
    np.testing.assert_array_equal(found["turned"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(found["part"], values[[5, 8]])
    assert found["single"] == 7
    assert found["single"].shape == ()
    assert found["none"].shape == (0, 4)


def test_reads_all_types_of_numbers(tmp_path):
    types = {
        "DoubleStorage": np.float64,
        "HalfStorage": np.float16,
        "BFloat16Storage": ml_dtypes.bfloat16,
        "LongStorage": np.int64,
        "ByteStorage": np.uint8,
        "BoolStorage": np.bool_,
    }
    for kind, dtype in types.items():
        values = np.array([0, 1, 1], dtype)
        program = state_dict(x=tensor_program("0", 3, 0, (3,), (1,), kind))
        found = read_torch_file(write_zip(tmp_path / "a.pth", program, {"0": values.tobytes()}))
        assert found["x"].dtype == dtype
        np.testing.assert_array_equal(found["x"], values)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class MaliciousState:
    """Sets attributes through `__setstate__` when it is unpickled."""

    def __reduce__(self):
        return exec, ("import os; os.makedirs(os.environ['FLAXSEG_TEST_TARGET'])",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_the_file_is_refused_and_not_run(tmp_path, monkeypatch, protocol, legacy):
    target = tmp_path / "touched"
    monkeypatch.setenv("FLAXSEG_TEST_TARGET", str(target))
    for attack in (Malicious(target), MaliciousState(), {"state_dict": [Malicious(target)]}):
        program = pickle.dumps(attack, protocol)
        path = tmp_path / "attack.pth"
        if legacy:
            head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001)]
            path.write_bytes(b"".join(head) + pickle.dumps({"little_endian": True}, 2) + program)
        else:
            write_zip(path, program)
        with pytest.raises(WeightsError, match=r"not .*(imported|run)"):
            read_torch_file(path)
        assert not target.exists()
    # The attack is real: pickle itself would run it.
    pickle.loads(pickle.dumps(Malicious(target), protocol))
    assert target.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x04\x00\x00\x00nametR.",
        b"\x80\x02ctorch\nload\n)R.",
        b"\x80\x02ctorch.storage\n_load_from_bytes\n(C\x01xtR.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02(X\x01\x00\x00\x00acos\nsystem\no.",
        b"(S'true'\nios\nsystem\n.",
        b"\x82\x01.",
    ],
    ids=["getattr", "torch.load", "load_from_bytes", "newobj", "obj", "inst", "extension"],
)
def test_other_ways_to_reach_code_are_refused(tmp_path, program):
    with pytest.raises(WeightsError):
        read_torch_file(write_zip(tmp_path / "a.pth", program))


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_program("0", 12, 0, (4, 4), (4, 1)),
        tensor_program("0", 12, 11, (2,), (1,)),
        tensor_program("0", 12, -1, (2,), (1,)),
        tensor_program("0", 12, 4, (2,), (-1,)),
        tensor_program("0", 100, 0, (100,), (1,)),
        tensor_program("0", 12, 0, (100_000, 100_000), (0, 0)),
        tensor_program("1", 12, 0, (12,), (1,)),
    ],
    ids=["shape", "offset", "negative", "backwards", "storage", "repeated", "absent"],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, tensor):
    storage = {"0": np.zeros(12, np.float32).tobytes()}
    with pytest.raises(WeightsError):
        read_torch_file(write_zip(tmp_path / "a.pth", state_dict(x=tensor), storage))


def test_bombs_are_refused(tmp_path):
    values = np.zeros(1 << 20, np.float32).tobytes()
    program = state_dict(x=tensor_program("0", 1 << 20, 0, (1 << 20,), (1,)))
    bomb = write_zip(tmp_path / "a.pth", program, {"0": values}, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match="compressed"):
        read_torch_file(bomb)
    # Each dict holds the one before ten times.
    levels = b"}q\x00"
    for level in range(8):
        refer = b"".join(text(str(i)) + b"h" + bytes([level]) for i in range(10))
        levels += b"0}(" + refer + b"uq" + bytes([level + 1])
    with pytest.raises(WeightsError, match="nests too many"):
        read_torch_file(write_zip(tmp_path / "b.pth", b"\x80\x02" + levels + b"."))


def test_damage_is_named(tmp_path):
    good = write_zip(
        tmp_path / "good.pth",
        state_dict(x=tensor_program("0", 3, 0, (3,), (1,))),
        {"0": np.ones(3, np.float32).tobytes()},
    )
    data = good.read_bytes()
    for name, content in {
        "cut": data[: len(data) // 2],
        "text": b"not weights at all",
        "empty": b"",
    }.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=path.name):
            read_torch_file(path)
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"data\.pkl"):
        read_torch_file(tmp_path / "other.pth")


@pytest.mark.peer
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_torch_writes(tmp_path, zipped):
    torch = peers.import_torch()
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2).half()
    )
    checkpoint = {
        "state_dict": net.state_dict(),
        "epoch": 3,
        "lr": 0.1,
        "name": "net",
        "shape": torch.Size([1, 2]),
        "parameter": net[0].weight,
        "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).state_dict(),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "bfloat16": torch.arange(4).to(torch.bfloat16),
    }
    path = tmp_path / "net.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert found["epoch"] == 3
    assert found["name"] == "net"
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(found["state_dict"][name], tensor.numpy())
    np.testing.assert_array_equal(found["turned"], checkpoint["turned"].numpy())
    np.testing.assert_array_equal(found["bfloat16"].astype(np.float32), np.arange(4))
    assert "state_dict.0.weight" in read_tensors(path)
    torch.save(net, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="Sequential"):
        read_torch_file(tmp_path / "whole.pth")


def test_pickle_modules_are_not_used_to_read():
    import flaxseg.weights.torch_file as module

    source = pathlib.Path(module.__file__).read_text()
    assert "import pickle\n" not in source
    assert "import torch" not in source
    assert not {"pickle", "torch", "importlib"} & set(vars(module))


def test_ordered_dict_with_metadata_is_read(tmp_path):
    values = collections.OrderedDict(a=1)
    values._metadata = {"version": 1}
    data = io.BytesIO()
    pickle.Pickler(data, 2).dump(values)
    assert read_torch_file(write_zip(tmp_path / "a.pth", data.getvalue())) == {"a": 1}
