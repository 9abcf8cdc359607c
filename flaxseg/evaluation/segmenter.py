"""Carries out a `Protocol`: pictures of any size through a network of fixed ones.

Each combination of scale and mirror image is a stream of rows. Windows lie on the scaled picture in
rows; what they say is added up in a band as high as one window, and as soon as the next row of
windows can no longer change a line of the band, it is brought to the size of the picture and fused
with the same line of the other streams. So the memory on the device does not grow with the height
of a picture, and very wide ones are done in blocks of columns.

All positions are computed on the host and handed over as small tables of indices and fractions,
so the compiled programs know only sizes rounded up (`_rounded`): there are few of them, whatever
sizes come.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxseg.crf import CrfPreset, dense_crf, unary_from_probabilities
from flaxseg.evaluation.predict import MAX_CLASSES, compiled_probabilities, predict
from flaxseg.evaluation.program_limit import ProgramLimit
from flaxseg.evaluation.protocol import Layout, Protocol
from flaxseg.layers import largest_class, normalize

# Lines that are fused and leave the device at a time.
_LINES = 128
# Columns of the picture that are done at a time.
_BLOCK = 4096


class Table(NamedTuple):
    """Where lines of a result lie between lines of a source: `(1 - part) * low + part * high`.

    Attributes:
      low: int32 [n].
      high: int32 [n].
      part: float32 [n] in [0, 1).
      inside: bool [n], False where there is no source.
    """

    low: np.ndarray
    high: np.ndarray
    part: np.ndarray
    inside: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Stream:
    """One run over the picture."""

    layout: Layout
    mirrored: bool


class Segmenter:
    """A network with a protocol, for pictures of any size.

    Example:

        model, variables = flaxseg.load_model("runs/camvid")
        segment = Segmenter(model, variables, parse_protocol("whole(scales=(0.75, 1.0, 1.25))"))
        classes = segment(image)

    Attributes:
      model: the network.
      protocol: what is done.
      num_classes: of the network.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping,
        protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
        *,
        devices: Sequence[jax.Device] | None = None,
        windows_per_device: int = 1,
        crf: CrfPreset | None = None,
    ):
        """Puts the variables on the devices.

        Args:
          model: a flaxseg model with at most 255 classes.
          variables: its parameters and BatchNorm statistics.
          protocol: what is done with a picture.
          devices: those that the windows of a row are spread over; by default the first one.
          windows_per_device: how many are given to a device at a time. They run one after the
            other, so that the result does not depend on it; more of them only save round trips.
          crf: refines the probabilities by the picture. It needs those of all pixels at a time, so
            memory grows with the picture.

        Raises:
          ValueError: the model has more than 255 classes, or windows_per_device is below 1.
        """
        if model.num_classes > MAX_CLASSES:
            raise ValueError(
                f"a label map is uint8 and 255 is 'ignore', so at most {MAX_CLASSES} classes fit; "
                f"the model has {model.num_classes}."
            )
        if windows_per_device < 1:
            raise ValueError(f"windows_per_device is {windows_per_device}; it must be at least 1.")
        self.model, self.protocol, self.num_classes = model, protocol, model.num_classes
        self._crf = crf
        mesh, self._target = None, devices[0] if devices else None
        if devices is not None and len(devices) > 1:
            mesh = Mesh(np.array(devices), ("data",))
            self._target = NamedSharding(mesh, P())
        self._variables = jax.device_put(variables, self._target)
        self._windows = windows_per_device * (len(devices) if devices else 1)
        self._add = _compiled_add(
            model,
            protocol.flip_fusion if self._flips_windows else None,
            protocol.softmax == "window",
            mesh,
        )
        programs = self._add, _take, _shifted, _zeros, _fuse, _share, _softmax, _classes
        self._limit = ProgramLimit(*programs, _normalised, compiled_probabilities(model, crf))

    @property
    def _is_one_run(self) -> bool:
        """Whether the picture goes through the network as it is, on one device."""
        return self.protocol.is_plain and not isinstance(self._target, NamedSharding)

    @property
    def _flips_windows(self) -> bool:
        return self.protocol.flip and self.protocol.softmax == "window"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the classes of a picture, uint8 [H, W].

        Args:
          image: uint8 RGB [H, W, 3], any size from 1x1.

        Raises:
          ValueError: the image has another shape or dtype.
          ConfigError: it does not fit on the protocol's canvas.
        """
        image = _checked(image)
        if self._is_one_run:
            return predict(self.model, self._variables, image, crf=self._crf)
        if self._crf is not None:
            return np.asarray(_classes(self._marginals(image)))
        result = np.empty(image.shape[:2], np.uint8)
        for rows, columns, fused in self._parts(image):
            lines = np.asarray(_classes(fused))
            result[rows, columns] = lines[: rows.stop - rows.start, : columns.stop - columns.start]
        return result

    def batch(self, images: np.ndarray) -> np.ndarray:
        """Returns the classes of pictures of one size, uint8 [N, H, W] of [N, H, W, 3]: the
        `predict_fn` of `evaluate`."""
        return np.stack([self(image) for image in images])

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Returns the probabilities of a picture, float32 [H, W, C], which sum to 1; those of the
        CRF, if there is one.

        Args:
          image: as for a call.

        Raises:
          ValueError, ConfigError: as for a call.
        """
        return self._gathered(image, self.probability_parts(image))

    def probability_parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yields rows, columns and their probabilities [rows, columns, C], so that those of a large
        picture are never held as a whole, unless it is run as a whole or refined by a CRF.

        Args, Raises: as for a call.
        """
        image = _checked(image)
        whole = tuple(slice(0, side) for side in image.shape[:2])
        if self._is_one_run:
            self._limit.expect(image.shape)
            compiled = compiled_probabilities(self.model, self._crf)
            yield *whole, np.asarray(compiled(self._variables, image))
        elif self._crf is not None:
            yield *whole, np.asarray(self._marginals(image))
        else:
            yield from self._network_parts(image)

    def _marginals(self, image: np.ndarray) -> jax.Array:
        """Of the CRF, [H, W, C], after what the protocol does."""
        unary = unary_from_probabilities(self._gathered(image, self._network_parts(image)))
        return dense_crf(unary, image, self._crf)

    def _gathered(
        self, image: np.ndarray, parts: Iterator[tuple[slice, slice, np.ndarray]]
    ) -> np.ndarray:
        result = np.empty((*np.shape(image)[:2], self.num_classes), np.float32)
        for rows, columns, values in parts:
            result[rows, columns] = values
        return result

    def _network_parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
        for rows, columns, fused in self._parts(image):
            lines = np.asarray(_normalised(fused, self.protocol.softmax == "end"))
            size = rows.stop - rows.start, columns.stop - columns.start
            yield rows, columns, lines[: size[0], : size[1]]

    def _parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, jax.Array]]:
        """Rows and columns of the picture with their fused values, on the device."""
        image = _checked(image)
        height, width = image.shape[:2]
        if self.protocol.window is None:  # otherwise sizes are rounded, so there are few
            self._limit.expect((height, width))
        mirrors = (False, True) if self.protocol.flip and not self._flips_windows else (False,)
        streams = [
            _Stream(self.protocol.layout((height, width), scale), mirrored)
            for scale in self.protocol.scales
            for mirrored in mirrors
        ]
        pictures = {
            mirrored: self._on_device(image[:, ::-1] if mirrored else image) for mirrored in mirrors
        }
        for left in range(0, width, _BLOCK):
            columns = slice(left, min(left + _BLOCK, width))
            bands = [
                _Band(self, stream, pictures[stream.mirrored], (height, width), columns)
                for stream in streams
            ]
            for top in range(0, height, _LINES):
                rows = slice(top, min(top + _LINES, height))
                fused = None
                for band in bands:
                    lines = band.lines(rows)
                    if self.protocol.softmax == "picture":
                        lines = _softmax(lines)
                    fused = lines if fused is None else _fuse(fused, lines, self.protocol.fusion)
                mean = self.protocol.fusion == "mean"
                yield rows, columns, _share(fused, np.float32(len(bands))) if mean else fused

    def _on_device(self, image: np.ndarray) -> jax.Array:
        if self.protocol.window is not None:
            padded = np.zeros((*map(_rounded, image.shape[:2]), 3), np.uint8)
            padded[: image.shape[0], : image.shape[1]] = image
            image = padded
        return jax.device_put(image, self._target)


class _Band:
    """What the windows of one stream say, as far as lines are still needed."""

    def __init__(
        self,
        segmenter: Segmenter,
        stream: _Stream,
        picture: jax.Array,
        size: tuple[int, int],
        columns: slice,
    ):
        layout = self._layout = stream.layout
        # Whole pictures are compiled for each size anyway.
        self._round = _rounded if segmenter.protocol.window is not None else int
        self._segmenter, self._picture, self._size = segmenter, picture, size
        wanted = np.arange(columns.start, columns.stop)
        if stream.mirrored:
            wanted = size[1] - 1 - wanted
        table = _interpolation(wanted, size[1], layout.scaled[1], layout.offset[1])
        first, last = int(table.low.min()), int(table.high.max())
        starts = [
            start
            for start in layout.column_starts
            if start <= last and start + layout.window[1] > first
        ]
        origin = starts[0]
        span = starts[-1] + layout.window[1] - origin
        self._windows = [
            (_sampled(start, layout.window[1], 1, layout, size), start - origin) for start in starts
        ]
        self._columns = _filled(
            Table(table.low - origin, table.high - origin, table.part, table.inside),
            self._round(len(wanted)),
        )
        # A line more than a window: the last one before the windows' first line.
        shape = layout.window[0] + 1, self._round(span)
        self._sum = _zeros((*shape, segmenter.num_classes))
        self._weight = _zeros(shape)
        if segmenter._target is not None:
            self._sum, self._weight = jax.device_put((self._sum, self._weight), segmenter._target)
        self._weights = segmenter.protocol.weights(layout.window)
        self._first_line, self._next_row, self._done = 0, 0, 0

    def lines(self, rows: slice) -> jax.Array:
        """The values of lines of the picture, float32 [_LINES, columns, C]; called from top to
        bottom."""
        layout = self._layout
        table = _interpolation(
            np.arange(rows.start, rows.stop), self._size[0], layout.scaled[0], layout.offset[0]
        )
        result, had = None, 0
        while had < len(table.low):
            ready = int(np.searchsorted(table.high, self._done))  # lines below it are final
            if ready > had:
                here = np.arange(len(table.low))
                take = _filled_mask((here >= had) & (here < ready), _LINES)
                low, high = (
                    np.clip(line - self._first_line, 0, layout.window[0])
                    for line in (table.low, table.high)
                )
                lines = _filled(Table(low, high, table.part, table.inside), _LINES)
                result = _take(
                    result,
                    self._sum,
                    self._weight,
                    lines,
                    self._columns,
                    take,
                    self._segmenter.protocol.overlap == "mean",
                )
                had = ready
            if had < len(table.low):
                self._run_row()
        return result

    def _run_row(self) -> None:
        """Adds the next row of windows."""
        layout, segmenter = self._layout, self._segmenter
        start = layout.row_starts[self._next_row]
        # The line before the windows stays: a line of the picture may lie between the two.
        first_line = max(start - 1, 0)
        if first_line > self._first_line:
            self._sum, self._weight = _shifted(
                self._sum, self._weight, first_line - self._first_line
            )
            self._first_line = first_line
        rows = _sampled(start, layout.window[0], 0, layout, self._size)
        batch = segmenter._windows
        for index in range(0, len(self._windows), batch):
            windows = self._windows[index : index + batch]
            enabled = np.arange(batch) < len(windows)
            windows += [windows[0]] * (batch - len(windows))
            tables = Table(
                *(np.stack(column) for column in zip(*(w[0] for w in windows), strict=True))
            )
            self._sum, self._weight = segmenter._add(
                segmenter._variables,
                self._picture,
                self._sum,
                self._weight,
                rows,
                tables,
                np.int32(start - self._first_line),
                np.array([w[1] for w in windows], np.int32),
                self._weights,
                enabled,
            )
        self._next_row += 1
        more = self._next_row < len(layout.row_starts)
        # Lines above the next windows are final; those of the last row all are.
        self._done = layout.row_starts[self._next_row] if more else layout.canvas[0] + 1


@functools.lru_cache(maxsize=16)
def _compiled_add(
    model: nn.Module, flip_fusion: str | None, softmax: bool, mesh: Mesh | None
) -> Callable:
    """The jitted function that runs windows and adds what they say to a band."""

    def values(variables: Mapping, pixels: jax.Array) -> jax.Array:
        """Of one window [h, w, 3]: float32 [h, w, C]."""
        logits = model.apply(variables, pixels[None]).logits[0]
        if flip_fusion is None:
            return jax.nn.softmax(logits) if softmax else logits
        mirrored = model.apply(variables, pixels[None, :, ::-1]).logits[0][:, ::-1]
        if flip_fusion == "probabilities":
            return (jax.nn.softmax(logits) + jax.nn.softmax(mirrored)) / 2
        if flip_fusion == "product":
            return jnp.exp(jax.nn.log_softmax(logits) + jax.nn.log_softmax(mirrored))
        return jax.nn.softmax((logits + mirrored) / (2 if flip_fusion == "logits" else 1))

    def run(variables: Mapping, picture: jax.Array, rows: Table, columns: Table) -> jax.Array:
        """Of all windows: float32 [B, h, w, C], one after the other."""

        def one(column: Table) -> jax.Array:
            pixels = normalize(_sample(picture, rows, column), model.normalization)
            inside = rows.inside[:, None] & column.inside[None]
            # The mean colour is 0 after the normalisation.
            return values(variables, jnp.where(inside[..., None], pixels, 0.0))

        return jax.lax.map(one, columns)

    if mesh is not None:
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(P(), P(), P(), P("data")), out_specs=P("data")
        )

    @functools.partial(jax.jit, donate_argnums=(2, 3))
    def add(variables, picture, total, weight, rows, columns, y, x, weights, enabled):
        outputs = run(variables, picture, rows, columns)

        def add_one(bands, window):
            total, weight = bands
            output, left, on = window
            here = jnp.where(on, weights, 0.0)
            size = (*here.shape, total.shape[-1])
            old = jax.lax.dynamic_slice(total, (y, left, 0), size)
            total = jax.lax.dynamic_update_slice(
                total, old + here[..., None] * output, (y, left, 0)
            )
            old = jax.lax.dynamic_slice(weight, (y, left), here.shape)
            return (total, jax.lax.dynamic_update_slice(weight, old + here, (y, left))), None

        return jax.lax.scan(add_one, (total, weight), (outputs, x, enabled))[0]

    return add


def _sample(picture: jax.Array, rows: Table, columns: Table) -> jax.Array:
    """Lines and columns of the picture, float32 [h, w, 3]."""
    x = _mix(picture[rows.low], picture[rows.high], rows.part[:, None, None])
    return _mix(x[:, columns.low], x[:, columns.high], columns.part[:, None])


def _mix(low: jax.Array, high: jax.Array, part: jax.Array) -> jax.Array:
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    return low + part * (high - low)


@functools.partial(jax.jit, static_argnums=6)
def _take(
    result: jax.Array | None,
    total: jax.Array,
    weight: jax.Array,
    rows: Table,
    columns: Table,
    take: jax.Array,
    mean: bool,
) -> jax.Array:
    """Lines of the picture from a band, put where `take` is True."""

    def line(index: jax.Array) -> jax.Array:
        values = total[index]
        return values / jnp.maximum(weight[index], 1e-30)[..., None] if mean else values

    x = _mix(line(rows.low), line(rows.high), rows.part[:, None, None])
    x = _mix(x[:, columns.low], x[:, columns.high], columns.part[:, None])
    return x if result is None else jnp.where(take[:, None, None], x, result)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _shifted(total: jax.Array, weight: jax.Array, lines: int) -> tuple[jax.Array, jax.Array]:
    """The bands without their first lines; zeros come in at the end."""
    return tuple(
        jax.lax.dynamic_slice_in_dim(
            jnp.pad(x, ((0, x.shape[0]), *[(0, 0)] * (x.ndim - 1))), lines, x.shape[0]
        )
        for x in (total, weight)
    )


@functools.partial(jax.jit, static_argnums=2)
def _fuse(a: jax.Array, b: jax.Array, fusion: str) -> jax.Array:
    return jnp.maximum(a, b) if fusion == "max" else a + b


@functools.partial(jax.jit, static_argnums=0)
def _zeros(shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


@jax.jit
def _share(x: jax.Array, count: jax.Array) -> jax.Array:
    return x / count


@jax.jit
def _softmax(x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x)


@jax.jit
def _classes(x: jax.Array) -> jax.Array:
    return largest_class(x).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=1)
def _normalised(x: jax.Array, logits: bool) -> jax.Array:
    """Probabilities that sum to 1, of logits or of probabilities fused in any way."""
    return jax.nn.softmax(x) if logits else x / jnp.sum(x, -1, keepdims=True)


def _sampled(start: int, window: int, axis: int, layout: Layout, size: tuple[int, int]) -> Table:
    """Where the pixels of a window lie on the picture."""
    scaled = layout.scaled[axis]
    place = np.arange(start, start + window) - layout.offset[axis]
    inside = (place >= 0) & (place < scaled)
    table = _interpolation(np.clip(place, 0, scaled - 1), scaled, size[axis], 0)
    return table._replace(inside=inside)


def _interpolation(targets: np.ndarray, size: int, source: int, offset: int) -> Table:
    """Bilinear interpolation with half-pixel centres: pixels of a side of `size` pixels between
    those of one of `source` pixels, which begin at `offset`."""
    place = np.clip((targets + 0.5) * (source / size) - 0.5, 0, source - 1)
    low = np.floor(place).astype(np.int32)
    high = np.minimum(low + 1, source - 1)
    part = (place - low).astype(np.float32)
    high = np.where(part > 0, high, low)
    return Table(
        (low + offset).astype(np.int32),
        (high + offset).astype(np.int32),
        part,
        np.ones(len(targets), bool),
    )


def _filled(table: Table, count: int) -> Table:
    """The table with its last line again until it has so many."""
    return Table(*(np.pad(x, (0, count - len(x)), mode="edge") for x in table))


def _filled_mask(mask: np.ndarray, count: int) -> np.ndarray:
    return np.pad(mask, (0, count - len(mask)))


def _rounded(n: int) -> int:
    """The next of 32, 48, 64, 96, 128, 192, ...: at most 1.5 times as large, and from 1 to 8192
    only seventeen different ones."""
    size = 32
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def _checked(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(
            f"image has dtype {image.dtype}; give the uint8 pixels 0..255, the model's own "
            "normalisation is applied here."
        )
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}; give RGB as [H, W, 3].")
    return image
