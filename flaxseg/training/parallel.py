"""Runs a step by `jax.jit` over a mesh, or by `jax.pmap`; all that differs between them is here.

Both run the same step on the same arrays: the state is replicated, the batch split over the devices
along its first axis.

* ``jit``: the step sees the global batch, so that every sum in it, those of BatchNorm included, is
  over all devices; XLA inserts the communication. The mesh has Auto axes: with Explicit ones, the
  default of `jax.make_mesh`, the sharding would be part of every type, and a model would have to
  state it at each reshape. Its second axis, "space", splits the height of the images, and with it
  that of all activations: where a convolution reaches over the border of a device's rows, XLA
  fetches the few rows beyond it from the neighbour.
* ``pmap``: the step sees the rows of its own device and the name of the axis over devices, which
  BatchNorm (``model.batch_norm_axis``) and the sums of the step need. `jax.pmap` is itself
  ``jit(shard_map(...))`` from JAX 0.8 on; the state goes in and out unmapped, so that there is one
  array per parameter, not one per device, and states and checkpoints do not depend on the kind.
  Inside, the transpose of ``psum`` is ``psum``: differentiate the device's own sum, then add up the
  gradients; the gradient of a loss that was already added up would be too large by the number of
  devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxseg.errors import SettingsError, near
from flaxseg.layers.split_rows import SPACE_AXIS
from flaxseg.settings import check_rules, one_of
from flaxseg.training.numbers import split_numbers

KINDS = ("jit", "pmap")
DATA_AXIS = "data"
_LARGEST_STRIDE = 32

Tree = TypeVar("Tree")


def global_sum(tree: Tree, axis_name: str | None) -> Tree:
    """Returns the sum over all devices; without an axis name, what each holds is global already."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def device_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns a key for this device under pmap; under jit one key serves the global batch."""
    if axis_name is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes how a batch is divided among devices. Made by `make_layout`.

    Attributes:
      kind: "jit" or "pmap".
      data: parts that a batch is cut into by images.
      space: parts that each image is cut into by rows.

    Raises:
      SettingsError: the kind is unknown, or cannot cut images.
    """

    kind: str
    data: int
    space: int

    def __post_init__(self):
        check_rules({"parallel": self.kind}, {"parallel": one_of(*KINDS)})
        if self.kind == "pmap" and self.space > 1:
            problem = (
                f"is 'pmap', which cannot split images over {SPACE_AXIS}={self.space}: its step "
                "sees the rows of one device alone. Set parallel to 'jit', or leave the mesh out."
            )
            raise SettingsError([("parallel", problem)])

    @property
    def batch_norm_axis(self) -> str | None:
        """Returns the ``batch_norm_axis`` to create the model with."""
        return DATA_AXIS if self.kind == "pmap" else None

    def check_batch_size(
        self, batch_size: int, accumulate_steps: int = 1, name: str = "batch_size"
    ) -> None:
        """Raises SettingsError, naming the nearest sizes, unless a global batch can be shared
        evenly; each device's part is cut into `accumulate_steps` micro-batches."""
        unit = self.data * accumulate_steps
        if batch_size >= 1 and batch_size % unit == 0:
            return
        cut = f" with optimizer.accumulate_steps {accumulate_steps}" if accumulate_steps > 1 else ""
        parts = f"{self.data} devices" if self.space == 1 else f"{DATA_AXIS}={self.data}"
        nearest = nearest_multiples(batch_size, unit)
        problem = f"{batch_size} cannot be shared evenly by {parts}{cut}; set it to {nearest}."
        raise SettingsError([(name, problem)])

    def check_height(self, height: int, name: str = "height") -> None:
        """Raises SettingsError, naming the nearest heights, unless the rows of images, or of
        features, can be shared evenly."""
        unit = height_unit(self.space)
        if height % unit:
            problem = (
                f"{height} cannot be shared evenly by {SPACE_AXIS}={self.space}; set it to "
                f"{nearest_multiples(height, unit)}."
            )
            raise SettingsError([(name, problem)])


def make_layout(kind: str, mesh: Mapping[str, int], device_count: int) -> Layout:
    """Returns how batches are divided among the devices; none of them is touched.

    Args:
      kind: "jit" or "pmap".
      mesh: see `mesh_sizes`.
      device_count: devices of all processes together.

    Raises:
      SettingsError: the kind is unknown, or the devices or the kind do not have such a mesh.
    """
    sizes = mesh_sizes(mesh, device_count)
    return Layout(kind, sizes[DATA_AXIS], sizes[SPACE_AXIS])


@dataclasses.dataclass(frozen=True)
class Parallel:
    """Spreads steps over devices. Made by `make_parallel`.

    Attributes:
      layout: how a batch is divided.
      mesh: the devices, under the axis name "data"; where images are split, under "data" and
        "space".
    """

    layout: Layout
    mesh: Mesh

    @property
    def device_count(self) -> int:
        """Returns the number of devices of all processes together."""
        return self.mesh.devices.size

    @property
    def batch_norm_axis(self) -> str | None:
        """Returns that of the layout."""
        return self.layout.batch_norm_axis

    @property
    def replicated(self) -> NamedSharding:
        """Returns the sharding of a state: every device has all of it."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """Returns the sharding of a batch ``[N, H, ...]``: each device holds rows of its images."""
        return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))

    def put_state(self, state: Tree) -> Tree:
        """Places a tree of arrays, a state or a model's variables, on all devices.

        The result shares no memory with what was given, and can be donated.
        """
        return jax.tree.map(functools.partial(_place_copy, self.replicated), state)

    def get_state(self, state: Tree) -> Tree:
        """Returns the same tree as NumPy arrays of its own; waits for running steps."""

        def start(leaf: jax.Array) -> jax.Array:
            data = leaf.addressable_data(0)
            data.copy_to_host_async()
            return data

        # Copies: on CPU np.asarray is a view of the device's memory, and while it lives the buffer
        # cannot be donated.
        return jax.tree.map(np.array, jax.tree.map(start, state))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places this process's rows of the global batch on its devices, in order.

        Args:
          batch: host arrays ``[N, H, ...]``; each process gives its own part of the first axis.
            "id" stays on the host. They must not be written to before the step has read them: on
            CPU the device may use their memory.

        Returns:
          Arrays for the compiled train step.

        Raises:
          ConfigError: when the batch cannot be shared evenly.
        """
        return {key: self._place_rows(value) for key, value in batch.items() if key != "id"}

    def compile_train_step(self, step_fn: Callable) -> Callable:
        """Compiles `step_fn(state, batch, axis_name)`, see `make_train_step`, for all devices.

        The numbers of a step that is a pytree, such as its learning rate, are arguments of the
        program: another step that differs in them alone finds it in JAX's compilation cache. Those
        of an ordinary function are constants of it.

        Returns:
          ``run(state, batch) -> (state, metrics)``: state from `put_state` or the last step, batch
          from `put_batch`. Both are used up: the new state takes the memory of the old one, and the
          batch's is freed as soon as the step has read it. It returns before the step is done.
          ``run.lower(state, batch)`` gives the lowered computation.
        """
        numbers, with_numbers = split_numbers(step_fn)

        def train_step(
            state: Tree, batch: dict[str, jax.Array], numbers: list, **axis: str
        ) -> tuple[Tree, dict[str, jax.Array]]:
            return with_numbers(numbers)(state, batch, **axis)

        if self.layout.kind == "jit":
            compiled = jax.jit(
                self._with_mesh(train_step),
                donate_argnums=0,
                in_shardings=(self.replicated, self.split, self.replicated),
                out_shardings=(self.replicated, self.replicated),
            )
        else:
            compiled = jax.pmap(
                functools.partial(train_step, axis_name=DATA_AXIS),
                axis_name=DATA_AXIS,
                in_axes=(None, 0, None),
                out_axes=(None, None),
                donate_argnums=0,
                devices=list(self.mesh.devices.flat),
            )

        placed = functools.cache(lambda: self.put_state(numbers))

        def run(state: Tree, batch: dict[str, jax.Array]) -> tuple[Tree, dict[str, jax.Array]]:
            result = compiled(state, batch, placed())
            # JAX donates a buffer only to an output of its shape and type, which a uint8 batch
            # never has. Deleting it once the step is under way comes to the same: the runtime keeps
            # it until it has been read.
            for array in jax.tree.leaves(batch):
                array.delete()
            return result

        run.lower = lambda state, batch: compiled.lower(state, batch, numbers)
        return run

    def _with_mesh(self, step_fn: Callable) -> Callable:
        """Returns `step_fn`, traced where layers can see the mesh."""
        if self.layout.space == 1:
            return step_fn

        @functools.wraps(step_fn)
        def traced(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step_fn(*arguments)

        return traced

    def _place_rows(self, rows: np.ndarray) -> jax.Array:
        rows = np.asarray(rows)
        processes = self.device_count // self.mesh.local_mesh.devices.size
        self.layout.check_batch_size(rows.shape[0] * processes)
        if self.layout.kind == "pmap":
            local = self.device_count // processes
            rows = rows.reshape(local, rows.shape[0] // local, *rows.shape[1:])
        else:
            self.layout.check_height(rows.shape[1])
        return jax.make_array_from_process_local_data(self.split, rows)


def make_parallel(
    kind: str = "jit",
    devices: Sequence[jax.Device] | None = None,
    *,
    mesh: Mapping[str, int] | None = None,
) -> Parallel:
    """Returns how to run over `devices`.

    Args:
      kind: "jit", the default, or "pmap"; see the top of this module. Results are equal to float
        rounding.
      devices: those to use, of all processes; None: all there are.
      mesh: how many parts a batch is cut into by images, "data", and by rows of each image,
        "space"; see `mesh_sizes`.

    Returns:
      A `Parallel`.

    Raises:
      SettingsError: for an unknown kind, or a mesh that the devices or the kind do not have.

    Examples:
      >>> parallel = make_parallel("jit", jax.devices()[:1])
      >>> parallel.device_count, parallel.batch_norm_axis
      (1, None)
    """
    devices = jax.devices() if devices is None else list(devices)
    layout = make_layout(kind, mesh or {}, len(devices))
    if layout.space == 1:
        line = jax.make_mesh(
            (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
        )
        return Parallel(layout, line)
    # In the order of processes and, within one, of devices, neighbours share an image: a process
    # then holds whole images, and halos go over the shortest links.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(layout.data, layout.space)
    if any(len({device.process_index for device in row}) > 1 for row in grid):
        local = len(devices) // len({device.process_index for device in devices})
        problem = (
            f"has {SPACE_AXIS}={layout.space}, which does not divide the {local} devices of a "
            "process, and the devices that share an image must be of one; set it to a divisor."
        )
        raise SettingsError([("mesh", problem)])
    return Parallel(layout, Mesh(grid, (DATA_AXIS, SPACE_AXIS), axis_types=(AxisType.Auto,) * 2))


def mesh_sizes(mesh: Mapping[str, int], device_count: int) -> dict[str, int]:
    """Returns the sizes of both axes of a mesh.

    >>> mesh_sizes({"space": 2}, 8)
    {'data': 4, 'space': 2}

    Args:
      mesh: of the axes "data" and "space"; "space" is 1 and "data" the rest where left out.
      device_count: devices of all processes together.

    Raises:
      SettingsError: an axis is unknown, or the product of the sizes is not the number of devices.
    """
    axes = (DATA_AXIS, SPACE_AXIS)
    problems = [
        f"has an axis {name!r}; it can have {' and '.join(axes)}.{near(name, axes)}"
        for name in mesh
        if name not in axes
    ]
    problems += [
        f"has {name}={size}; an axis has at least 1 device."
        for name, size in mesh.items()
        if size < 1
    ]
    if not problems:
        space = mesh.get(SPACE_AXIS, 1)
        data = mesh.get(DATA_AXIS, max(device_count // space, 1))
        if data * space == device_count:
            return {DATA_AXIS: data, SPACE_AXIS: space}
        fitting = [
            f"'{DATA_AXIS}={device_count // n}, {SPACE_AXIS}={n}'"
            for n in range(1, device_count + 1)
            if device_count % n == 0
        ]
        problems = [
            f"{DATA_AXIS}={data}, {SPACE_AXIS}={space} is for {data * space} devices, and there "
            f"are {device_count}; set one of {', '.join(fitting)}."
        ]
    raise SettingsError([("mesh", problem) for problem in problems])


def height_unit(space: int) -> int:
    """Returns what the height of images must be a multiple of to be split into so many parts.

    Features of every stride, up to 32, are then split evenly too. The convolutions of
    `flaxseg.layers` only need that of the images to be, but XLA's gradient of the kernel of any
    other, such as `nn.Conv`, is wrong where rows are split unevenly (`flaxseg.layers.atrous`).
    """
    return 1 if space == 1 else _LARGEST_STRIDE * space


def nearest_multiples(value: int, unit: int) -> str:
    """Returns the multiples of `unit` next to `value`, above 0."""
    below, above = value // unit * unit, (max(value, 0) // unit + 1) * unit
    return f"{below} or {above}" if below > 0 else f"{above}"


def _place_copy(sharding: NamedSharding, leaf: jax.Array | np.ndarray) -> jax.Array:
    """Returns a copy of `leaf`, equal in all processes, replicated by `sharding`."""
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
