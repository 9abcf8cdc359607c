"""PNG and TIFF files of every depth and number of bands, written sample by sample."""

import struct
import zlib

import numpy as np

PNG_TYPES = {"grey": 0, "RGB": 2, "palette": 3, "grey with alpha": 4, "RGB with alpha": 6}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_bytes(samples: np.ndarray, bits: int, color_type: str, *chunks: bytes) -> bytes:
    """A PNG of samples [H, W, C], with further chunks before its pixels."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, PNG_TYPES[color_type], 0, 0, 0)
    rows = b"".join(b"\0" + packed(row, bits, ">") for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(chunks)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def tiff_bytes(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    extra: tuple[int, ...] = (),
    sample_format: int = 1,
    order: str = "<",
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """A TIFF of samples [H, W, C] in one strip; floating point if `samples` are."""
    height, width, bands = samples.shape
    data = b"".join(packed(row, bits, order) for row in samples)
    data += b"\0" * (len(data) % 2)
    values = {
        256: (width,), 257: (height,), 258: (bits,) * bands, 259: (1,), 262: (photometric,),
        273: (8,), 277: (bands,), 278: (height,), 279: (len(data),), 338: extra,
        339: (sample_format,) * bands, **(tags or {}),
    }  # fmt: skip
    values = {tag: numbers for tag, numbers in sorted(values.items()) if numbers}
    directory, behind = struct.pack(order + "H", len(values)), b""
    start = 8 + len(data) + 2 + 12 * len(values) + 4
    for tag, numbers in values.items():
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            place = struct.pack(order + "I", start + len(behind))
            content, behind = place, behind + content
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + content
    mark = b"II" if order == "<" else b"MM"
    return (
        struct.pack(order + "2sHI", mark, 42, 8 + len(data)) + data + directory + bytes(4) + behind
    )


def packed(row: np.ndarray, bits: int, order: str) -> bytes:
    """The bytes of one row of samples."""
    if row.dtype.kind == "f" or bits > 8:
        return row.astype(f"{order}{row.dtype.kind}{bits // 8}").tobytes()
    of_samples = np.unpackbits(row.astype(np.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(of_samples.reshape(-1)).tobytes()
