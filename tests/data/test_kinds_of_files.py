"""What docs/data.md says of each kind of image file is what training and prediction do."""

import dataclasses
import io
import pathlib
import re
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from image_bytes import png_bytes, png_chunk, tiff_bytes
from PIL import Image

from flaxseg.data.raw.decode import decode_image, decode_label
from flaxseg.errors import DataError
from flaxseg.image_files import FORMATS, SUFFIXES, UndecodableError, read_image_file

DOCS = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in re.search(r"\| file \| as an image.*?\n\n", DOCS, re.S)[0].splitlines()[2:]
    if line
]
SIZE = (6, 9)
PALETTE = np.random.default_rng(1).integers(0, 250, (256, 3))


@dataclasses.dataclass
class Made:
    """A file, its colours in 8 bits without regard to transparency, its alpha, and its samples."""

    encoded: bytes
    colors: np.ndarray | None = None  # uint8 [H, W, 3]
    alpha: np.ndarray | None = None  # 0..255, [H, W]
    samples: np.ndarray | None = None  # [H, W]
    tolerance: int = 0


def eight(samples: np.ndarray, bits: int) -> np.ndarray:
    return samples >> 8 if bits == 16 else samples * (255 // (2**bits - 1))


def on_three(grey: np.ndarray) -> np.ndarray:
    return np.broadcast_to(grey, (*grey.shape[:2], 3))


def random_samples(bands: int, bits: int, used: int | None = None) -> np.ndarray:
    samples = np.random.default_rng(bits).integers(0, 2 ** (used or bits), (*SIZE, bands))
    samples[0, :2] = [[0], [2 ** (used or bits) - 1]]
    return samples


def png_of(what: str, bits: int, used: int | None) -> Made:
    kind, _, key = what.partition(" with a colour ")
    kind = "palette" if kind == "palette with alpha" else kind.replace("opaque ", "")
    bands = {"grey": 1, "RGB": 3, "palette": 1, "grey with alpha": 2, "RGB with alpha": 4}[kind]
    samples, chunks, alpha = random_samples(bands, bits, used), [], None
    if kind == "palette":
        palette = PALETTE[: 2**bits]
        chunks.append(png_chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
        colors = palette[samples[..., 0]]
        if what == "palette with alpha":
            of_index = np.arange(2**bits) * 200 // 2**bits
            chunks.append(png_chunk(b"tRNS", of_index.astype(np.uint8).tobytes()))
            alpha = of_index[samples[..., 0]]
    else:
        if "opaque" in what:
            samples[..., -1] = 2**bits - 1
        colors = on_three(eight(samples[..., : 1 if bands < 3 else 3], bits))
        if bands in (2, 4):
            alpha = eight(samples[..., -1], bits)
    if key:
        color = samples[0, 1]  # the largest value, and other pixels have it too
        chunks.append(png_chunk(b"tRNS", struct.pack(f">{bands}H", *color)))
        alpha = 255 * (samples != color).any(axis=-1)
    encoded = png_bytes(samples, bits, kind, *chunks)
    return Made(encoded, colors, alpha, samples[..., 0], tolerance=1)


def tiff_of(what: str, bits: int, used: int | None) -> Made:
    if what == "grey, JPEG compression":
        return Made(saved(Image.new("L", SIZE, 90), "TIFF", compression="jpeg"), np.full(3, 90))
    bands = re.match(r"(\d+) bands", what)
    photometric, number, extra = {
        "grey": (1, 1, ()),
        "grey whose 0 is white": (0, 1, ()),
        "palette": (3, 1, ()),
        "RGB": (2, 3, ()),
        "grey with alpha": (1, 2, (2,)),
        "RGB with alpha": (2, 4, (2,)),
        "RGB and a band not declared as alpha": (2, 4, ()),
    }.get(what) or (2 if int(bands[1]) > 3 else 1, int(bands[1]), ())
    samples, tags, alpha = random_samples(number, bits, used), {}, None
    colors = on_three(eight(samples[..., : 1 if number < 3 else 3], bits))
    if photometric == 0:
        colors = 255 - colors
    if what == "palette":
        palette = PALETTE[: 2**bits]
        tags[320] = tuple(int(value) * 257 for value in palette.T.reshape(-1))
        colors = palette[samples[..., 0]]
    if extra:
        alpha = eight(samples[..., -1], bits)
    encoded = tiff_bytes(samples, bits, photometric, extra=extra, tags=tags)
    return Made(encoded, colors, alpha, samples[..., 0], tolerance=1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette_image() -> tuple[Image.Image, np.ndarray]:
    samples = random_samples(1, 8)[..., 0]
    image = Image.fromarray(samples.astype(np.uint8), "L")
    image.putpalette(PALETTE.astype(np.uint8).tobytes())
    return image, samples


def pillow_of(kind: str, what: str, bits: int) -> Made:
    """A file of a format that Pillow writes in the form that is wanted."""
    colors = random_samples(3, 8).astype(np.uint8)
    if kind == "JPEG":  # lossy: of one colour
        image = Image.new("RGB", (9, 6), (200, 90, 30))
        image = image.convert({"grey": "L", "RGB": "RGB", "CMYK": "CMYK"}[what])
        encoded = saved(image, "JPEG", quality=95)
        return Made(encoded, np.asarray(image.convert("RGB")), tolerance=4)
    if kind == "WEBP":
        alpha = random_samples(1, 8)[..., 0] if "alpha" in what else None
        pixels = colors if alpha is None else np.dstack([colors, alpha.astype(np.uint8)])
        encoded = saved(Image.fromarray(pixels), "WEBP", lossless=True, exact=True)
        return Made(encoded, colors, alpha, tolerance=1)
    if kind == "PPM":
        grey = what == "grey"
        values = random_samples(1 if grey else 3, bits)
        header = f"P{5 if grey else 6} 9 6 {2**bits - 1}\n".encode()
        encoded = header + values.astype(f">u{bits // 8}").tobytes()
        scaled = values if bits == 8 else values >> 8 if grey else np.rint(values / 257)
        return Made(encoded, on_three(scaled))
    if what == "RGB":
        return Made(saved(Image.fromarray(colors), kind), colors)
    image, samples = palette_image()
    index = int(samples[0, 1]) if "transparent" in what else None
    more = {"optimize": False} if kind == "GIF" else {}  # which would renumber the indices
    more |= {} if index is None else {"transparency": index}
    encoded = saved(image, kind, **more)
    alpha = None if index is None else 255 * (samples != index)
    return Made(encoded, PALETTE[samples], alpha, samples)


def unread() -> Iterator[Made]:
    for start in (
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x1cftypavif",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"8BPS",
    ):
        yield Made(start + bytes(100))


def several_frames(kind: str) -> Made:
    frames = [Image.new("RGB", (9, 6), color) for color in ((255, 0, 0), (0, 0, 255))]
    more = {"lossless": True} if kind == "WEBP" else {}
    encoded = saved(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    return Made(encoded, on_three(np.full((*SIZE, 1), 1)) * np.array([255, 0, 0]))


def turned_by_exif(kind: str) -> Made:
    upright = np.kron(random_samples(3, 8)[:2, :3], np.ones((8, 8, 1))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    more = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    more |= {"lossless": True} if kind == "WEBP" else {}
    encoded = saved(stored, kind, exif=exif, **more)
    return Made(encoded, upright, tolerance=4)


def files_of(row: str) -> Iterator[Made]:
    """Makes every file that the first cell of a row stands for."""
    if row.startswith("anything else"):
        yield from unread()
        return
    for words, make in (("of several frames", several_frames), ("turned by EXIF", turned_by_exif)):
        if words in row:
            kinds = row.removesuffix(words).strip()
            yield from (make(kind.upper()) for kind in re.split(", | or ", kinds))
            return
    kind, what, depth = re.fullmatch(r"(\w+), (.*?)(?:, (\d.* bits.*))?", row).groups()
    if depth == "32 bits or floating point":
        for bands in (1, 3):
            photometric = 1 if bands == 1 else 2
            yield Made(tiff_bytes(random_samples(bands, 31), 32, photometric))
            yield Made(tiff_bytes(np.ones((*SIZE, bands)), 32, photometric, sample_format=3))
        return
    used = re.search(r"of which (\d+) are used", depth or "")
    for bits in map(int, re.findall(r"\d+", (depth or "8 bits").partition("bits")[0])):
        for each in what.split(" or "):
            used_bits = int(used[1]) if used else None
            if kind in ("PNG", "TIFF"):
                yield {"PNG": png_of, "TIFF": tiff_of}[kind](each, bits, used_bits)
            else:
                yield pillow_of(kind.upper(), each, bits)


def wanted(made: Made, action: str) -> np.ndarray:
    """The pixels that a row promises."""
    if not action.startswith("laid over white"):
        assert made.alpha is None or made.alpha.min() == 255
        return made.colors
    alpha = made.alpha[..., None] / 255
    return np.rint(made.colors * alpha + 255 * (1 - alpha))


@pytest.mark.parametrize(("row", "action", "said", "as_mask"), ROWS, ids=[r[0] for r in ROWS])
def test_a_row_of_the_table_holds_in_training_and_prediction(tmp_path, row, action, said, as_mask):
    for number, made in enumerate(files_of(row)):
        path = tmp_path / f"{number}.png"  # the content decides
        path.write_bytes(made.encoded)
        if action == "refused":
            with pytest.raises(UndecodableError) as in_training:
                decode_image(made.encoded)
            with pytest.raises(DataError) as in_prediction:
                read_image_file(path)
            assert str(in_prediction.value) == f"{path}: {in_training.value}"
        else:
            predicted = read_image_file(path)
            off = abs(predicted.pixels.astype(int) - wanted(made, action))
            assert off.max() <= made.tolerance, (row, off.max())
            assert bool(predicted.notes) == bool(said), predicted.notes
            assert ("little is left" in str(predicted.notes)) == (said == "little is left")
            if "turned" in action:
                with pytest.raises(UndecodableError, match="EXIF orientation 6"):
                    decode_image(made.encoded)
            else:
                trained = decode_image(made.encoded)
                np.testing.assert_array_equal(trained.pixels, predicted.pixels)
                assert trained.notes == predicted.notes
        if as_mask == "refused":
            with pytest.raises(UndecodableError):
                decode_label(made.encoded)
        else:
            assert as_mask in ("its values", "its indices")
            np.testing.assert_array_equal(decode_label(made.encoded), made.samples)


def test_the_table_names_every_format_and_suffix():
    assert len(ROWS) > 40
    kinds = " ".join(row[0] for row in ROWS).upper()
    assert [kind for kind in FORMATS if kind not in kinds] == []
    listed = re.search(r"Suffixes count in any case: `([^`]*)`", DOCS)[1].split()
    assert sorted(listed) == sorted(SUFFIXES)


@pytest.mark.parametrize(
    ("samples", "bits", "words"),
    [
        (np.zeros((4, 5, 5), int), 8, "a TIFF of 5 bands of 8 bits; give 3"),
        (np.zeros((4, 5, 13), int), 16, "a TIFF of 13 bands of 16 bits; give 3"),
        (np.zeros((4, 5, 4), int), 8, "the fourth of which is not declared as alpha; give 3"),
        (np.zeros((4, 5, 3)), 32, r"a TIFF of 3 bands of 32 bits \(floating point\); give 8 or 16"),
    ],
)
def test_a_tiff_of_other_bands_is_named_with_what_to_give(samples, bits, words):
    encoded = tiff_bytes(samples, bits, 2, sample_format=3 if samples.dtype.kind == "f" else 1)
    with pytest.raises(UndecodableError, match=words) as caught:
        decode_image(encoded)
    assert caught.value.kind == "pixel_format"


def test_tags_that_claim_more_than_the_file_has_are_refused_before_a_decoder_believes_them():
    whole = tiff_bytes(np.zeros((4, 5, 3), int), 8, 2)
    count = whole.index(struct.pack("<HHI", 258, 4, 3)) + 4
    claimed = whole[:count] + struct.pack("<I", 1 << 30) + whole[count + 4 :]
    with pytest.raises(UndecodableError, match="claim more than its"):
        decode_image(claimed)
    tags = b"".join(struct.pack("<HHII", tag, 1, 600_000, 8) for tag in range(1000))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1000) + tags + bytes(600_000)
    image = saved(Image.new("RGB", (9, 6)), "PNG")
    with pytest.raises(UndecodableError, match="EXIF tags unpack to too many bytes"):
        decode_image(image[:33] + png_chunk(b"eXIf", exif[6:]) + image[33:])
    for end in (5, 9, 100, 140):
        with pytest.raises(UndecodableError):
            decode_image(whole[:end])
