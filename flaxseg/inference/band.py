"""Runs windows over an image, and keeps their values as far down as lines are still needed.

The windows of a row are added up in a band as high as one window; lines that no further row of
windows changes are final.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flaxseg.inference.forward import Forward, window_values
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
from flaxseg.inference.program_cache import ProgramCache
from flaxseg.inference.protocol import Layout, Protocol
from flaxseg.layers import ImageNormalization, normalize


class Stream(NamedTuple):
    """Describes one run over the image."""

    layout: Layout
    mirrored: bool


class WindowNetwork(NamedTuple):
    """Runs windows, and adds up what they say; made by `window_network`.

    Attributes:
      protocol: what is done with the windows.
      num_classes: of the network.
      variables: of the network, on the devices.
      batch: windows that are run at a time.
      target: the device or sharding of the bands; the first device by default.
      add: compiled `_adder`.
      take: compiled `_take`.
      shifted: compiled `_shifted`.
      zeros: compiled `_zeros`.
    """

    protocol: Protocol
    num_classes: int
    variables: Mapping
    batch: int
    target: Any
    add: Callable
    take: Callable
    shifted: Callable
    zeros: Callable


def window_network(
    model: nn.Module,
    variables: Mapping,
    protocol: Protocol,
    programs: ProgramCache,
    *,
    batch: int,
    mesh: Mesh | None,
    target: Any,
) -> WindowNetwork:
    """Returns the network with the compiled functions of its bands.

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics, on the devices.
      protocol: what is done with the windows.
      programs: compiles the functions.
      batch: windows that are run at a time, over all devices.
      mesh: of the devices; None for a single one.
      target: the device or sharding of the bands; the first device by default.
    """
    values = window_values(
        model,
        protocol.flip_fusion if protocol.flips_windows else None,
        protocol.softmax == "window",
    )
    return WindowNetwork(
        protocol=protocol,
        num_classes=model.num_classes,
        variables=variables,
        batch=batch,
        target=target,
        add=programs.compile(_adder(values, model.normalization, mesh), donate_argnums=(2, 3)),
        take=programs.compile(_take, static_argnums=6),
        shifted=programs.compile(_shifted, donate_argnums=(0, 1)),
        zeros=programs.compile(_zeros, static_argnums=0),
    )


class Band:
    """Holds what the windows of one stream say, as far as lines are still needed."""

    def __init__(
        self,
        network: WindowNetwork,
        stream: Stream,
        image: jax.Array,
        size: tuple[int, int],
        columns: slice,
        most_lines: int,
    ):
        """Prepares the band; no window has run yet.

        Args:
          network: what runs the windows.
          stream: where they lie, and whether the image is mirrored.
          image: uint8 [H, W, 3] on the device, filled up beyond `size`.
          size: of the image.
          columns: of the image, those that are asked for.
          most_lines: lines that are asked for at a time.
        """
        layout = self._layout = stream.layout
        # Whole images are compiled for each size anyway.
        self._round = rounded if network.protocol.window is not None else int
        self._network, self._image, self._size = network, image, size
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
        self._sum = network.zeros((*shape, network.num_classes))
        self._weight = network.zeros(shape)
        if network.target is not None:
            self._sum, self._weight = jax.device_put((self._sum, self._weight), network.target)
        self._weights = network.protocol.weights(layout.window)
        self._first_line, self._next_row, self._done = 0, 0, 0

    def lines(self, rows: slice) -> jax.Array:
        """Returns the values of lines of the image, float32 [most_lines, columns, C]; called from
        top to bottom."""
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
                result = self._network.take(
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
        # The line before the windows stays: a line of the image may lie between the two.
        first_line = max(start - 1, 0)
        if first_line > self._first_line:
            self._sum, self._weight = network.shifted(
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
                self._image,
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


def _adder(values: Forward, normalization: ImageNormalization, mesh: Mesh | None) -> Callable:
    """Returns the function that runs windows and adds what they say to a band."""

    def run(variables: Mapping, image: jax.Array, rows: Table, columns: Table) -> jax.Array:
        """Returns the values of all windows, float32 [B, h, w, C], run one after the other."""

        def one(column: Table) -> jax.Array:
            pixels = normalize(sample(image, rows, column), normalization)
            inside = rows.inside[:, None] & column.inside[None]
            # The mean colour is 0 after the normalisation.
            return values(variables, jnp.where(inside[..., None], pixels, 0.0))

        return jax.lax.map(one, columns)

    if mesh is not None:
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(P(), P(), P(), P("data")), out_specs=P("data")
        )

    def add(variables, image, total, weight, rows, columns, y, x, weights, enabled):
        outputs = run(variables, image, rows, columns)

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


def _take(
    result: jax.Array | None,
    total: jax.Array,
    weight: jax.Array,
    rows: Table,
    columns: Table,
    take: jax.Array,
    mean: bool,
) -> jax.Array:
    """Returns lines of the image from a band, put into `result` where `take` is True."""

    def line(index: jax.Array) -> jax.Array:
        values = total[index]
        return values / jnp.maximum(weight[index], 1e-30)[..., None] if mean else values

    x = mix(line(rows.low), line(rows.high), rows.part[:, None, None])
    x = mix(x[:, columns.low], x[:, columns.high], columns.part[None, :, None])
    return x if result is None else jnp.where(take[:, None, None], x, result)


def _shifted(total: jax.Array, weight: jax.Array, lines: int) -> tuple[jax.Array, jax.Array]:
    """Returns the bands without their first lines; zeros come in at the end."""
    return tuple(
        jax.lax.dynamic_slice_in_dim(
            jnp.pad(x, ((0, x.shape[0]), *[(0, 0)] * (x.ndim - 1))), lines, x.shape[0]
        )
        for x in (total, weight)
    )


def _zeros(shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)
