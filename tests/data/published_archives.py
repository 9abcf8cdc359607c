"""Tiny data sets as archives in the layouts in which they are published."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
import scipy.io
from PIL import Image
from published_files import jpeg

from flaxseg.classes import voc_colors


def random_image(seed: int, height: int = 16, width: int = 20) -> np.ndarray:
    """A smooth image that no other seed gives."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


def ids(seed: int, values, height: int = 16, width: int = 20) -> np.ndarray:
    """A label of random values."""
    chosen = np.random.default_rng(seed).choice(np.asarray(values), (height, width))
    return chosen.astype(np.uint16 if max(values) > 255 else np.uint8)


def palette_png(label: np.ndarray) -> bytes:
    """A label as VOC stores it: indices into its palette."""
    image = Image.fromarray(label)
    image.putpalette([channel for color in voc_colors(256) for channel in color])
    assert image.mode == "P"
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mat(**variables) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


def sbd_mat(label: np.ndarray) -> bytes:
    """A label as SBD stores it: a structure with boundaries and categories beside it."""
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = scipy.sparse.csc_matrix(label == i + 1)
    present = np.unique(label[label > 0])[:, None].astype(np.uint8)
    return mat(
        GTcls={"Boundaries": boundaries, "Segmentation": label, "CategoriesPresent": present}
    )


def write_tar(path: pathlib.Path, files: dict[str, bytes]) -> None:
    """A tar, compressed where its name says so, with entries for folders as `tar` makes them."""
    mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w"
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as opened:
        folders = {parent for name in files for parent in pathlib.PurePosixPath(name).parents}
        for folder in sorted(folders - {pathlib.PurePosixPath(".")}):
            member = tarfile.TarInfo(str(folder))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            opened.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for folder in sorted({name.rpartition("/")[0] for name in files} - {""}):
            opened.writestr(f"{folder}/", b"")
        for name, content in files.items():
            opened.writestr(name, content)


def write_unpacked(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def lines(names) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


VOC_IDS = (*range(21), 255)


def voc_files(
    train, val, others=(), year: int = 2012, labels: dict[str, np.ndarray] | None = None
) -> dict[str, bytes]:
    """The devkit: `others` are images that it has for other tasks."""
    root = f"VOCdevkit/VOC{year}"
    files = {f"{root}/Annotations/{train[0]}.xml": b"<annotation/>"}
    for number, name in enumerate([*train, *val, *others]):
        files[f"{root}/JPEGImages/{name}.jpg"] = jpeg(random_image(100 + number))
    for number, name in enumerate([*train, *val]):
        label = (labels or {}).get(name, ids(number, VOC_IDS))
        files[f"{root}/SegmentationClass/{name}.png"] = palette_png(label)
        files[f"{root}/SegmentationObject/{name}.png"] = palette_png(label)
    for split, names in (("train", train), ("val", val), ("trainval", [*train, *val])):
        files[f"{root}/ImageSets/Segmentation/{split}.txt"] = lines(names)
        files[f"{root}/ImageSets/Main/{split}.txt"] = lines(names)
        files[f"{root}/ImageSets/Main/dog_{split}.txt"] = lines(f"{n} -1" for n in names)
    return files


def sbd_files(train, val, labels: dict[str, np.ndarray] | None = None) -> dict[str, bytes]:
    root = "benchmark_RELEASE/dataset"
    files = {"benchmark_RELEASE/README": b"read me", f"{root}/img/{train[0]}.jpg": b"not needed"}
    for number, name in enumerate([*train, *val]):
        label = (labels or {}).get(name, ids(1000 + number, range(21)))
        files[f"{root}/cls/{name}.mat"] = sbd_mat(label)
        files[f"{root}/inst/{name}.mat"] = b"not needed"
    return files | {f"{root}/train.txt": lines(train), f"{root}/val.txt": lines(val)}
