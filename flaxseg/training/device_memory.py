"""Turns the device's "out of memory" into what can be done about it."""

import contextlib
from collections.abc import Iterator

import jax

from flaxseg.errors import FlaxsegError
from flaxseg.training.parallel import SPACE_AXIS, height_unit
from flaxseg.training.run_settings import Settings


@contextlib.contextmanager
def explain_memory(settings: Settings) -> Iterator[None]:
    """Raises FlaxsegError, with settings that need less, where the device runs out of memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        options, (height, width) = settings.model.options, settings.data.crop_size
        raise FlaxsegError(
            f"the device has too little memory for {settings.model.name} on {options['backbone']} "
            f"with batch_size {settings.batch_size} of {height}x{width} crops in "
            f"{options['dtype']}. Set --config.batch_size={max(settings.batch_size // 2, 1)}, or "
            "--config.remat=True, or --config.optimizer.accumulate_steps="
            f"{settings.step.accumulate_steps * 2}, or {_finer_mesh(settings)}a smaller "
            "--config.data.crop_size."
        ) from error


def _finer_mesh(settings: Settings) -> str:
    """Returns the next finer mesh to set, or "" where there is none."""
    local, height = jax.local_device_count(), settings.data.crop_size[0]
    finer = [
        parts
        for parts in range(settings.layout.space + 1, local + 1)
        if not local % parts and not height % height_unit(parts)
    ]
    if settings.layout.kind != "jit" or not finer:
        return ""
    return f"--config.mesh={SPACE_AXIS}={finer[0]}, or "
