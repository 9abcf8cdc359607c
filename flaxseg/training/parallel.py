"""All that differs between running a step by `jax.jit` over a mesh and by `jax.pmap`.

Both run the same step on the same arrays: the state is replicated, the batch split over the devices
along its first axis.

* ``jit``: the step sees the global batch, so that every sum in it, those of BatchNorm included, is
  over all devices; XLA inserts the communication. The mesh has Auto axes: with Explicit ones, the
  default of `jax.make_mesh`, the sharding would be part of every type, and a model would have to
  state it at each reshape.
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

KINDS = ("jit", "pmap")
DATA_AXIS = "data"

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
      mesh: the devices, under the axis name "data".
    """

    kind: str
    mesh: Mesh

    @property
    def device_count(self) -> int:
        """Devices of all processes together."""
        return self.mesh.devices.size

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
        """The sharding of a batch: each device has its part of the first axis."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))

    def check_batch_size(
        self, batch_size: int, accumulate_steps: int = 1, name: str = "batch_size"
    ) -> None:
        """Raises ConfigError when a global batch can not be shared evenly.

        Args:
          batch_size: images in the global batch.
          accumulate_steps: micro-batches that each device's part is cut into.
          name: of the setting, for the message.
        """
        unit = self.device_count * accumulate_steps
        if batch_size >= 1 and batch_size % unit == 0:
            return
        below, above = batch_size // unit * unit, (max(batch_size, 0) // unit + 1) * unit
        nearest = f"{below} or {above}" if below > 0 else f"{above}"
        cut = f" with accumulate_steps {accumulate_steps}" if accumulate_steps > 1 else ""
        raise ConfigError(
            f"{name} {batch_size} can not be shared evenly by {self.device_count} devices{cut}; "
            f"it must be a multiple of {unit}: set {nearest}."
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
          batch: host arrays with the same first axis, of which each process gives its own rows;
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
                step_fn,
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

    def _place_rows(self, rows: np.ndarray) -> jax.Array:
        rows = np.asarray(rows)
        processes = self.device_count // self.mesh.local_mesh.devices.size
        self.check_batch_size(rows.shape[0] * processes)
        if self.kind == "pmap":
            local = self.device_count // processes
            rows = rows.reshape(local, rows.shape[0] // local, *rows.shape[1:])
        return jax.make_array_from_process_local_data(self.split, rows)


def make_parallel(kind: str = "jit", devices: Sequence[jax.Device] | None = None) -> Parallel:
    """How to run over `devices`.

    Args:
      kind: "jit", the default, or "pmap"; see the top of this module. Results are equal to float
        rounding.
      devices: those to use, of all processes; None: all there are.

    Returns:
      A `Parallel`.

    Raises:
      ConfigError: for an unknown kind.

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
    mesh = jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )
    return Parallel(kind, mesh)


def _place_copy(sharding: NamedSharding, leaf: jax.Array | np.ndarray) -> jax.Array:
    """`leaf`, equal in all processes, replicated by `sharding`, in memory of its own."""
    if isinstance(leaf, jax.Array):
        leaf = leaf.addressable_data(0)
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _rows_of_this_process(array: jax.Array) -> np.ndarray:
    """The rows of an array split over all processes that this process holds, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
