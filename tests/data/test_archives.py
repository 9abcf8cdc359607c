"""Archives: read in place, and refused in bounded time and memory when made to harm."""

import concurrent.futures
import gzip
import io
import pathlib
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile

import pytest
from published_archives import write_tar, write_zip

from flaxseg.data.raw import archives, packed_files, tar_files
from flaxseg.data.raw.archives import read_archive
from flaxseg.errors import DataError
from flaxseg.image_files import UndecodableError

FILES = {
    "top/list.txt": b"one\ntwo\n",
    "top/images/one.png": bytes(range(256)) * 9,
    "top/images/two.png": b"",
    "top/" + 30 * "long-name/" + "three.png": b"3" * 512,
    "top/images/\N{LATIN SMALL LETTER E WITH ACUTE}.png": b"4",
    "other/notes.txt": b"not wanted",
}
SUFFIXES = (".zip", ".tar", ".tgz")


def write(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    (write_zip if path.suffix == ".zip" else write_tar)(path, files)
    return path


def wanted(name: str) -> bool:
    return name.startswith("top/")


def read_all(path: pathlib.Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in read_archive(path, wanted).items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_wanted_files_are_read_and_nothing_is_left_on_disk(tmp_path, monkeypatch, suffix):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tar_files.tempfile, "tempdir", str(scratch))
    path = write(tmp_path / f"archive{suffix}", FILES)
    found = read_archive(path, wanted)
    assert not list(scratch.iterdir())
    assert list(found) == [name for name in FILES if wanted(name)]
    for name in (*found, *reversed(found)):  # in any order, and again
        assert found[name].read_bytes() == FILES[name]
    assert str(found["top/list.txt"]) == f"{path}/top/list.txt"
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "scratch"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_forms_of_tar(tmp_path, form):
    path = tmp_path / "archive.tar"
    files = {name: FILES[name] for name in FILES if form != tarfile.USTAR_FORMAT or len(name) < 99}
    with tarfile.open(path, "w", format=form, pax_headers={"comment": "c"}) as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mtime = len(content), 0.5
            opened.addfile(member, io.BytesIO(content))
    assert read_all(path) == {name: files[name] for name in files if wanted(name)}


EVIL = [
    "top/../../evil",
    "../evil",
    "/tmp/evil",
    "top/a\\..\\..\\evil",
    "c:/evil",
    "top//evil",
    "top/./evil",
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", EVIL)
def test_paths_that_lead_elsewhere_are_refused(tmp_path, suffix, name):
    path = write(tmp_path / f"archive{suffix}", FILES)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "a") as opened:
            opened.writestr(name, b"evil")
    else:
        with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as opened:
            opened.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match="outside its folder") as caught:
        read_archive(path, wanted)
    assert str(path) in str(caught.value)
    assert "evil" in str(caught.value)


@pytest.mark.parametrize("suffix", [".tar", ".tgz"])
@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_devices_and_sparse_files_of_a_tar_are_refused(tmp_path, suffix, kind):
    path = tmp_path / f"archive{suffix}"
    with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as opened:
        for name in ("other/link", "top/link"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            opened.addfile(member)
    with pytest.raises(DataError, match=f"{path} holds a link or device: 'top/link'; refused"):
        read_archive(path, wanted)
    assert read_archive(path, lambda name: name == "none") == {}


def test_links_of_a_zip_are_refused(tmp_path):
    path = write(tmp_path / "archive.zip", FILES)
    with zipfile.ZipFile(path, "a") as opened:
        member = zipfile.ZipInfo("top/link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="a link or device: 'top/link'"):
        read_archive(path, wanted)


def test_encrypted_and_strangely_packed_files_are_refused(tmp_path):
    for method, words in ((zipfile.ZIP_BZIP2, "method 12"), (zipfile.ZIP_LZMA, "method 14")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as opened:
            opened.writestr("top/a", bytes(9999))
        with pytest.raises(DataError, match=words):
            read_archive(tmp_path / "a.zip", wanted)
    content = bytearray(write(tmp_path / "b.zip", {"top/b": b"b"}).read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.rindex(start) + flags] |= 1
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(DataError, match="'top/b' is encrypted"):
        read_archive(tmp_path / "b.zip", wanted)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_is_there_twice_is_refused(tmp_path, suffix):
    path = tmp_path / f"archive{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as opened:
            for content in (b"a", b"b"):
                opened.writestr("top/x", content)
    else:
        with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as opened:
            for _ in range(2):
                opened.addfile(tarfile.TarInfo("top/x"))
    with pytest.raises(DataError, match="holds 'top/x' twice"):
        read_archive(path, wanted)


@pytest.fixture
def bounded_refusal(monkeypatch):
    """A function that checks a refusal: of 16 MiB of memory, and of unpacking no more than is
    allowed, which bounds the time."""
    unpacked = []

    class Counting(gzip.GzipFile):
        def read(self, size=-1):
            content = super().read(size)
            unpacked.append(len(content))
            return content

    def check(path: pathlib.Path, words: str) -> None:
        monkeypatch.setattr(tar_files.gzip, "GzipFile", Counting)
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=words) as caught:
                read_archive(path, wanted)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert str(path) in str(caught.value)
        assert peak < 16 * 2**20
        allowed = packed_files.MAX_GROWTH * path.stat().st_size + packed_files.FREE_BYTES
        assert sum(unpacked) <= allowed + (1 << 20)

    return check


@pytest.mark.parametrize("name", ["top/zeros", "other/zeros"])
def test_a_bomb_of_a_compressed_tar(bounded_refusal, tmp_path, monkeypatch, name):
    """40 MB of zeros in 200 kB, wanted or not: only as much is unpacked as is allowed."""
    monkeypatch.setattr(packed_files, "FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.tgz"
    header = tarfile.TarInfo(name)
    header.size = 40_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(40):
            file.write(bytes(1_000_000))
    bounded_refusal(path, r"unpacks to more than \d+ bytes")
    if name.startswith("top"):
        monkeypatch.setattr(packed_files, "MAX_FILE_BYTES", 1 << 20)
        bounded_refusal(path, "'top/zeros' has 40000000 bytes")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_bomb_in_the_headers_of_a_tar(bounded_refusal, tmp_path, kind):
    """Python's reader would keep all of a header of 40 MB."""
    path = tmp_path / "bomb.tgz"
    header = tarfile.TarInfo("top/name")
    header.type, header.size = kind, 40_000_000
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(40):
            file.write(bytes(1_000_000))
    bounded_refusal(path, "a header of 40000000 bytes, for 'top/name'")


def test_a_bomb_of_a_zip(bounded_refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "FREE_BYTES", 1 << 20)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for i in range(8):
            opened.writestr(f"top/{i}", bytes(1_000_000))
    bounded_refusal(path, r"unpacks to more than \d+ bytes, 20 times its size")
    monkeypatch.setattr(packed_files, "MAX_FILE_BYTES", 999_999)
    bounded_refusal(path, "'top/0' has 1000000 bytes")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_too_many_entries(bounded_refusal, tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"archive{suffix}", {f"other/{i}": b"" for i in range(30)})
    monkeypatch.setattr(packed_files, "MAX_ENTRIES", 20)
    bounded_refusal(path, "holds more than 20 entries")


def test_a_zip_that_hides_how_many_entries_it_has(bounded_refusal, tmp_path, monkeypatch):
    """The number that a zip states is not believed, in the long form for large archives neither;
    entries are counted before an object is made of each."""
    content = bytearray(
        write(tmp_path / "a.zip", {f"o/{i}": b"" for i in range(3000)}).read_bytes()
    )
    end = content.rindex(b"PK\5\6")
    content[end + 8 : end + 12] = struct.pack("<2H", 1, 1)
    (tmp_path / "a.zip").write_bytes(content)
    monkeypatch.setattr(packed_files, "MAX_ENTRIES", 2000)
    bounded_refusal(tmp_path / "a.zip", "more than 2000 entries")
    size, offset = struct.unpack_from("<2L", content, end + 12)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    content[end + 8 : end + 20] = b"\xff" * 12
    (tmp_path / "a.zip").write_bytes(content[:end] + record + locator + content[end:])
    assert len(zipfile.ZipFile(tmp_path / "a.zip").infolist()) == 3001
    bounded_refusal(tmp_path / "a.zip", "more than 2000 entries")
    monkeypatch.setattr(archives, "_MAX_DIRECTORY_BYTES", 10_000)
    bounded_refusal(tmp_path / "a.zip", "a list of entries of more than 10000 bytes")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_archives_that_are_cut_off_say_so(tmp_path, suffix, kept):
    path = write(tmp_path / f"archive{suffix}", {f"top/{i}": bytes(2000) for i in range(40)})
    content = path.read_bytes()
    if suffix == ".tar":  # the end that tar appends to fill its blocks may be missing
        content = content.rstrip(b"\0")
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match="Download it again") as caught:
        read_archive(path, wanted)
    assert str(path) in str(caught.value)


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        tar_files.tempfile, "TemporaryFile", lambda **_: Full(tmp_path / "kept", "w+")
    )
    path = write(tmp_path / "archive.tgz", FILES)
    with pytest.raises(DataError, match=r"archive.tgz: .*No space left on device; set TMPDIR"):
        read_archive(path, wanted)


def test_other_files_are_not_taken_for_archives(tmp_path):
    for content in (b"", b"<html>please log in</html>", b"\x89PNG" + bytes(2000), b"PK" * 400):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DataError, match=r"file (is not a|ends early)"):
            read_archive(tmp_path / "file", wanted)


def test_damage_within_a_zip_is_of_the_file(tmp_path):
    path = write(tmp_path / "archive.zip", {"top/a": bytes(range(256)) * 40, "top/b": b"b"})
    content = bytearray(path.read_bytes())
    content[content.index(b"top/a") + 20] ^= 0xFF
    path.write_bytes(content)
    found = read_archive(path, wanted)
    with pytest.raises(UndecodableError, match="damaged in its archive"):
        found["top/a"].read_bytes()
    assert found["top/b"].read_bytes() == b"b"


def test_strange_numbers_in_headers_of_a_tar(tmp_path):
    """Negative sizes, and records of attributes that run in circles."""
    header = bytearray(tarfile.TarInfo("top/a").tobuf())
    header[124:136] = b"\xff" * 11 + b"\0"  # minus 256, as GNU writes numbers
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    with pytest.raises(DataError, match="'top/a' has -256 bytes"):
        read_archive(tmp_path / "a.tar", wanted)
    for records in (b"0 a=b\n", b"-5 a=b\n", b"99 path=x\n", b"words", b"6 ab\n\n"):
        attributes = tarfile.TarInfo("x")
        attributes.type, attributes.size = tarfile.XHDTYPE, len(records)
        content = attributes.tobuf() + records.ljust(512, b"\0")
        (tmp_path / "a.tar").write_bytes(content + tarfile.TarInfo("top/a").tobuf() + bytes(1024))
        with pytest.raises(DataError, match="a damaged header"):
            read_archive(tmp_path / "a.tar", wanted)
    attributes = tarfile.TarInfo("x")
    attributes.type, attributes.size = tarfile.XHDTYPE, 6012
    for record, words in (
        (b"6012 size=" + b"9" * 6001 + b"\n", "'top/a' has -1 bytes|ends early"),
        (b"6012 GNU.sparse.major=" + b"1" * 5989 + b"\n", "a link or device: 'top/a'"),
    ):
        content = attributes.tobuf() + record.ljust(6144, b"\0")
        (tmp_path / "a.tar").write_bytes(content + tarfile.TarInfo("top/a").tobuf() + bytes(1024))
        with pytest.raises(DataError, match=words):
            read_archive(tmp_path / "a.tar", wanted)
    huge = tarfile.TarInfo("top/a")
    huge.size = 1 << 60
    (tmp_path / "a.tar").write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="ends early"):
        read_archive(tmp_path / "a.tar", wanted)


def test_files_of_a_zip_are_read_from_many_threads(tmp_path, monkeypatch):
    """Members with extra fields, as Git and Info-ZIP write them, while other threads read too."""
    contents = {f"{number}.bin": bytes([number]) * 5000 for number in range(32)}
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, content in contents.items():
            member = zipfile.ZipInfo(name)
            member.extra = struct.pack("<2sHBI", b"UT", 5, 3, 0)
            made.writestr(member, content)
    inner = zipfile._SharedFile.seek

    def slow_seek(*args, **kwargs):
        time.sleep(0.002)  # long enough for another thread to move the file
        return inner(*args, **kwargs)

    monkeypatch.setattr(zipfile._SharedFile, "seek", slow_seek)
    files = read_archive(path, lambda _: True)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = dict(zip(files, pool.map(lambda name: files[name].read_bytes(), files), strict=True))
    assert read == contents
