"""Describes how an image becomes class probabilities: scales, mirror images, windows, averages.

One description for the trainer, `evaluate` and `predict`; `segmenter.py` carries it out. One or two
points of mIoU lie here, so each system's paper has its own by name (`named_protocols.py`).
"""

import dataclasses
import math

import numpy as np

from flaxseg.errors import ConfigError
from flaxseg.settings import LARGEST_SIDE, check_rules, one_of

SOFTMAX = ("window", "image", "end")
FLIP_FUSIONS = ("probabilities", "logits", "logit_sum", "product")
FUSIONS = ("mean", "max")
WEIGHTS = ("uniform", "gaussian")
PLACES = ("centre", "end")

# Standard deviation of Gaussian window weights, as a share of the side.
_GAUSSIAN_WIDTH = 1 / 8
# They do not fall below this share of their largest value, so that corners of the image, which
# one window alone sees, keep their precision.
_GAUSSIAN_FLOOR = 1e-3

_MAX_SCALES = 100
_MAX_SCALE = 1000


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Describes what is done with an image at evaluation.

    The image is resized (bilinear, half-pixel centres, no antialiasing: OpenCV's default) to each
    of the scales and run as a whole or in windows; the results are brought back to the size of the
    image, bilinearly, and fused.

    Attributes:
      scales: factors of the sides, each above 0.
      long_side: the length, in pixels, to which the longer side is brought at scale 1; or (least,
        most) between which it is brought; or None for the image's own size.
      short_side: (least, most) in pixels: at scale 1 the image is enlarged or reduced so that its
        shorter side lies between them. Not together with long_side.
      flip: whether the mirror image is run, too.
      flip_fusion: with softmax "window", how a window and its mirror image become one:
        "probabilities", their mean; "logits", the softmax of the mean of their logits; "logit_sum",
        that of the sum; "product", the product of their probabilities, not normalised.
      window: side, or (height, width), of windows in pixels; None runs the image as a whole.
        Smaller images are padded to it with the model's mean colour.
      window_stride: from window to window, at most their size; 2/3 of it, rounded up, by default.
        The last window of a row ends at the border.
      window_weights: "uniform" or "gaussian", where the middle of a window counts more.
      overlap: "mean" over the windows that saw a pixel, or "sum" (where scales are averaged, pixels
        that more windows saw weigh more, as in DFN's code).
      pad_to: (height, width) of a canvas that every image is put on, in place of windows; a
        larger image is run in windows of this size, which overlap by a third.
      pad_multiple: images that are run as a whole are padded to multiples of it, so that fewer
        sizes are compiled.
      pad_place: "centre" has the padding on all sides (the odd pixel at the end), "end" at the
        bottom and right.
      softmax: "window" makes probabilities in each window (semseg); "image" averages the logits
        of overlapping windows and makes probabilities at the size of the image, of each scale and
        mirror image (mmsegmentation); "end" averages logits all the way.
      fusion: of scales (and with softmax other than "window" of mirror images): "mean", or the
        largest value ("max").

    Raises:
      ConfigError: a value out of range, or two that exclude each other.

    >>> Protocol(scales=(0.75, 1.0), flip=True).describe()
    'whole(scales=(0.75, 1.0), flip=True)'
    """

    scales: tuple[float, ...] = (1.0,)
    long_side: int | tuple[int, int] | None = None
    short_side: tuple[int, int] | None = None
    flip: bool = False
    flip_fusion: str = "probabilities"
    window: int | tuple[int, int] | None = None
    window_stride: int | tuple[int, int] | None = None
    window_weights: str = "uniform"
    overlap: str = "mean"
    pad_to: tuple[int, int] | None = None
    pad_multiple: int = 1
    pad_place: str = "end"
    softmax: str = "window"
    fusion: str = "mean"

    def __post_init__(self):
        rules = {
            "scales": _scales,
            "softmax": one_of(*SOFTMAX),
            "flip_fusion": one_of(*FLIP_FUSIONS),
            "fusion": one_of(*FUSIONS),
            "window_weights": one_of(*WEIGHTS),
            "pad_place": one_of(*PLACES),
            "overlap": one_of("mean", "sum"),
            "window": _one_or_two,
            "window_stride": _one_or_two,
            "pad_to": _two,
            "short_side": _two,
            "long_side": _one_or_two,
            "pad_multiple": _whole,
        }
        given = {name: rule for name, rule in rules.items() if getattr(self, name) is not None}
        check_rules(vars(self), given)
        if self.long_side is not None and self.short_side is not None:
            raise ConfigError("long_side and short_side cannot both be set.")
        for name in ("long_side", "short_side"):
            sides = getattr(self, name)
            if isinstance(sides, tuple) and sides[0] > sides[1]:
                raise ConfigError(f"{name} is {sides}; it must be (least, most).")
        if self.window is None and self.window_stride is not None:
            raise ConfigError("window_stride is set, and there is no window.")
        if self.window is not None and (self.pad_to is not None or self.pad_multiple != 1):
            raise ConfigError("pad_to and pad_multiple are for whole images, without window.")
        if self.window is not None and any(
            s > w for s, w in zip(self._stride(), _pair(self.window), strict=True)
        ):
            raise ConfigError(
                f"window_stride is {self.window_stride} and window {self.window}; a larger stride "
                "would leave pixels out."
            )
        if self.flip_fusion != "probabilities" and self.softmax != "window":
            raise ConfigError(
                f"flip_fusion is {self.flip_fusion!r}, which is for softmax='window'; with "
                f"softmax={self.softmax!r} mirror images are fused as scales are."
            )

    def describe(self) -> str:
        """Returns the text that `parse_protocol` understands."""
        fields = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"whole({', '.join(fields)})"

    @property
    def is_plain(self) -> bool:
        """Returns whether it is one run of the whole image as it is."""
        return self == Protocol()

    @property
    def flips_windows(self) -> bool:
        """Returns whether each window runs with its mirror image, so that both share a stream."""
        return self.flip and self.softmax == "window"

    @property
    def is_canvas(self) -> bool:
        """Returns whether this is one run of the whole image, with or without a canvas."""
        return self.pad_place == "end" and dataclasses.replace(self, pad_to=None).is_plain

    def _stride(self) -> tuple[int, int]:
        if self.window_stride is not None:
            return _pair(self.window_stride)
        return tuple(math.ceil(side * 2 / 3) for side in _pair(self.window or self.pad_to))

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Returns the (height, width) at which an image of a size runs at a scale; at least 1.

        With long_side the longer side becomes `round(scale * long_side)` and the other follows it,
        as in semseg.
        """
        if self.long_side is not None:
            least, most = _pair(self.long_side)
            longest = max(1, round(scale * min(max(*size, least), most)))
            return tuple(max(1, round(longest / max(size) * n)) for n in size)
        factor = scale
        if self.short_side is not None:
            shortest = min(size)
            factor *= min(max(shortest, self.short_side[0]), self.short_side[1]) / shortest
        return tuple(max(1, round(factor * n)) for n in size)

    def layout(self, size: tuple[int, int], scale: float) -> "Layout":
        """Returns where the windows lie on an image of a size at a scale."""
        scaled = self.scaled_size(size, scale)
        if self.window is not None or self.pad_to is not None:
            window, stride = _pair(self.window or self.pad_to), self._stride()
        else:
            window = tuple(-(-n // self.pad_multiple) * self.pad_multiple for n in scaled)
            stride = window
        canvas = tuple(max(n, w) for n, w in zip(scaled, window, strict=True))
        spare = [n - m for n, m in zip(canvas, scaled, strict=True)]
        offset = tuple(n // 2 if self.pad_place == "centre" else 0 for n in spare)
        starts = tuple(
            window_starts(n, w, s) for n, w, s in zip(canvas, window, stride, strict=True)
        )
        return Layout(scaled, canvas, offset, window, *starts)

    def weights(self, window: tuple[int, int]) -> np.ndarray:
        """Returns what each pixel of a window counts: float32 [h, w], at most 1."""
        if self.window is None or self.window_weights == "uniform":
            return np.ones(window, np.float32)
        lines = []
        for side in window:
            place = (np.arange(side) - (side - 1) / 2) / (_GAUSSIAN_WIDTH * side)
            lines.append(np.exp(-0.5 * place**2))
        weights = np.outer(*lines)
        return np.maximum(weights / weights.max(), _GAUSSIAN_FLOOR).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places windows on a scaled image.

    Attributes:
      scaled: (height, width) of the scaled image.
      canvas: the same with padding; windows lie on it.
      offset: (top, left) of the image on the canvas.
      window: (height, width).
      row_starts: first rows of windows on the canvas, rising; the last window ends with it.
      column_starts: the same for columns.
    """

    scaled: tuple[int, int]
    canvas: tuple[int, int]
    offset: tuple[int, int]
    window: tuple[int, int]
    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]


def window_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Returns the first pixels of windows over a side, `stride` apart; the last ends with the side.

    >>> window_starts(2048, 713, 476)
    (0, 476, 952, 1335)
    """
    count = max(0, -(-(length - window) // stride)) + 1
    return tuple(max(0, min(i * stride, length - window)) for i in range(count))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _scales(value: object) -> str:
    good = isinstance(value, tuple) and 0 < len(value) <= _MAX_SCALES
    good = good and all(_is_number(s) and 1 / _MAX_SCALE <= s <= _MAX_SCALE for s in value)
    wanted = (
        f"a tuple of numbers above 0, such as (0.75, 1.0); {_MAX_SCALES} at most, each up to "
        f"{_MAX_SCALE}."
    )
    return "" if good else wanted


def _whole(value: object) -> str:
    good = isinstance(value, int) and _is_number(value) and 1 <= value <= LARGEST_SIDE
    return "" if good else f"a whole number of at least 1 and at most {LARGEST_SIDE}."


def _two(value: object) -> str:
    good = isinstance(value, tuple) and len(value) == 2 and not any(map(_whole, value))
    return "" if good else "a pair of whole numbers, each at least 1."


def _one_or_two(value: object) -> str:
    good = not (_whole(value) and _two(value))
    return "" if good else "a whole number or a pair of them, each at least 1."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
