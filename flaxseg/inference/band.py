"""What the windows of one run over a picture say, as far down as lines are still needed.

The windows of a row are added up in a band as high as one window; lines that no further row of
windows changes are final.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flaxseg.inference.line_tables import (
    Table,
    filled,
    filled_mask,
    interpolation,
    mix,
    rounded,
    sample,
    sampled,
)
from flaxseg.inference.protocol import Layout, Protocol
from flaxseg.layers import normalize


class Stream(NamedTuple):
    """One run over the picture."""

    layout: Layout
    mirrored: bool


class WindowNetwork(NamedTuple):
    """What runs the windows.

    Attributes:
      protocol: what is done with them.
      num_classes: of the network.
      add: of `compiled_add`.
      variables: of the network, on the devices.
      batch: windows that are run at a time.
      target: the device or sharding of the bands; the first device by default.
    """

    protocol: Protocol
    num_classes: int
    add: Callable
    variables: Mapping
    batch: int
    target: Any = None


class Band:
    """What the windows of one stream say, as far as lines are still needed."""

    def __init__(
        self,
        network: WindowNetwork,
        stream: Stream,
        picture: jax.Array,
        size: tuple[int, int],
        columns: slice,
        most_lines: int,
    ):
        """Nothing run yet.

        Args:
          network: what runs the windows.
          stream: where they lie, and whether the picture is mirrored.
          picture: uint8 [H, W, 3] on the device, filled up beyond `size`.
          size: of the picture.
          columns: of the picture, that are asked for.
          most_lines: lines that are asked for at a time.
        """
        layout = self._layout = stream.layout
        # Whole pictures are compiled for each size anyway.
        self._round = rounded if network.protocol.window is not None else int
        self._network, self._picture, self._size = network, picture, size
        self._most_lines = most_lines
        wanted = np.arange(columns.start, columns.stop)
        if stream.mirrored:
            wanted = size[1] - 1 - wanted
        table = interpolation(wanted, size[1], layout.scaled[1], layout.offset[1])
        first, last = int(table.low.min()), int(table.high.max())
        starts = [
            start
            for start in layout.column_starts
            if start <= last and start + layout.window[1] > first
        ]
        origin = starts[0]
        span = starts[-1] + layout.window[1] - origin
        self._windows = [
            (sampled(start, layout.window[1], 1, layout, size), start - origin) for start in starts
        ]
        self._columns = filled(
            Table(table.low - origin, table.high - origin, table.part, table.inside),
            self._round(len(wanted)),
        )
        # A line more than a window: the last one before the windows' first line.
        shape = layout.window[0] + 1, self._round(span)
        self._sum = _zeros((*shape, network.num_classes))
        self._weight = _zeros(shape)
        if network.target is not None:
            self._sum, self._weight = jax.device_put((self._sum, self._weight), network.target)
        self._weights = network.protocol.weights(layout.window)
        self._first_line, self._next_row, self._done = 0, 0, 0

    def lines(self, rows: slice) -> jax.Array:
        """The values of lines of the picture, float32 [most_lines, columns, C]; called from top to
        bottom."""
        layout = self._layout
        table = interpolation(
            np.arange(rows.start, rows.stop), self._size[0], layout.scaled[0], layout.offset[0]
        )
        result, had = None, 0
        while had < len(table.low):
            ready = int(np.searchsorted(table.high, self._done))  # lines below it are final
            if ready > had:
                here = np.arange(len(table.low))
                take = filled_mask((here >= had) & (here < ready), self._most_lines)
                low, high = (
                    np.clip(line - self._first_line, 0, layout.window[0])
                    for line in (table.low, table.high)
                )
                lines = filled(Table(low, high, table.part, table.inside), self._most_lines)
                result = _take(
                    result,
                    self._sum,
                    self._weight,
                    lines,
                    self._columns,
                    take,
                    self._network.protocol.overlap == "mean",
                )
                had = ready
            if had < len(table.low):
                self._run_row()
        return result

    def _run_row(self) -> None:
        """Adds the next row of windows."""
        layout, network = self._layout, self._network
        start = layout.row_starts[self._next_row]
        # The line before the windows stays: a line of the picture may lie between the two.
        first_line = max(start - 1, 0)
        if first_line > self._first_line:
            self._sum, self._weight = _shifted(
                self._sum, self._weight, first_line - self._first_line
            )
            self._first_line = first_line
        rows = sampled(start, layout.window[0], 0, layout, self._size)
        batch = network.batch
        for index in range(0, len(self._windows), batch):
            windows = self._windows[index : index + batch]
            enabled = np.arange(batch) < len(windows)
            windows += [windows[0]] * (batch - len(windows))
            tables = Table(
                *(np.stack(column) for column in zip(*(w[0] for w in windows), strict=True))
            )
            self._sum, self._weight = network.add(
                network.variables,
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
def compiled_add(
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
            pixels = normalize(sample(picture, rows, column), model.normalization)
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

    x = mix(line(rows.low), line(rows.high), rows.part[:, None, None])
    x = mix(x[:, columns.low], x[:, columns.high], columns.part[:, None])
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


@functools.partial(jax.jit, static_argnums=0)
def _zeros(shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


PROGRAMS = (_take, _shifted, _zeros)
"""The compiled functions of bands, beside that of `compiled_add`."""
