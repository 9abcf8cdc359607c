"""The dense CRF beside the C++ of its authors: the same results, in what time, and what it buys.

    python benchmarks/dense_crf.py parity --shared ../shared --camvid_model runs/camvid
    python benchmarks/dense_crf.py speed --shared ../shared
    python benchmarks/dense_crf.py effect --shared ../shared --camvid_model runs/camvid
    python benchmarks/dense_crf.py crops --shared ../shared --camvid_model runs/camvid --out crf.png

Needs `pydensecrf2`, and real images: the folder `--shared` with `data/voc2012_sample`,
`data/ade20k_sample`, `data/camvid` and the weights `deeplabv3_mobilenet_v2_voc21`, whose logits are
the unaries of VOC and ADE20K images; those of CamVid images are of a model trained on it.

* `parity` runs both with one preset, the same normalisation and 10 iterations, and prints the mean
  difference of the marginals, the share of pixels of the same class, and how sure the C++ is of its
  class at the others.
* `speed` runs them in turns in one process and prints medians of wall clock and of processor time,
  of all threads, with the C++'s over ours. Compilation is left out.
* `effect` prints mIoU and the accuracy near boundaries of labels, without and with the CRF.
* `crops` draws three pieces of images, where the CRF helps most, where it makes a middling
  difference, and where it harms most: classes and errors without and with it; with `--photos` the
  image and the truth, too.

`--json FILE` keeps the figures.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pydensecrf.densecrf as peer
from PIL import Image
from scipy import ndimage

import flaxseg
from flaxseg.crf import CrfPreset, GaussianKernel, crf_preset, dense_crf
from flaxseg.drawing.images import (
    colorize,
    enlarge,
    error_image,
    save_image,
    stack,
    titled,
    voc_colors,
)
from flaxseg.evaluation import ConfusionMatrix
from flaxseg.evaluation.boundary_metrics import BoundaryMetrics
from flaxseg.inference import read_image
from flaxseg.layers import normalize
from flaxseg.weights import load_pretrained

NORMALIZATION = {
    "symmetric": peer.NORMALIZE_SYMMETRIC,
    "after": peer.NORMALIZE_AFTER,
    "before": peer.NORMALIZE_BEFORE,
    "none": peer.NO_NORMALIZATION,
}
# Half the width of the band around boundaries in which accuracy is measured, in pixels.
TRIMAPS = (2, 5, 10)
# Side of the pieces that are drawn, and how many images of a data set are looked through.
CROP, CROP_IMAGES = 120, 8


def run_peer(unary: np.ndarray, image: np.ndarray, preset: CrfPreset) -> np.ndarray:
    """The marginals of the C++, `[H, W, C]`."""
    height, width, classes = unary.shape
    crf = peer.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, classes).T))
    for kernel in preset.kernels:
        common = {
            "compat": kernel.compat,
            "normalization": NORMALIZATION[kernel.normalization],
        }
        if isinstance(kernel, GaussianKernel):
            crf.addPairwiseGaussian(sxy=kernel.sigma, **common)
        else:
            crf.addPairwiseBilateral(
                sxy=kernel.sigma_xy, srgb=kernel.sigma_rgb, rgbim=np.array(image), **common
            )
    marginals = np.array(crf.inference(preset.iterations))
    return marginals.reshape(classes, height, width).transpose(1, 2, 0)


def ten_iterations(name: str) -> CrfPreset:
    return crf_preset(name)._replace(iterations=10)


def logits_of(model, variables) -> Callable[[np.ndarray], np.ndarray]:
    """A function from an image to the logits `[H, W, C]`."""
    apply = jax.jit(
        lambda image: model.apply(variables, normalize(image[None], model.normalization)).logits[0]
    )
    return lambda image: np.asarray(apply(image))


def voc_model(shared: pathlib.Path):
    return load_pretrained(shared / "data/weights/deeplabv3_mobilenet_v2_voc21.safetensors")


def images_of(args: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, image and unary of `--each` images of each data set."""
    data = args.shared / "data"
    logits = logits_of(*voc_model(args.shared))
    for name, pattern in (
        ("VOC", "voc2012_sample/VOCdevkit/VOC2012/JPEGImages/*.jpg"),
        ("ADE20K", "ade20k_sample/**/images/validation/*.jpg"),
    ):
        for path in sorted(data.glob(pattern))[: args.each]:
            image = read_image(path)
            yield f"{name} {path.stem}", image, -logits(image)
    if args.camvid_model:
        logits = logits_of(*flaxseg.load_model(args.camvid_model))
        for path in sorted((data / "camvid/test").glob("*.jpg"))[:: 233 // args.each][: args.each]:
            image = read_image(path)
            yield f"CamVid {path.stem}", image, -logits(image)


def parity(args: argparse.Namespace) -> list[dict]:
    preset, rows = ten_iterations(args.preset), []
    print(f"{args.preset}, {preset.kernels[1].normalization}, 10 iterations")
    print(f"{'image':<26}{'size':>10}{'mean |dQ|':>12}{'max |dQ|':>10}{'same %':>10}  others")
    for name, image, unary in images_of(args):
        wanted = run_peer(unary, image, preset)
        ours = np.asarray(dense_crf(unary, image, preset))
        other = wanted.argmax(-1) != ours.argmax(-1)
        top = np.sort(wanted, -1)
        row = {
            "image": name,
            "size": image.shape[:2],
            "mean": float(np.abs(ours - wanted).mean()),
            "max": float(np.abs(ours - wanted).max()),
            "same": float(1 - other.mean()),
            "others": int(other.sum()),
            "largest_margin_of_others": float((top[..., -1] - top[..., -2])[other].max(initial=0)),
        }
        rows.append(row)
        print(
            f"{name:<26}{'x'.join(map(str, row['size'])):>10}{row['mean']:>12.2e}"
            f"{row['max']:>10.1e}{100 * row['same']:>10.4f}  {row['others']} pixels, margin of "
            f"their classes at most {row['largest_margin_of_others']:.1e}",
            flush=True,
        )
    return rows


def timed(program: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock, and of the processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    program()
    return time.perf_counter() - wall, time.process_time() - cpu


def speed(args: argparse.Namespace) -> list[dict]:
    """A VOC image at 375 x 500, and one of noise, the worst case; alone and in batches."""
    path = min((args.shared / "data").glob("voc2012_sample/**/JPEGImages/*.jpg"))
    photo = np.asarray(Image.open(path).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).integers(0, 256, photo.shape, np.uint8)
    unary = -logits_of(*voc_model(args.shared))(photo)
    rows = []
    print(f"{jax.default_backend()}, {platform.processor() or platform.machine()}, 375 x 500 x 21")
    print(
        f"{'image':<8}{'preset':<24}{'batch':>6}{'C++ ms':>10}{'ours ms':>10}{'ratio':>7}"
        f"{'C++ cpu':>10}{'ours cpu':>10}{'ratio':>7}   per image"
    )
    for name, image in {"photo": photo, "noise": noise}.items():
        if name not in args.images:
            continue
        for preset_name in args.presets:
            preset = ten_iterations(preset_name)
            for batch in args.batches:
                images, unaries = np.stack([image] * batch), np.stack([unary] * batch)
                device = jax.device_put((unaries, images))
                programs = {
                    "peer": lambda p=preset, i=image: run_peer(unary, i, p),
                    "ours": lambda d=device, p=preset: jax.block_until_ready(dense_crf(*d, p)),
                }
                programs["ours"]()
                times = {key: [] for key in programs}
                for _ in range(args.rounds):
                    for key, program in programs.items():
                        times[key].append(timed(program))
                medians = {
                    key: [statistics.median(t[k] for t in pairs) for k in (0, 1)]
                    for key, pairs in times.items()
                }
                ours = [t / batch for t in medians["ours"]]
                theirs = medians["peer"]
                rows.append(
                    {
                        "image": name,
                        "preset": preset_name,
                        "batch": batch,
                        "peer_wall": theirs[0],
                        "ours_wall": ours[0],
                        "peer_cpu": theirs[1],
                        "ours_cpu": ours[1],
                    }
                )
                print(
                    f"{name:<8}{preset_name:<24}{batch:>6}"
                    + "".join(
                        f"{1e3 * theirs[k]:>10.0f}{1e3 * ours[k]:>10.0f}{ours[k] / theirs[k]:>7.2f}"
                        for k in (0, 1)
                    ),
                    flush=True,
                )
    return rows


def labelled(args: argparse.Namespace) -> Iterator[tuple[str, Callable, int, list]]:
    """Data set, function to logits, number of classes, and pairs of files."""
    data = args.shared / "data"
    voc = data / "voc2012_sample/VOCdevkit/VOC2012"
    pairs = [
        (path, voc / "SegmentationClass" / f"{path.stem}.png")
        for path in sorted((voc / "JPEGImages").glob("*.jpg"))
    ]
    yield "VOC sample", logits_of(*voc_model(args.shared)), 21, pairs
    if args.camvid_model:
        files = sorted((data / "camvid/test").glob("*.jpg"))
        files = files[:: max(1, len(files) // args.limit)][: args.limit]
        pairs = [(path, data / "camvid/testannot" / f"{path.stem}.png") for path in files]
        yield "CamVid test", logits_of(*flaxseg.load_model(args.camvid_model)), 11, pairs


def read_pair(
    image_file: pathlib.Path, label_file: pathlib.Path, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    label = np.array(Image.open(label_file))
    label[label >= classes] = 255
    return read_image(image_file), label


def effect(args: argparse.Namespace) -> list[dict]:
    rows = []
    for name, logits, classes, pairs in labelled(args):
        forms = ["none", *args.presets]
        matrices = {form: ConfusionMatrix(classes) for form in forms}
        bands = {form: BoundaryMetrics(classes, TRIMAPS) for form in forms}
        for pair in pairs:
            image, label = read_pair(*pair, classes)
            scores = logits(image)
            for form in forms:
                q = scores if form == "none" else np.asarray(dense_crf(-scores, image, form))
                pred = q.argmax(-1)
                matrices[form].update(label, pred)
                bands[form].update(label, pred)
        print(f"{name}, {len(pairs)} images")
        for form in forms:
            metrics, near = matrices[form].metrics(), bands[form].scores()
            rows.append(
                {
                    "data": name,
                    "images": len(pairs),
                    "crf": form,
                    "miou": metrics.miou,
                    "pixel_accuracy": metrics.pixel_accuracy,
                    **near.to_dict(),
                }
            )
            trimap = ", ".join(
                f"{100 * of_width.pixel_accuracy:.2f} ({width} px)"
                for width, of_width in near.trimap.items()
            )
            print(
                f"  {form:<22} mIoU {100 * metrics.miou:.2f} %, pixel accuracy "
                f"{100 * metrics.pixel_accuracy:.2f} %, near boundaries {trimap}, boundary IoU "
                f"{100 * near.boundary_iou:.2f} %",
                flush=True,
            )
    return rows


def crops(args: argparse.Namespace) -> list[dict]:
    """Of each image the square that changes most; of these the one that gains most, the median,
    and the one that loses most."""
    found = []
    for name, logits, classes, pairs in labelled(args):
        for pair in pairs[:CROP_IMAGES]:
            image, label = read_pair(*pair, classes)
            scores = logits(image)
            after = np.asarray(dense_crf(-scores, image, args.presets[0])).argmax(-1)
            before = scores.argmax(-1)
            changed = ndimage.uniform_filter((before != after).astype(float), CROP, mode="constant")
            half = CROP // 2
            inside = changed[half : -half or None, half : -half or None]
            top, left = np.unravel_index(inside.argmax(), inside.shape)
            place = np.s_[top : top + CROP, left : left + CROP]
            image, label, before, after = (a[place] for a in (image, label, before, after))
            wrong = [float(((p != label) & (label != 255)).mean()) for p in (before, after)]
            found.append((wrong, name, classes, image, label, before, after))
    found.sort(key=lambda item: item[0][1] - item[0][0])
    lines = []
    for wrong, name, classes, image, label, before, after in (
        found[0],
        found[len(found) // 2],
        found[-1],
    ):
        colors = voc_colors(classes)
        paper = np.full_like(image, 255)
        cells = [
            (f"{name}, without", colorize(before, colors)),
            (f"errors: {100 * wrong[0]:.1f} %", error_image(paper, label, before)),
            ("with CRF", colorize(after, colors)),
            (f"errors: {100 * wrong[1]:.1f} %", error_image(paper, label, after)),
        ]
        if args.photos:
            truth = colorize(np.where(label == 255, 0, label), colors)
            cells = [("image", image), ("truth", truth), *cells]
        lines.append(np.hstack([titled(enlarge(cell), title) for title, cell in cells]))
    save_image(args.out, stack(lines))
    print(args.out)
    return []


PARTS = {"parity": parity, "speed": speed, "effect": effect, "crops": crops}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"))
    parser.add_argument("--camvid_model", type=pathlib.Path, help="of a run on CamVid")
    parser.add_argument("--each", type=int, default=2, help="parity: images of each data set")
    parser.add_argument("--preset", default="deeplab_v2_vgg16", help="parity: of the kernels")
    parser.add_argument("--presets", nargs="+", default=["deeplab_v2_vgg16", "pydensecrf_readme"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="speed")
    parser.add_argument("--images", nargs="+", default=["photo", "noise"], help="speed")
    parser.add_argument("--rounds", type=int, default=5, help="speed: runs of each")
    parser.add_argument("--limit", type=int, default=60, help="effect: images of CamVid")
    parser.add_argument("--out", type=pathlib.Path, default="crf.png", help="crops: the image")
    parser.add_argument("--photos", action="store_true", help="crops: with image and truth")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    rows = PARTS[args.what](args)
    if args.json:
        versions = {"jax": jax.__version__, "python": platform.python_version()}
        args.json.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
