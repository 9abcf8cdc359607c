"""Times the training stream against a PyTorch DataLoader with albumentations, on one core.

    python benchmarks/input_pipeline.py voc --voc VOCdevkit/VOC2012
    python benchmarks/input_pipeline.py cityscapes

Both read the same images and labels, JPEG and palette PNG of VOC's size or PNG of that of
Cityscapes, and do the same work: decode, scale by 0.5 to 2, pad with the mean colour and 255, crop
to 513 or 769, mirror, change brightness, contrast, saturation and hue, and collect uint8 batches.
Each is a program bound to the same core, without workers; they are started once and take turns.
Rates are images per second of the core's time, so that other programs on the machine matter little;
the ratio is the median over the rounds. For Cityscapes a third program has `cache_dir` set, with
every record in the folder already.

Images are drawn unless `--voc` gives a devkit, whose pairs are then repeated. `--profile` shows
which functions our time goes to. `--json FILE` writes the results with versions and machine. The
peer needs `pip install torch albumentations`.
"""

import argparse
import cProfile
import io
import json
import os
import pathlib
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

MEAN = (124, 116, 104)
BATCH = 8
# Size, crop, records, and images that are drawn, of which the records are copies.
KINDS = {"voc": ((375, 500), 513, 512, 32), "cityscapes": ((1024, 2048), 769, 32, 6)}
_LISTS = {"val": 1, "test": 1, "train": 0}  # records; 0: all of them


# Images


def draw_pair(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image with detail of all sizes and sensor noise, and a label of 12 classes in blobs."""
    rng = np.random.default_rng(seed)

    def field(cells: int, channels: int) -> np.ndarray:
        shape = (max(2, size[0] // cells), max(2, size[1] // cells), channels)
        return cv2.resize(rng.normal(size=shape), size[::-1], interpolation=cv2.INTER_CUBIC)

    step = size[1] // 8
    image = sum(40 / 2**i * field(max(1, step >> i), 3) for i in range(6))
    image += 128 + rng.normal(0, 1.3, (*size, 3))
    label = field(step, 12).argmax(axis=2).astype(np.uint8)
    return np.clip(image, 0, 255).astype(np.uint8), label


def write_pairs(kind: str, folder: pathlib.Path, voc: str) -> None:
    """Writes pairs in the layout of CamVid, for which there is a builder."""
    _, _, count, drawn = KINDS[kind]
    suffix = "jpg" if kind == "voc" else "png"
    given = sorted(pathlib.Path(voc, "SegmentationClass").glob("*.png"))[:count] if voc else []
    seed = 0
    for split, number in _LISTS.items():
        (folder / split).mkdir(parents=True)
        (folder / f"{split}annot").mkdir()
        pairs, lines = [], []
        for place in range(number or count):
            if split == "train" and place < len(given):
                pairs.append(read_voc_pair(given[place]))
            elif len(pairs) < (len(given) or drawn):
                pairs.append(encode_pair(kind, seed))
                seed += 1
            stem = f"{split}_{place:04d}"
            image, label = f"{split}/{stem}.{suffix}", f"{split}annot/{stem}.png"
            for name, content in zip((image, label), pairs[place % len(pairs)], strict=True):
                (folder / name).write_bytes(content)
            lines.append(f"{image} {label}")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")


def read_voc_pair(mask: pathlib.Path) -> tuple[bytes, bytes]:
    """The files of a pair of VOC; ids of the label modulo 12, as CamVid has no more."""
    label = io.BytesIO()
    Image.open(mask).point([i % 12 for i in range(256)]).save(label, "PNG")
    image = mask.parent.parent / "JPEGImages" / f"{mask.stem}.jpg"
    return image.read_bytes(), label.getvalue()


def encode_pair(kind: str, seed: int) -> tuple[bytes, bytes]:
    """A drawn pair in the formats of VOC or Cityscapes."""
    image, label = io.BytesIO(), io.BytesIO()
    pixels, ids = draw_pair(seed, KINDS[kind][0])
    indices = Image.fromarray(ids)
    if kind == "voc":
        Image.fromarray(pixels).save(image, "JPEG", quality=92)
        indices.putpalette(list(range(256)) * 3)
    else:
        Image.fromarray(pixels).save(image, "PNG")
    indices.save(label, "PNG")
    return image.getvalue(), label.getvalue()


# The programs


def flaxseg_program(kind: str, folder: pathlib.Path, cached: bool) -> tuple[Iterator, dict]:
    """Our stream, read by the calling thread, as `train.py` makes it."""
    import flaxseg.data
    from flaxseg.host_memory import keep_freed_memory

    keep_freed_memory()
    _, crop, count, _ = KINDS[kind]
    stream = flaxseg.data.train_batches(
        "camvid",
        "train",
        data_dir=folder / "prepared",
        batch_size=BATCH,
        crop_size=(crop, crop),
        augmentation=flaxseg.data.Augmentation(photometric=0.5, fill=MEAN),
        num_threads=0,
        cache_dir=folder / "cache" if cached else None,
    )
    for _ in range(count // BATCH if cached else 0):  # an epoch, which fills the folder
        next(stream)
    return (len(batch["id"]) for batch in stream), {"flaxseg": flaxseg.__version__}


def peer_program(kind: str, folder: pathlib.Path) -> tuple[Iterator, dict]:
    """albumentations in a DataLoader, in the calling process."""
    import albumentations
    import torch

    from flaxseg.host_memory import keep_freed_memory

    keep_freed_memory()  # the peer gains by it too
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    crop = KINDS[kind][1]
    transform = albumentations.Compose(
        [
            albumentations.RandomScale((-0.5, 1.0), p=1.0),
            albumentations.PadIfNeeded(
                crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=MEAN, fill_mask=255
            ),
            albumentations.RandomCrop(crop, crop),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.ColorJitter(
                (0.94, 1.06), (0.75, 1.25), (0.75, 1.25), (-0.025, 0.025), p=1.0
            ),
        ]
    )
    lines = (folder / "published" / "train.txt").read_text().splitlines()
    pairs = [[str(folder / "published" / word) for word in line.split()] for line in lines]

    class Pairs(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pairs)

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, str]:
            image = cv2.cvtColor(cv2.imread(pairs[index][0]), cv2.COLOR_BGR2RGB)
            label = np.array(Image.open(pairs[index][1]))
            seen = transform(image=image, mask=label)
            return seen["image"], seen["mask"], pairs[index][0]

    loader = torch.utils.data.DataLoader(Pairs(), BATCH, shuffle=True, drop_last=True)

    def sizes() -> Iterator[int]:
        while True:
            for image, label, _ in loader:
                assert image.dtype == label.dtype == torch.uint8
                assert image.shape[1:] == (crop, crop, 3)
                yield len(image)

    versions = {"torch": torch.__version__, "albumentations": albumentations.__version__}
    return sizes(), {**versions, "opencv": cv2.__version__}


PROGRAMS: dict[str, Callable[[str, pathlib.Path], tuple[Iterator, dict]]] = {
    "flaxseg": lambda kind, folder: flaxseg_program(kind, folder, cached=False),
    "flaxseg, cached": lambda kind, folder: flaxseg_program(kind, folder, cached=True),
    "peer": peer_program,
}


def work(name: str, kind: str, folder: pathlib.Path, core: int) -> None:
    """The child: for each line of its standard input, reads so many batches and answers with
    images, and the seconds that the process computed and that passed.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    sizes, versions = PROGRAMS[name](kind, folder)
    next(sizes)
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        computed, passed = time.process_time(), time.perf_counter()
        images = sum(next(sizes) for _ in range(int(line)))
        print(
            json.dumps([images, time.process_time() - computed, time.perf_counter() - passed]),
            flush=True,
        )


def start(name: str, kind: str, folder: pathlib.Path, core: int) -> subprocess.Popen:
    root = pathlib.Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, __file__, kind, "--worker", name, str(folder), "--core", str(core)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "NO_ALBUMENTATIONS_UPDATE": "1"},
    )


def profile(kind: str, folder: pathlib.Path, cached: bool) -> None:
    """Prints the functions that most of our time goes to."""
    sizes, _ = flaxseg_program(kind, folder, cached)
    next(sizes)
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    images = sum(next(sizes) for _ in range(6 if kind == "cityscapes" else 40))
    profiler.disable()
    print(f"{images} images{', cached' if cached else ''}; seconds in the function itself:")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def main() -> None:
    """Writes the data, runs the programs in turns, and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--voc", default="", help="VOCdevkit/VOC2012, for real images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=0, help="in a round; 0: some seconds' worth")
    parser.add_argument("--core", type=int, default=0, help="that the programs are bound to")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", default="", help="file for the results")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kind = arguments.kind
    if arguments.worker:
        work(arguments.worker[0], kind, pathlib.Path(arguments.worker[1]), arguments.core)
        return

    import flaxseg.data

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pairs(kind, folder / "published", arguments.voc)
        flaxseg.data.prepare("camvid", folder / "prepared", folder / "published", progress=False)
        if arguments.profile:
            profile(kind, folder, cached=False)
            if kind == "cityscapes":
                profile(kind, folder, cached=True)
            return
        compare(arguments, folder)


def compare(arguments: argparse.Namespace, folder: pathlib.Path) -> None:
    """Runs the programs in turns."""
    kind = arguments.kind
    batches = arguments.batches or (2 if kind == "cityscapes" else 12)
    names = [name for name in PROGRAMS if kind == "cityscapes" or name != "flaxseg, cached"]
    children, versions = {}, {}
    for name in names:
        children[name] = start(name, kind, folder, arguments.core)
        versions |= json.loads(children[name].stdout.readline())
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, child in children.items():
            child.stdin.write(f"{batches}\n")
            child.stdin.flush()
            images, computed, passed = json.loads(child.stdout.readline())
            rates[name].append((images / computed, images / passed))
    for child in children.values():
        child.stdin.close()
        child.wait()
    size, crop = KINDS[kind][:2]
    print(f"{kind}: {size[0]} x {size[1]} to {crop} x {crop}, batches of {BATCH}, one core")
    result = {"kind": kind, "machine": platform.machine(), "versions": versions}
    for name in names:
        cpu, wall = (statistics.median(column) for column in zip(*rates[name], strict=True))
        ratio = statistics.median(
            own[0] / peer[0] for own, peer in zip(rates[name], rates["peer"], strict=True)
        )
        result[name] = {"images_per_core_second": cpu, "images_per_second": wall, "ratio": ratio}
        print(
            f"  {name:16s} {cpu:6.1f} images per second of the core ({wall:6.1f} per second that "
            f"passed), {ratio:.2f} times the peer's rate"
        )
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
