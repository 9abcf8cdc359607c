"""Gaussian filtering in high dimensions on the permutohedral lattice.

(Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.)

A point is spread over the `d + 1` vertices of the simplex around it (splat), the vertices are
blurred along the `d + 1` axes of the lattice, and what has arrived at the vertices of a simplex is
gathered (slice). Only vertices that a point was spread to exist; others read as zero. The numbers
are those of the C++ of Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with
Gaussian Edge Potentials", 2011, whose vertices live in a hash table. Here they are sorted, so that
every step is a sort, a search or a gather:

* The coordinates of a vertex are all congruent to its remainder `r` modulo `d + 1`, so `r` and the
  quotients, written as the digits of one 64-bit number, are its code. A step along an axis adds a
  constant to the code of every vertex of one remainder: neighbours lie in the order of their
  vertices, and a blur reads memory from front to back.
* Points of a vertex are neighbours in the sorted order. They are gathered in parts of a few, and
  the parts are added up.
* Arrays have the size of the largest possible number of vertices, `d + 1` a point, and an image
  has far fewer: the filter is compiled for some shares of it, and the smallest one that is large
  enough is run.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Left to itself, XLA moves the computation of an array into every loop over all that read it, and
# optimisation barriers do not keep it from that on CPUs. Loops, conditionals and scatters do.

# Points that are gathered at once for a vertex.
_FAN_IN = 8
# Sizes that the filter is compiled for: the capacity, and it divided by powers of sqrt(2); what
# takes little time is compiled for every second one.
_SIZES = 8
# Below so many rows nothing is gained.
_SMALLEST = 4096


class Lattice(NamedTuple):
    """Holds the vertices around N points of dimension d; row 0 of all tables of rows means "none".

    Attributes:
      vertex: int32 `[d + 1, N]`, the rows of the vertices around each point.
      weight: float32 `[d + 1, N]`, how much of the point each gets; sums to 1.
      part_point: int32 `[8, P]`: up to eight points of a row in each part.
      part_weight: float32 `[8, P]`, their weights; 0 where there is no point.
      part_row: int32 `[P]`, the rows of the parts, in rising order; rows + 1 for none.
      neighbors: int32 `[d + 1, 2, rows + 1]`, the rows one step forth and back along each axis.
      num_vertices: int32, those that the points need.
      fits: bool, whether there is room for them, their codes are below 2^63, and the features are
        finite. Otherwise the filter returns nan.
      ratio: None, or float32 `[N]`: see `scale_lattice`.
    """

    vertex: jax.Array
    weight: jax.Array
    part_point: jax.Array
    part_weight: jax.Array
    part_row: jax.Array
    neighbors: jax.Array
    num_vertices: jax.Array
    fits: jax.Array
    ratio: jax.Array | None = None


def build_lattice(features: jax.Array, capacity: float | None = None) -> Lattice:
    """Returns the lattice of points, for `lattice_filter`. Gradients do not go through it.

    Args:
      features: float32 `[N, d]`, divided by the standard deviations of the kernel.
      capacity: vertices that there is room for, per point. By default `d + 1`, which is always
        enough; less saves memory. Images need 0.1 to 4.

    Returns:
      The lattice; look at its `fits` where a capacity was given.

    Raises:
      ValueError: the shape is not `[N, d]` with N and d of at least 1, or the capacity is not
        above 0.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features have shape {features.shape}; wanted [N, d] with N, d >= 1.")
    if capacity is not None and not capacity > 0:
        raise ValueError(f"capacity is {capacity}; it must be above 0, or None for no limit.")
    n, d = features.shape
    rows = n * (d + 1)
    if capacity is not None:
        rows = max(1, min(rows, int(np.ceil(capacity * n))))
    return _build(lax.stop_gradient(features.astype(jnp.float32)), rows)


@functools.partial(jax.jit, static_argnums=1)
def _build(features: jax.Array, rows: int) -> Lattice:
    n, d = features.shape
    slots = n * (d + 1)
    finite = jnp.all(jnp.isfinite(features))
    base, rank, weight = lax.cond(finite, _simplex, _no_simplex, features.T)
    with jax.enable_x64(True):
        code, strides, in_range = _codes(base, rank)
        code, slot = _sort(code, slots)
        first = jnp.concatenate([jnp.ones(1, bool), code[1:] != code[:-1]])
        row = jnp.cumsum(first, dtype=jnp.int32)
        row_code = jnp.full(rows + 1, np.uint64(2**64 - 1), jnp.uint64)
        row_code = row_code.at[row].set(code, mode="drop").at[0].set(jnp.uint64(0))
        num_vertices = row[-1]
        neighbors = _neighbors(row_code, strides, num_vertices)
    point, slot_weight = slot % n, weight.reshape(-1)[slot]
    part_point, part_weight, part_row = _parts(row, first, point, slot_weight, rows)
    return Lattice(
        vertex=jnp.zeros(slots, jnp.int32).at[slot].set(row).reshape(d + 1, n),
        weight=weight,
        part_point=part_point,
        part_weight=part_weight,
        part_row=part_row,
        neighbors=neighbors,
        num_vertices=num_vertices,
        fits=finite & in_range & (num_vertices <= rows),
    )


def scale_lattice(lattice: Lattice, before: jax.Array, after: jax.Array) -> Lattice:
    """Returns the lattice of `diag(after) K diag(before)` for factors above 0, float32 `[N]`."""
    return lattice._replace(
        weight=lattice.weight * lax.broadcast_to_rank(after, lattice.weight.ndim),
        part_weight=lattice.part_weight * before[lattice.part_point],
        ratio=before / after,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lattice_filter(lattice: Lattice, values: jax.Array, transpose: bool = False) -> jax.Array:
    """Approximates `sum_j k(f_i, f_j) values_j` with a unit Gaussian k, the point itself included.

    The operator K is linear, and nearly but not quite symmetric, as the axes are blurred one after
    the other and where vertices are missing their order matters. Its sums are lower than those of
    the Gaussian where points are sparse: normalise by the filter of ones.

    Args:
      lattice: of the points.
      values: float32 `[N, C]`.
      transpose: filter with the transpose of K.

    Returns:
      float32 `[N, C]`; all nan if the lattice does not fit. Differentiable by the values.
    """
    return _filter(lattice, values, transpose)


def _filter_forward(lattice, values, transpose):
    return lattice_filter(lattice, values, transpose), lattice


def _filter_backward(transpose, lattice, cotangent):
    return None, lattice_filter(lattice, cotangent, not transpose)


lattice_filter.defvjp(_filter_forward, _filter_backward)


@functools.partial(jax.jit, static_argnums=2)
def _filter(lattice: Lattice, values: jax.Array, transpose: bool) -> jax.Array:
    rows = lattice.neighbors.shape[2] - 1
    sizes = _sizes(rows, fine=values.shape[1] > 1)
    branches = [functools.partial(_filter_rows, rows=size, transpose=transpose) for size in sizes]
    scaled = transpose and lattice.ratio is not None
    if scaled:
        values = values / lattice.ratio[:, None]
    result = lax.switch(_size_index(sizes, lattice.num_vertices), branches, lattice, values)
    if scaled:
        result = result * lattice.ratio[:, None]
    return result


def _filter_rows(lattice: Lattice, values: jax.Array, *, rows: int, transpose: bool) -> jax.Array:
    """Returns the filter's result where at most `rows` rows are in use."""
    axes, n = lattice.vertex.shape
    parts = rows + axes * n // _FAN_IN
    point, weight = lattice.part_point[:, :parts], lattice.part_weight[:, :parts]
    sums = sum(weight[k, :, None] * _take(values, point[k]) for k in range(_FAN_IN))
    v = jnp.zeros((rows + 1, values.shape[1]), values.dtype)
    v = v.at[lattice.part_row[:parts]].add(sums, mode="drop", indices_are_sorted=True)

    def blur(v, neighbors):
        forth, back = neighbors
        return v + 0.5 * (_take(v, forth) + _take(v, back)), None

    v, _ = lax.scan(blur, v, lattice.neighbors[:, :, : rows + 1], reverse=transpose)
    weight = jnp.where(lattice.fits, lattice.weight / (1 + 2.0 ** -(axes - 1)), jnp.nan)
    return sum(weight[r, :, None] * _take(v, lattice.vertex[r]) for r in range(axes))


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    return array.at[index].get(mode="promise_in_bounds")


def _sizes(rows: int, fine: bool) -> list[int]:
    """Returns the numbers of rows that something is compiled for, in rising order; the last is all
    rows."""
    exponents = range(1 - _SIZES, 1) if fine else range(2 - _SIZES, 1, 2)
    sizes = [int(rows * 2 ** (k / 2)) for k in exponents]
    return [size for size in sizes[:-1] if size >= _SMALLEST] + [rows]


def _size_index(sizes: list[int], num_vertices: jax.Array) -> jax.Array:
    return jnp.sum(num_vertices > np.asarray(sizes[:-1], np.int32), dtype=jnp.int32)


def _simplex(f: jax.Array) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Returns the simplex around each of the points `[d, N]`.

    Returns:
      The quotients by `d + 1` of the coordinates of its vertex of remainder 0 (int32 `[N]`, d of
      them; the last follows), the ranks of the d + 1 residuals (int32 `[N]`, 0 the largest), and
      the barycentric weights `[d + 1, N]` of the vertices of remainder 0 to d.
    """
    d = len(f)
    deviation = np.float32(np.sqrt(2 / 3) * (d + 1))
    scale = [np.float32(float(deviation) / np.sqrt((i + 1) * (i + 2))) for i in range(d)]
    # A product that is fused with a sum is not rounded; the barriers keep the points on the side of
    # a face where the C++ has them.
    c = lax.optimization_barrier([f[i] * scale[i] for i in range(d)])
    product = lax.optimization_barrier([c[i] * np.float32(i + 1) for i in range(d)])
    elevated = [None] * (d + 1)
    total = jnp.zeros_like(c[0])
    for j in range(d, 0, -1):
        elevated[j] = total - product[j - 1]
        total = total + c[j - 1]
    elevated[0] = total
    elevated = lax.optimization_barrier(elevated)

    down = np.float32(1 / (d + 1))
    quotient = [jnp.rint(y * down) for y in elevated]
    excess = sum(q.astype(jnp.int32) for q in quotient)
    residual = [y - q * (d + 1) for y, q in zip(elevated, quotient, strict=True)]
    rank = [excess] * (d + 1)
    for a in range(d + 1):
        for b in range(a + 1, d + 1):
            less = residual[a] < residual[b]
            rank[a] = rank[a] + less.astype(jnp.int32)
            rank[b] = rank[b] + (~less).astype(jnp.int32)
    shift = [(r < 0).astype(jnp.int32) - (r > d).astype(jnp.int32) for r in rank]
    rank = [r + s * (d + 1) for r, s in zip(rank, shift, strict=True)]
    base = [q.astype(jnp.int32) + s for q, s in zip(quotient, shift, strict=True)]
    rank, base = lax.optimization_barrier((rank, base))
    offset = [
        (y - q.astype(jnp.float32) * (d + 1)) * down for y, q in zip(elevated, base, strict=True)
    ]
    by_rank = [
        sum(jnp.where(rank[j] == q, offset[j], 0) for j in range(d + 1)) for q in range(d, -1, -1)
    ]
    weight = [by_rank[0] + (1 - by_rank[d])]
    weight += [by_rank[q] - by_rank[q - 1] for q in range(1, d + 1)]
    return base[:d], rank, jnp.stack(weight)


def _no_simplex(f: jax.Array) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    d = len(f)
    # Made of f, so that under shard_map they differ between devices in name as the others do.
    zero = f[0].astype(jnp.int32) * 0
    return [zero] * d, [zero] * (d + 1), jnp.stack([zero.astype(jnp.float32)] * (d + 1))


def _codes(
    base: list[jax.Array], rank: list[jax.Array]
) -> tuple[jax.Array, tuple[list[jax.Array], jax.Array], jax.Array]:
    """Returns the codes of all vertices `[(d + 1) N]`, those of remainder 0 first.

    Returns:
      The codes; the strides of the d digits and of the remainder; and whether all is below 2^63.
    """
    d = len(base)
    # A step along an axis moves a digit by one; with a margin it never runs over into the next.
    low = [jnp.min(m) - 2 for m in base]
    span = [jnp.max(m) - lo + 3 for m, lo in zip(base, low, strict=True)]
    in_range = sum(jnp.log2(s.astype(jnp.float32)) for s in span) + math.log2(d + 1) < 62.99
    strides = [jnp.uint64(1)]
    for s in reversed(span):
        strides.insert(0, strides[0] * s.astype(jnp.uint64))
    remainder, strides = strides[0], strides[1:]
    digits = [(m - lo).astype(jnp.uint64) for m, lo in zip(base, low, strict=True)]
    here = sum(m * s for m, s in zip(digits, strides, strict=True))
    codes = []
    for r in range(d + 1):
        back = sum(
            jnp.where(k > d - r, s, jnp.uint64(0)) for k, s in zip(rank[:d], strides, strict=True)
        )
        codes.append(here - back + jnp.uint64(r) * remainder)
    return jnp.concatenate(codes), (strides, remainder), in_range


def _sort(code: jax.Array, slots: int) -> tuple[jax.Array, jax.Array]:
    """Returns the codes in rising order, and their places before (int32); equal codes keep their
    order."""
    bits = max(slots - 1, 1).bit_length()
    place = jnp.arange(slots, dtype=jnp.int32)

    def together(code):
        key = lax.sort(code << np.uint64(bits) | place.astype(jnp.uint64))
        return key >> np.uint64(bits), (key & np.uint64(2**bits - 1)).astype(jnp.int32)

    def apart(code):
        return tuple(lax.sort((code, place), num_keys=1))

    # Numbers alone are sorted several times as fast as numbers with something attached.
    return lax.cond(jnp.max(code) < np.uint64(2 ** (64 - bits)), together, apart, code)


def _neighbors(
    row_code: jax.Array, strides: tuple[list[jax.Array], jax.Array], num_vertices: jax.Array
) -> jax.Array:
    """Returns `[d + 1, 2, rows + 1]` neighbours, given the codes of the rows in rising order from
    row 1 on."""
    digits, remainder = strides
    rows = len(row_code) - 1
    steps = jnp.stack([*digits, jnp.uint64(0)])[:, None]
    axis = jnp.arange(len(steps))[:, None]
    # All coordinates but one fall by 1, that one rises by d: the remainder falls by 1, and one
    # quotient rises by 1; from remainder 0 to d, all quotients fall by 1 before.
    around = jnp.uint64(len(digits)) * remainder - sum(digits)

    def search(code, size):
        code = code[1 : size + 1]
        row = jnp.arange(1, size + 1, dtype=jnp.int32)
        target = code[None] + steps + jnp.where(code < remainder, around, -remainder)[None]
        place = _number_below(code, target)
        found = (row <= num_vertices)[None] & (code[jnp.minimum(place, size - 1)] == target)
        forth = jnp.where(found, place + 1, 0)
        table = jnp.zeros((len(steps), 2, rows + 1), jnp.int32)
        table = table.at[:, 0, 1 : size + 1].set(forth)
        return table.at[axis, 1, jnp.where(found, forth, rows + 1)].set(row, mode="drop")

    sizes = _sizes(rows, fine=False)
    branches = [functools.partial(search, size=size) for size in sizes]
    return lax.switch(_size_index(sizes, num_vertices), branches, row_code)


def _number_below(rising: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns how many numbers are below each target, like `jnp.searchsorted`, which takes three
    times as long because it keeps both ends of what is left."""
    size = len(rising)
    bits = size.bit_length()

    def step(k, below):
        probe = below + (1 << (bits - 1 - k)).astype(jnp.int32)
        here = (probe <= size) & (_take(rising, jnp.minimum(probe, size) - 1) < targets)
        return jnp.where(here, probe, below)

    # Not simply zeros: see _no_simplex.
    return lax.fori_loop(0, bits, step, (targets * 0).astype(jnp.int32))


def _parts(
    row: jax.Array, first: jax.Array, point: jax.Array, weight: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns points, weights `[8, P]` and rows `[P]` of the parts, from those of all slots in the
    order of their rows, and whether a row begins there."""
    slots = len(row)
    size = rows + slots // _FAN_IN
    place = jnp.arange(slots, dtype=jnp.int32)
    start = (
        jnp.zeros(slots + 1, jnp.int32).at[jnp.where(first, row, slots + 1)].set(place, mode="drop")
    )
    in_row = place - start[row]
    begins = in_row % _FAN_IN == 0
    part = jnp.cumsum(begins, dtype=jnp.int32) - 1
    there = in_row % _FAN_IN, part
    table = jnp.zeros((_FAN_IN, size), jnp.int32)
    return (
        table.at[there].set(point, mode="drop"),
        table.astype(weight.dtype).at[there].set(weight, mode="drop"),
        jnp.full(size, rows + 1, jnp.int32).at[jnp.where(begins, part, size)].set(row, mode="drop"),
    )
