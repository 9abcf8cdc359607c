"""Carries out a `Protocol`: pictures of any size through a network of fixed ones.

Each combination of scale and mirror image is a stream of rows. Windows lie on the scaled picture in
rows; what they say is added up in a `Band`, and as soon as the next row of windows can no longer
change a line of it, that line is brought to the size of the picture and fused with the same line of
the other streams. So the memory on the device does not grow with the height of a picture, and very
wide ones are done in blocks of columns.

All positions are computed on the host (`line_tables`), so the compiled programs know only sizes
rounded up (`rounded`): there are few of them, whatever sizes come.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxseg.crf import CrfPreset, dense_crf, unary_from_probabilities
from flaxseg.inference.band import PROGRAMS, Band, Stream, WindowNetwork, compiled_add
from flaxseg.inference.line_tables import rounded
from flaxseg.inference.program_limit import ProgramLimit
from flaxseg.inference.protocol import Protocol
from flaxseg.inference.whole_image import MAX_CLASSES, compiled_probabilities, predict
from flaxseg.layers import largest_class

# Lines that are fused and leave the device at a time.
_LINES = 128
# Columns of the picture that are done at a time.
_BLOCK = 4096


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
        self._network = WindowNetwork(
            protocol=protocol,
            num_classes=model.num_classes,
            add=compiled_add(
                model,
                protocol.flip_fusion if self._flips_windows else None,
                protocol.softmax == "window",
                mesh,
            ),
            variables=self._variables,
            batch=windows_per_device * (len(devices) if devices else 1),
            target=self._target,
        )
        programs = self._network.add, *PROGRAMS, _fuse, _share, _softmax, _classes, _normalised
        self._limit = ProgramLimit(*programs, compiled_probabilities(model, crf))

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
            Stream(self.protocol.layout((height, width), scale), mirrored)
            for scale in self.protocol.scales
            for mirrored in mirrors
        ]
        pictures = {
            mirrored: self._on_device(image[:, ::-1] if mirrored else image) for mirrored in mirrors
        }
        for left in range(0, width, _BLOCK):
            columns = slice(left, min(left + _BLOCK, width))
            bands = [
                Band(
                    self._network,
                    stream,
                    pictures[stream.mirrored],
                    (height, width),
                    columns,
                    _LINES,
                )
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
            padded = np.zeros((*map(rounded, image.shape[:2]), 3), np.uint8)
            padded[: image.shape[0], : image.shape[1]] = image
            image = padded
        return jax.device_put(image, self._target)


@functools.partial(jax.jit, static_argnums=2)
def _fuse(a: jax.Array, b: jax.Array, fusion: str) -> jax.Array:
    return jnp.maximum(a, b) if fusion == "max" else a + b


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
