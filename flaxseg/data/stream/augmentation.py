"""Augments an image and its label by random scale, crop, flip, rotation, blur and colour.

An image is interpolated once. Without rotation, the part that the crop shows is cut out and resized
to its size in the crop; with rotation, scale, rotation and crop are one affine map. Interpolation
is bilinear, which at a scale of 0.5 is the exact mean of 2 x 2 pixels; below 0.5, where that would
alias, it is by area. Labels are taken from the nearest pixel on the same grid of pixel centres, so
that edges stay aligned and no id is made up.
"""

import dataclasses
import math

import cv2
import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.settings import between, check_rules

# Largest changes at photometric strength 1, as in SSD (Liu et al. 2016) and the trainers that
# follow it.
_BRIGHTNESS = 32.0  # added, in 0..255 units
_CONTRAST = 0.5  # factor 1 +- this, around mid-grey
_SATURATION = 0.5  # factor 1 +- this
_HUE = 18.0  # degrees
_BLUR_SIGMA = (0.3, 1.2)  # pixels of the crop

_MAX_SCALE = 1000  # an image is enlarged by, or reduced

_LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """States what is drawn at random for each record. With everything zero or off and scale (1, 1),
    only the crop is random.

    Attributes:
      scale: (least, greatest) factor on the size of the image, 0 < least <= greatest; drawn
        uniformly.
      scale_step: draw from least, least + step, ... instead; 0 draws any value. DeepLab uses 0.25.
      flip: mirror left-right half of the time.
      rotate: the largest angle in degrees, 0..180, drawn uniformly in both directions.
      blur: the probability 0..1 of a Gaussian blur of 0.3 to 1.2 pixels.
      photometric: the strength 0..1 of random brightness, contrast, saturation and hue.
      fill: the RGB uint8 colour of crop pixels outside the image, whose label is 255. The default
        is the mean of ImageNet.

    Raises:
      SettingsError: values are out of range; all of them are named.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    scale_step: float = 0.0
    flip: bool = True
    rotate: float = 0.0
    blur: float = 0.0
    photometric: float = 0.0
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self):
        rules = {
            "scale": _scale_range,
            "scale_step": _scale_step,
            "rotate": between(0, 180),
            "blur": between(0, 1),
            "photometric": between(0, 1),
            "fill": _rgb,
        }
        check_rules(vars(self), rules)


def _scale_range(value: tuple[float, ...]) -> str:
    good = len(value) == 2 and 1 / _MAX_SCALE <= value[0] <= value[1] <= _MAX_SCALE
    return "" if good else f"(least, greatest) with 0 < least <= greatest <= {_MAX_SCALE}"


def _scale_step(value: float) -> str:
    good = value == 0 or 1 / _MAX_SCALE <= value <= _MAX_SCALE
    return "" if good else f"0, or at least {1 / _MAX_SCALE} and at most {_MAX_SCALE}"


def _rgb(value: tuple[int, ...]) -> str:
    good = len(value) == 3 and all(0 <= part <= 255 for part in value)
    return "" if good else "an RGB colour of three values 0..255"


def augment(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one random view of an image and its label.

    A scaled image larger than the crop is cut at a random place; a smaller one is put at a random
    place in it.

    Args:
      image: uint8 `[H, W, 3]`.
      label: uint8 `[H, W]`.
      crop_size: `(h, w)` of the result.
      augmentation: what to draw.
      rng: the source of all randomness.

    Returns:
      uint8 `[h, w, 3]` and uint8 `[h, w]`, both C-contiguous.
    """
    scale = _draw_scale(augmentation, rng)
    rows = _place(image.shape[0], crop_size[0], scale, rng)
    columns = _place(image.shape[1], crop_size[1], scale, rng)
    angle = rng.uniform(-augmentation.rotate, augmentation.rotate) if augmentation.rotate else 0.0
    if angle:
        image, label = _rotated_view(image, label, crop_size, rows, columns, angle, augmentation)
    else:
        image, label = _straight_view(image, label, crop_size, rows, columns, augmentation)
    if augmentation.photometric:
        image = cv2.transform(image, _draw_color_map(augmentation.photometric, rng))
    if augmentation.blur and rng.random() < augmentation.blur:
        image = cv2.GaussianBlur(image, (5, 5), rng.uniform(*_BLUR_SIGMA))
    if augmentation.flip and rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


@dataclasses.dataclass(frozen=True)
class _Span:
    """Maps source pixels [start, start + length) to crop pixels [at, at + size), along one axis."""

    start: int
    length: int
    at: int
    size: int

    @property
    def step(self) -> float:
        """Source pixels per crop pixel."""
        return self.length / self.size

    def nearest(self) -> np.ndarray:
        """Returns the source pixel that holds the centre of each crop pixel, from `start`."""
        return (2 * np.arange(self.size) + 1) * self.length // (2 * self.size)


def _draw_scale(augmentation: Augmentation, rng: np.random.Generator) -> float:
    least, greatest = augmentation.scale
    if augmentation.scale_step:
        steps = math.floor((greatest - least) / augmentation.scale_step + 1e-6)
        return least + augmentation.scale_step * int(rng.integers(steps + 1))
    return float(rng.uniform(least, greatest))


def _place(source: int, crop: int, scale: float, rng: np.random.Generator) -> _Span:
    """Chooses what the crop shows along one axis.

    The part that is cut out has a whole number of pixels, so the scale is exact to half a pixel
    over the crop.
    """
    scaled = max(1, round(source * scale))
    if scaled <= crop:
        return _Span(0, source, int(rng.integers(crop - scaled + 1)), scaled)
    length = min(source, max(1, round(crop / scale)))
    return _Span(int(rng.integers(source - length + 1)), length, 0, crop)


def _straight_view(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    rows: _Span,
    columns: _Span,
    augmentation: Augmentation,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out, resizes and pads, without rotation."""
    part = np.s_[
        rows.start : rows.start + rows.length, columns.start : columns.start + columns.length
    ]
    aliases = max(rows.step, columns.step) > 2.0
    seen_image = cv2.resize(
        image[part],
        (columns.size, rows.size),
        interpolation=cv2.INTER_AREA if aliases else cv2.INTER_LINEAR,
    )
    # OpenCV's nearest resize is not on the grid of pixel centres, so the pixels are picked here.
    seen_label = label[part].take(rows.nearest(), axis=0).take(columns.nearest(), axis=1)
    if (rows.size, columns.size) == tuple(crop_size):
        return seen_image, seen_label
    above, left = rows.at, columns.at
    border = (
        above,
        crop_size[0] - above - rows.size,
        left,
        crop_size[1] - left - columns.size,
        cv2.BORDER_CONSTANT,
    )
    return (
        cv2.copyMakeBorder(seen_image, *border, value=augmentation.fill),
        cv2.copyMakeBorder(seen_label, *border, value=IGNORE_LABEL),
    )


def _rotated_view(
    image: np.ndarray,
    label: np.ndarray,
    crop_size: tuple[int, int],
    rows: _Span,
    columns: _Span,
    angle: float,
    augmentation: Augmentation,
) -> tuple[np.ndarray, np.ndarray]:
    """Scales, rotates around the middle of the crop, and crops, in one affine map.

    Args:
      angle: in degrees; positive turns the image clockwise.
    """
    if max(rows.step, columns.step) > 2.0:  # bilinear sampling would alias: take means first
        image = cv2.blur(image, (max(1, round(columns.step)), max(1, round(rows.step))))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle_y, middle_x = crop_size[0] / 2.0, crop_size[1] / 2.0
    # Crop pixel centres, homogeneous (x, y, 1) -> turned back around the middle -> source pixel
    # centres.
    turn = np.array(
        [
            [cos, sin, middle_x - cos * middle_x - sin * middle_y],
            [-sin, cos, middle_y + sin * middle_x - cos * middle_y],
            [0.0, 0.0, 1.0],
        ]
    )
    to_source = np.array(
        [
            [columns.step, 0.0, columns.start - columns.at * columns.step],
            [0.0, rows.step, rows.start - rows.at * rows.step],
            [0.0, 0.0, 1.0],
        ]
    )
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    matrix = (np.linalg.inv(half) @ to_source @ turn @ half)[:2]
    size = (crop_size[1], crop_size[0])
    seen_image = cv2.warpAffine(
        image,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=augmentation.fill,
    )
    seen_label = cv2.warpAffine(
        label,
        matrix,
        size,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=IGNORE_LABEL,
    )
    return seen_image, seen_label


def _draw_color_map(strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draws brightness, contrast, saturation and hue as one affine map of RGB, `[3, 4]`."""
    brightness, contrast, saturation, hue = strength * rng.uniform(-1.0, 1.0, 4)
    factor = 1.0 + _CONTRAST * contrast
    gray = np.outer(np.ones(3), _LUMA)
    saturate = gray + (1.0 + _SATURATION * saturation) * (np.eye(3) - gray)
    cos, sin = math.cos(math.radians(_HUE * hue)), math.sin(math.radians(_HUE * hue))
    turn_hue = _YIQ_TO_RGB @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _RGB_TO_YIQ
    linear = factor * (turn_hue @ saturate)
    offset = np.full((3, 1), 128.0 * (1.0 - factor) + _BRIGHTNESS * brightness)
    return np.hstack([linear, offset])
