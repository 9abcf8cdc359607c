"""ADE20K: the published zip, the download, and real files."""

import dataclasses
import hashlib

import numpy as np
import pytest
from published_archives import ids, random_image, write_zip
from published_files import jpeg, png
from test_download import server  # noqa: F401

import flaxseg.data
from flaxseg.data.raw.download import Download
from flaxseg.data.sets import catalog
from flaxseg.errors import DataError

INFO = flaxseg.data.dataset_info("ade20k")


def ade_files() -> dict[str, bytes]:
    root = "ADEChallengeData2016"
    files = {f"{root}/objectInfo150.txt": b"", f"{root}/sceneCategories.txt": b""}
    seed = 0
    for part, name, number in (("training", "train", 3), ("validation", "val", 2)):
        for i in range(1, number + 1):
            seed += 1
            stem = f"{part}/ADE_{name}_{i:08d}"
            files[f"{root}/images/{stem}.jpg"] = jpeg(random_image(seed))
            files[f"{root}/annotations/{stem}.png"] = png(ids(seed, range(151)))
    return files


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("ade") / "ADEChallengeData2016.zip"
    write_zip(path, ade_files())
    return path


def labels(split, data_dir):
    return [r["label"] for r in flaxseg.data.open_split("ade20k", split, data_dir)]


def check(data_dir):
    """Zero, which is no class, is ignored; the others move down by one."""
    for split, seeds in (("train", (1, 2, 3)), ("val", (4, 5))):
        for found, seed in zip(labels(split, data_dir), seeds, strict=True):
            raw = ids(seed, range(151)).astype(int)
            np.testing.assert_array_equal(found, np.where(raw == 0, 255, raw - 1))


def test_the_published_zip(archive, tmp_path):
    flaxseg.data.prepare("ade20k", tmp_path, archive.parent, progress=False)
    check(tmp_path)
    record = flaxseg.data.open_split("ade20k", "val", tmp_path)[1]
    assert record["id"] == "ADE_val_00000002"


@pytest.fixture
def online(server, archive, monkeypatch):  # noqa: F811
    """`ade20k` as if it were published by the local server."""
    server.content = archive.read_bytes()
    entry = catalog.find_source("ade20k")

    def publish(kind: str, digest: str) -> None:
        url = server.url.replace("archive.zip", archive.name)
        changed = dataclasses.replace(entry, downloads=(Download(url, f"{kind}:{digest}"),))
        monkeypatch.setitem(catalog._SOURCES, "ade20k", changed)

    publish("sha1", hashlib.sha1(server.content).hexdigest())
    server.publish = publish
    return server


def test_a_download_is_resumed_checked_prepared_and_cleared_away(online, tmp_path, monkeypatch):
    online.cut_after = 1000
    monkeypatch.setattr(flaxseg.data.raw.download, "_ATTEMPTS", 1)
    with pytest.raises(DataError, match="ended after 1000 of"):
        flaxseg.data.prepare("ade20k", tmp_path, progress=False)
    assert not flaxseg.data.is_prepared("ade20k", tmp_path)
    flaxseg.data.prepare("ade20k", tmp_path, progress=False)
    assert online.ranges == [None, "bytes=1000-"]
    check(tmp_path)
    assert flaxseg.data.read_manifest("ade20k", tmp_path).source.startswith("http://127.0.0.1")
    left = sorted(
        p.name for p in tmp_path.rglob("*") if not p.is_dir() and p.parent.name != "1.0.0"
    )
    assert left == [".ade20k.lock"]


def test_another_file_than_the_published_one_is_refused(online, tmp_path):
    online.publish("md5", "0" * 32)
    with pytest.raises(DataError, match=r"ADEChall.* is not the published file \(md5 .*wanted 000"):
        flaxseg.data.prepare("ade20k", tmp_path, progress=False)
    assert not list((tmp_path / ".downloads" / "ade20k").iterdir())
    online.publish("md5", hashlib.md5(online.content).hexdigest())
    flaxseg.data.prepare("ade20k", tmp_path, progress=False)


def test_real_images(tmp_path, shared_dir):
    """Three pairs, as the README beside them lists their ids; streets with sky and buildings."""
    real = shared_dir / "data" / "ade20k_sample" / "ADEChallengeData2016"
    folder = tmp_path / "ADEChallengeData2016"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
        (folder / part / "validation").symlink_to(real / part / "validation")
        (folder / part / "training").mkdir()
    with pytest.raises(DataError, match=r"images/training and annotations/training"):
        flaxseg.data.prepare("ade20k", tmp_path / "data", tmp_path, progress=False)
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        (folder / part / "validation").unlink()
        (folder / part / "validation").mkdir()
        for number, target in ((1, "training"), (2, "validation"), (3, "validation")):
            name = f"ADE_val_0000000{number}.{suffix}"
            (folder / part / target / name).symlink_to(real / part / "validation" / name)
    flaxseg.data.prepare("ade20k", tmp_path / "data", tmp_path, progress=False)
    wanted = {
        "ADE_val_00000001": {0, 1, 2, 3, 5, 7, 10, 18},
        "ADE_val_00000002": {0, 1, 2, 3, 5, 14, 18},
        "ADE_val_00000003": {0, 1, 2, 3, 5, 7, 12, 21, 44, 81, 88, 97, 103},
    }
    records = flaxseg.data.open_split("ade20k", "train+val", tmp_path / "data")
    for record in records:
        found = set(np.unique(record["label"]))
        assert found == {raw - 1 if raw else 255 for raw in wanted.pop(record["id"])}
        top = record["label"][:20]
        assert INFO.class_names[np.bincount(top[top < 255]).argmax()] in ("sky", "building", "tree")
    assert not wanted
    lines = (real / "objectInfo150.txt").read_text().splitlines()[1:]
    assert [line.split("\t")[4].split(",")[0].strip() for line in lines] == list(INFO.class_names)
