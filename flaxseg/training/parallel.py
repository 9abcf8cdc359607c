"""All that differs between running a step by `jax.jit` over a mesh and by `jax.pmap`.

Both run the same step on the same arrays: the state is replicated, the batch split over the devices
along its first axis.

* ``jit``: the step sees the global batch, so that every sum in it, those of BatchNorm included, is
  over all devices; XLA inserts the communication. The mesh has Auto axes: with Explicit ones, the
  default of `jax.make_mesh`, the sharding would be part of every type, and a model would have to
  state it at each reshape. Its second axis, "space", splits the height of the pictures, and with
  them that of all activations: where a convolution reaches over the border of a device's rows, XLA
  fetches the few rows beyond from the neighbour.
* ``pmap``: the step sees the rows of its own device and the name of the axis over devices, which
  BatchNorm (``model.batch_norm_axis``) and the sums of the step need. `jax.pmap` is itself
  ``jit(shard_map(...))`` from JAX 0.8 on; the state goes in and out unmapped, so that there is one
  array per parameter, not one per device, and states and checkpoints do not depend on the kind.
  Inside, the transpose of ``psum`` is ``psum``: differentiate the device's own sum, then add up the
  gradients; the gradient of a loss that was already added up would be too large by the number of
  devices.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxseg.errors import ConfigError
from flaxseg.layers.split_rows import SPACE_AXIS

KINDS = ("jit", "pmap")
DATA_AXIS = "data"
_LARGEST_STRIDE = 32

Tree = TypeVar("Tree")


def global_sum(tree: Tree, axis_name: str | None) -> Tree:
    """The sum over all devices of what each holds; without an axis name that is global already."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def device_key(key: jax.Array, axis_name: str | None) -> jax.Array:
    """A key of this device's own under pmap; under jit one key serves the global batch."""
    if axis_name is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name))


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How steps are spread over devices. Made by `make_parallel`.

    Attributes:
      kind: "jit" or "pmap".
      mesh: the devices, under the axis name "data"; where pictures are split, under "data" and
        "space".
    """

    kind: str
    mesh: Mesh

    @property
    def device_count(self) -> int:
        """Devices of all processes together."""
        return self.mesh.devices.size

    @property
    def data(self) -> int:
        """Into how many parts a batch is cut by pictures."""
        return self.mesh.shape[DATA_AXIS]

    @property
    def space(self) -> int:
        """Into how many parts a picture is cut by rows."""
        return self.mesh.shape.get(SPACE_AXIS, 1)

    @property
    def batch_norm_axis(self) -> str | None:
        """What the model is to be created with as ``batch_norm_axis``."""
        return DATA_AXIS if self.kind == "pmap" else None

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of a state: every device has all of it."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """The sharding of a batch ``[N, H, ...]``: each device has its rows of its pictures."""
        return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))

    def check_batch_size(
        self, batch_size: int, accumulate_steps: int = 1, name: str = "batch_size"
    ) -> None:
        """Raises ConfigError when a global batch can not be shared evenly.

        Args:
          batch_size: images in the global batch.
          accumulate_steps: micro-batches that each device's part is cut into.
          name: of the setting, for the message.
        """
        unit = self.data * accumulate_steps
        if batch_size >= 1 and batch_size % unit == 0:
            return
        cut = f" with accumulate_steps {accumulate_steps}" if accumulate_steps > 1 else ""
        parts = f"{self.device_count} devices" if self.space == 1 else f"{DATA_AXIS}:{self.data}"
        raise ConfigError(
            f"{name} {batch_size} can not be shared evenly by {parts}{cut}; "
            f"it must be a multiple of {unit}: set {nearest_multiples(batch_size, unit)}."
        )

    def check_height(self, height: int, name: str = "height") -> None:
        """Raises ConfigError when the rows of pictures, or of features, can not be shared evenly.

        Args:
          height: rows of every picture.
          name: of the setting, for the message.
        """
        unit = height_unit(self.space)
        if height % unit:
            raise ConfigError(
                f"{name} {height} can not be shared evenly by {SPACE_AXIS}:{self.space}; it must "
                f"be a multiple of {unit}: set {nearest_multiples(height, unit)}."
            )

    def put_state(self, state: Tree) -> Tree:
        """Places a tree of arrays, a state or a model's variables, on all devices.

        The result shares no memory with what was given, and can be donated.
        """
        return jax.tree.map(functools.partial(_place_copy, self.replicated), state)

    def get_state(self, state: Tree) -> Tree:
        """The same tree as NumPy arrays of its own memory; waits for the steps under way."""

        def start(leaf: jax.Array) -> jax.Array:
            data = leaf.addressable_data(0)
            data.copy_to_host_async()
            return data

        # Copies: on CPU np.asarray is a view of the device's memory, and while it lives the buffer
        # can not be donated.
        return jax.tree.map(np.array, jax.tree.map(start, state))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Places this process's rows of the global batch on its devices, in order.

        Args:
          batch: host arrays ``[N, H, ...]``, of whose first axis each process gives its own rows;
            "id", which stays on the host, is left out. They must not be written to before the
            step has read them: on CPU the device may use their memory.

        Returns:
          Arrays for the compiled train step.

        Raises:
          ConfigError: when the batch can not be shared evenly.
        """
        return {key: self._place_rows(value) for key, value in batch.items() if key != "id"}

    def compile_train_step(self, step_fn: Callable) -> Callable:
        """`step_fn(state, batch, axis_name)`, see `make_train_step`, compiled for all devices.

        Returns:
          ``run(state, batch) -> (state, metrics)``: state from `put_state` or the last step, batch
          from `put_batch`. Both are used up: the state's memory becomes that of the new state, the
          batch's is freed as soon as the step has read it. It returns before the step is done.
          ``run.lower(state, batch)`` gives the lowered computation.
        """
        if self.kind == "jit":
            compiled = jax.jit(
                self._with_mesh(step_fn),
                donate_argnums=0,
                in_shardings=(self.replicated, self.split),
                out_shardings=(self.replicated, self.replicated),
            )
        else:
            compiled = jax.pmap(
                functools.partial(step_fn, axis_name=DATA_AXIS),
                axis_name=DATA_AXIS,
                in_axes=(None, 0),
                out_axes=(None, None),
                donate_argnums=0,
                devices=list(self.mesh.devices.flat),
            )

        def run(state: Tree, batch: dict[str, jax.Array]) -> tuple[Tree, dict[str, jax.Array]]:
            result = compiled(state, batch)
            # JAX donates a buffer only to an output of its shape and type, which a uint8 batch
            # never has. Deleting it once the step is under way comes to the same: the runtime keeps
            # it until it has been read.
            for array in jax.tree.leaves(batch):
                array.delete()
            return result

        run.lower = compiled.lower
        return run

    def _with_mesh(self, step_fn: Callable) -> Callable:
        """`step_fn`, traced where layers can see the mesh."""
        if self.space == 1:
            return step_fn

        @functools.wraps(step_fn)
        def traced(*arguments):
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return step_fn(*arguments)

        return traced

    def _place_rows(self, rows: np.ndarray) -> jax.Array:
        rows = np.asarray(rows)
        processes = self.device_count // self.mesh.local_mesh.devices.size
        self.check_batch_size(rows.shape[0] * processes)
        if self.kind == "pmap":
            local = self.device_count // processes
            rows = rows.reshape(local, rows.shape[0] // local, *rows.shape[1:])
        else:
            self.check_height(rows.shape[1])
        return jax.make_array_from_process_local_data(self.split, rows)


def make_parallel(
    kind: str = "jit",
    devices: Sequence[jax.Device] | None = None,
    *,
    mesh: Mapping[str, int] | None = None,
) -> Parallel:
    """How to run over `devices`.

    Args:
      kind: "jit", the default, or "pmap"; see the top of this module. Results are equal to float
        rounding.
      devices: those to use, of all processes; None: all there are.
      mesh: into how many parts a batch is cut by pictures, "data", and by rows of each picture,
        "space"; see `mesh_sizes`.

    Returns:
      A `Parallel`.

    Raises:
      ConfigError: for an unknown kind, or a mesh that the devices or the kind do not have.

    Examples:
      >>> parallel = make_parallel("jit", jax.devices()[:1])
      >>> parallel.device_count, parallel.batch_norm_axis
      (1, None)
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"parallel {kind!r} is not known; use one of {', '.join(KINDS)}.{hint}")
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(mesh or {}, len(devices))
    if kind == "pmap" and sizes[SPACE_AXIS] > 1:
        raise ConfigError(
            f"parallel 'pmap' can not split pictures over {SPACE_AXIS}:{sizes[SPACE_AXIS]}; its "
            "step sees the rows of one device alone. Set parallel to 'jit'."
        )
    if sizes[SPACE_AXIS] == 1:
        line = jax.make_mesh(
            (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
        )
        return Parallel(kind, line)
    # In the order of processes and, within one, of devices, neighbours share a picture: a process
    # then holds whole pictures, and halos go over the shortest links.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(tuple(sizes.values()))
    if any(len({device.process_index for device in row}) > 1 for row in grid):
        local = len(devices) // len({device.process_index for device in devices})
        raise ConfigError(
            f"{SPACE_AXIS}:{sizes[SPACE_AXIS]} does not divide the {local} devices of a process, "
            "and the devices that share a picture must be of one; set it to a divisor."
        )
    return Parallel(kind, Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * 2))


def mesh_sizes(mesh: Mapping[str, int], device_count: int) -> dict[str, int]:
    """The sizes of both axes of a mesh.

    >>> mesh_sizes({"space": 2}, 8)
    {'data': 4, 'space': 2}

    Args:
      mesh: of the axes "data" and "space"; "space" is 1 and "data" the rest where left out.
      device_count: devices of all processes together.

    Raises:
      ConfigError: an axis is unknown, or the sizes do not multiply to the devices.
    """
    for name, size in mesh.items():
        if name not in (DATA_AXIS, SPACE_AXIS):
            near = difflib.get_close_matches(name, (DATA_AXIS, SPACE_AXIS), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"mesh has an axis {name!r}; it can have {DATA_AXIS} and {SPACE_AXIS}.{hint}"
            )
        if size < 1:
            raise ConfigError(f"mesh has {name}:{size}; an axis has at least 1 device.")
    space = mesh.get(SPACE_AXIS, 1)
    data = mesh.get(DATA_AXIS, max(device_count // space, 1))
    if data * space != device_count:
        fitting = [
            f"{DATA_AXIS}:{device_count // n},{SPACE_AXIS}:{n}"
            for n in range(1, device_count + 1)
            if device_count % n == 0
        ]
        raise ConfigError(
            f"mesh {DATA_AXIS}:{data},{SPACE_AXIS}:{space} is of {data * space} devices, and there "
            f"are {device_count}; set one of {', '.join(fitting)}."
        )
    return {DATA_AXIS: data, SPACE_AXIS: space}


def height_unit(space: int) -> int:
    """What the height of pictures must be a multiple of, to be split into so many parts.

    Features of every stride, up to 32, are then split evenly too. The convolutions of
    `flaxseg.layers` need no more than that of the pictures, but XLA's gradient of the kernel of any
    other, such as `nn.Conv`, is wrong where rows are split unevenly (`flaxseg.layers.atrous`).
    """
    return 1 if space == 1 else _LARGEST_STRIDE * space


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` next to `value`, above 0."""
    below, above = value // unit * unit, (max(value, 0) // unit + 1) * unit
    return f"{below} or {above}" if below > 0 else f"{above}"


def _place_copy(sharding: NamedSharding, leaf: jax.Array | np.ndarray) -> jax.Array:
    """`leaf`, equal in all processes, replicated by `sharding`, in memory of its own."""
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
