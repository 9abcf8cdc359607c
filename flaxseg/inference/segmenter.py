"""Runs a network on images of any size by a `Protocol`.

An image goes through the network as a whole, in one program, or in windows at several scales. In
the second case each combination of scale and mirror image is a stream of rows. Windows lie on the
scaled image in rows; what they say is added up in a `Band`, and as soon as the next row of windows
can no longer change a line of it, that line is brought to the size of the image and fused with the
same line of the other streams. So the memory on the device does not grow with the height of an
image, and very wide ones are done in blocks of columns.

All positions are computed on the host (`line_tables`), so the compiled programs know only sizes
rounded up (`rounded`): there are few of them, whatever sizes come.
"""

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxseg.crf import CrfPreset, dense_crf, unary_from_probabilities
from flaxseg.inference.band import Band, Stream, window_network
from flaxseg.inference.forward import (
    MAX_CLASSES,
    batch_classes,
    image_energies,
    image_probabilities,
)
from flaxseg.inference.line_tables import rounded
from flaxseg.inference.named_protocols import model_protocol
from flaxseg.inference.program_cache import ProgramCache
from flaxseg.inference.protocol import Protocol
from flaxseg.layers import largest_class

# Lines that are fused and leave the device at a time.
_LINES = 128
# Columns of the image that are done at a time.
_BLOCK = 4096


class Segmenter:
    """Runs a network by a protocol on images of any size.

    Each new size of images compiles (seconds); windows have one size. The compiled programs are
    those of this segmenter: they are bounded in number and freed with it, so keep it for the next
    image.

    Example:

        model, variables = flaxseg.load_model("runs/camvid")
        protocol = parse_protocol("whole(scales=(0.75, 1.0, 1.25))")
        segmenter = Segmenter(model, variables, protocol)
        classes = segmenter.run(image).classes

    Attributes:
      model: the network.
      protocol: what is done.
      num_classes: of the network.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping,
        protocol: Protocol | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
        windows_per_device: int = 1,
        crf: CrfPreset | None = None,
    ):
        """Puts the variables on the devices; nothing is compiled yet.

        Args:
          model: a flaxseg model with at most 255 classes.
          variables: its parameters and BatchNorm statistics.
          protocol: what is done with an image; the model's own by default, `Protocol()` runs the
            image as it is.
          devices: those that batches, or the windows of a row, are spread over; by default the
            first one.
          windows_per_device: how many are given to a device at a time. They run one after the
            other, so that the result does not depend on it; more of them only save round trips.
          crf: refines the probabilities by the image; `flaxseg.crf.crf_preset` has published ones.
            It needs the probabilities of all pixels at a time, so memory grows with the image.

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
        self.model, self.num_classes = model, model.num_classes
        self.protocol = protocol = model_protocol(model) if protocol is None else protocol
        self._crf = crf
        self._device_count = len(devices) if devices else 1
        mesh = Mesh(np.array(devices), ("data",)) if self._device_count > 1 else None
        self._target = self._batch_target = devices[0] if devices else None
        run_batch = batch_classes(model, crf)
        if mesh is not None:
            self._target = NamedSharding(mesh, P())
            self._batch_target = NamedSharding(mesh, P("data"))
            run_batch = jax.shard_map(
                run_batch, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
            )
        programs = self._programs = ProgramCache()
        self._batch_classes = programs.compile(run_batch)
        self._image_probabilities = programs.compile(image_probabilities(model, crf))
        self._unary = programs.compile(image_energies(model))
        self._fuse = programs.compile(_fuse, static_argnums=2)
        self._share = programs.compile(_share)
        self._softmax = programs.compile(jax.nn.softmax)
        self._largest = programs.compile(_largest)
        self._normalized = programs.compile(_normalized, static_argnums=1)
        self._variables = jax.device_put(variables, self._target)
        self._network = window_network(
            model,
            self._variables,
            protocol,
            programs,
            batch=windows_per_device * self._device_count,
            mesh=mesh,
            target=self._target,
        )

    def with_variables(self, variables: Mapping) -> "Segmenter":
        """Returns a segmenter with other variables that shares the compiled programs."""
        other = copy.copy(self)
        other._variables = jax.device_put(variables, self._target)
        other._network = self._network._replace(variables=other._variables)
        return other

    def run(self, image: np.ndarray) -> "Segmentation":
        """Returns what the network says about an image; it is computed when it is read.

        Args:
          image: uint8 RGB [H, W, 3], any size from 1x1 that the model takes.

        Raises:
          ValueError: the image has another shape or dtype.
        """
        image = np.asarray(image)
        _check(image, "[H, W, 3]")
        return Segmentation(self, image)

    def run_batch(self, images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """Returns the classes of images of one size, as `evaluate` takes them.

        Whole images run over all devices at a time; with scales, mirror images or windows each
        image is run alone, and its windows are spread over the devices.

        Args:
          images: uint8 RGB [N, H, W, 3]. Of whole images N must be a multiple of the number of
            devices; those of a canvas fill it (see `batch_options`).

        Returns:
          Classes uint8 [N, H, W]; of whole images on the devices, not waited for.

        Raises:
          ValueError: as for `run`.
        """
        _check(images, "[N, H, W, 3]")
        if not self._is_batched or self.protocol.pad_to not in (None, images.shape[1:3]):
            return np.stack([self.run(image).classes for image in images])
        self._programs.expect(images.shape)
        return self._batch_classes(self._variables, jax.device_put(images, self._batch_target))

    def batch_options(self, batch_size: int = 1) -> dict[str, Any]:
        """Returns the batch_size, device_count, pad_to and pad_color with which `evaluate` should
        call `run_batch`.

        Args:
          batch_size: images at a time over all devices, where they go in batches.
        """
        if not self._is_batched:
            return {"batch_size": 1, "device_count": 1}
        options = {"batch_size": batch_size, "device_count": self._device_count}
        if self.protocol.pad_to is not None:
            options |= {
                "pad_to": self.protocol.pad_to,
                "pad_color": self.model.normalization.mean,
            }
        return options

    @property
    def _is_batched(self) -> bool:
        """Returns whether whole images go in batches. A CRF must not see the border of a canvas."""
        return self.protocol.is_plain or (self.protocol.is_canvas and self._crf is None)

    @property
    def _is_one_run(self) -> bool:
        """Returns whether an image goes through the network as it is, on one device."""
        return self.protocol.is_plain and self._device_count == 1

    def _classes(self, image: np.ndarray) -> np.ndarray:
        if self._is_one_run:
            return np.asarray(self.run_batch(image[None]))[0]
        if self._crf is not None:
            return np.asarray(self._largest(self._marginals(image)))
        result = np.empty(image.shape[:2], np.uint8)
        for rows, columns, fused in self._parts(image):
            lines = np.asarray(self._largest(fused))
            result[rows, columns] = lines[: rows.stop - rows.start, : columns.stop - columns.start]
        return result

    def _probability_parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
        whole = tuple(slice(0, side) for side in image.shape[:2])
        if self._is_one_run:
            self._programs.expect(image.shape)
            yield *whole, np.asarray(self._image_probabilities(self._variables, image))
        elif self._crf is not None:
            yield *whole, np.asarray(self._marginals(image))
        else:
            yield from self._network_parts(image)

    def _marginals(self, image: np.ndarray) -> jax.Array:
        """Returns those of the CRF, [H, W, C], after what the protocol does."""
        return dense_crf(self.unary(image), image, self._crf)

    def unary(self, image: np.ndarray) -> jax.Array:
        """Returns the energies that a CRF refines: -log p, up to a constant in each pixel.

        Args:
          image: uint8 RGB [H, W, 3].
        """
        if self._is_one_run:
            self._programs.expect(image.shape)
            return self._unary(self._variables, image)
        parts = self._network_parts(image)
        probabilities = _gathered((*image.shape[:2], self.num_classes), parts)
        return unary_from_probabilities(probabilities)

    def _network_parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
        for rows, columns, fused in self._parts(image):
            lines = np.asarray(self._normalized(fused, self.protocol.softmax == "end"))
            size = rows.stop - rows.start, columns.stop - columns.start
            yield rows, columns, lines[: size[0], : size[1]]

    def _parts(self, image: np.ndarray) -> Iterator[tuple[slice, slice, jax.Array]]:
        """Yields rows and columns of the image with their fused values, on the device."""
        height, width = image.shape[:2]
        if self.protocol.window is None:  # otherwise sizes are rounded, so there are few
            self._programs.expect((height, width))
        mirrors = (False,)
        if self.protocol.flip and not self.protocol.flips_windows:
            mirrors = (False, True)
        streams = [
            Stream(self.protocol.layout((height, width), scale), mirrored)
            for scale in self.protocol.scales
            for mirrored in mirrors
        ]
        images = {
            mirrored: self._on_device(image[:, ::-1] if mirrored else image) for mirrored in mirrors
        }
        for left in range(0, width, _BLOCK):
            columns = slice(left, min(left + _BLOCK, width))
            bands = [
                Band(
                    self._network,
                    stream,
                    images[stream.mirrored],
                    (height, width),
                    columns,
                    _LINES,
                )
                for stream in streams
            ]
            for top in range(0, height, _LINES):
                rows = slice(top, min(top + _LINES, height))
                yield rows, columns, self._fused(band.lines(rows) for band in bands)

    def _fused(self, bands: Iterator[jax.Array]) -> jax.Array:
        """Returns the fused values of the same lines of all bands."""
        fused, count = None, 0
        for lines in bands:
            if self.protocol.softmax == "image":
                lines = self._softmax(lines)
            fused = lines if fused is None else self._fuse(fused, lines, self.protocol.fusion)
            count += 1
        return self._share(fused, np.float32(count)) if self.protocol.fusion == "mean" else fused

    def _on_device(self, image: np.ndarray) -> jax.Array:
        if self.protocol.window is not None:
            padded = np.zeros((*map(rounded, image.shape[:2]), 3), np.uint8)
            padded[: image.shape[0], : image.shape[1]] = image
            image = padded
        return jax.device_put(image, self._target)


class Segmentation:
    """Holds what a network says about one image; made by `Segmenter.run`.

    The network runs when a value is first read; the values are kept.

    Attributes:
      image: uint8 RGB [H, W, 3].
      num_classes: of the network.
    """

    def __init__(self, segmenter: Segmenter, image: np.ndarray):
        """Runs nothing yet."""
        self._segmenter = segmenter
        self.image, self.num_classes = image, segmenter.num_classes

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """Returns the likeliest class of each pixel, uint8 [H, W]."""
        if "probabilities" in self.__dict__:
            return self.probabilities.argmax(-1).astype(np.uint8)
        return self._segmenter._classes(self.image)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """Returns the probabilities, float32 [H, W, C], after the CRF if there is one."""
        return _gathered((*self.image.shape[:2], self.num_classes), self.probability_parts())

    def probability_parts(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yields rows, columns and their probabilities [rows, columns, C]; runs the network anew.

        Those of a large image are never held as a whole, unless the image is run as a whole or
        refined by a CRF.
        """
        return self._segmenter._probability_parts(self.image)


@functools.lru_cache(maxsize=4)
def _last_segmenter(
    model: nn.Module, protocol: Protocol | None = None, crf: CrfPreset | None = None
) -> Segmenter:
    """Returns the segmenter whose programs `predict` shares; its variables are still missing."""
    return Segmenter(model, {}, protocol, crf=crf)


def predict(
    model: nn.Module,
    variables: Mapping,
    image: np.ndarray,
    *,
    protocol: Protocol | None = None,
    crf: CrfPreset | None = None,
) -> np.ndarray:
    """Returns the classes of an image, or of a batch of images of one size.

    The first image of each size compiles (seconds); the programs of the last few models are kept.
    `Segmenter` also has probabilities, and keeps programs as long as it lives.

    Example, from an image file to its mask:

        model, variables = flaxseg.load_model("runs/camvid/model")
        image = flaxseg.inference.read_image("street.jpg")
        classes = flaxseg.inference.predict(model, variables, image)
        colors = flaxseg.read_model_card("runs/camvid/model")["class_colors"]
        flaxseg.drawing.save_palette_png("street_mask.png", classes, colors)

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      image: uint8 RGB, [H, W, 3] or [N, H, W, 3], any H and W that the model takes.
      protocol: what is done with the image; the model's own by default.
      crf: refines the result by the image; `flaxseg.crf.crf_preset` has published ones.

    Returns:
      Class indices, uint8 [H, W] or [N, H, W].

    Raises:
      ValueError: the image has another shape or dtype.
    """
    image = np.asarray(image)
    _check(image, "[H, W, 3]", "[N, H, W, 3]")
    segmenter = _last_segmenter(model, protocol, crf).with_variables(variables)
    classes = np.asarray(segmenter.run_batch(image if image.ndim == 4 else image[None]))
    return classes if image.ndim == 4 else classes[0]


def _gathered(
    shape: tuple[int, int, int], parts: Iterator[tuple[slice, slice, np.ndarray]]
) -> np.ndarray:
    result = np.empty(shape, np.float32)
    for rows, columns, values in parts:
        result[rows, columns] = values
    return result


def _fuse(a: jax.Array, b: jax.Array, fusion: str) -> jax.Array:
    return jnp.maximum(a, b) if fusion == "max" else a + b


def _share(x: jax.Array, count: jax.Array) -> jax.Array:
    return x / count


def _largest(x: jax.Array) -> jax.Array:
    return largest_class(x).astype(jnp.uint8)


def _normalized(x: jax.Array, logits: bool) -> jax.Array:
    """Returns probabilities that sum to 1, of logits or of probabilities fused in any way."""
    return jax.nn.softmax(x) if logits else x / jnp.sum(x, -1, keepdims=True)


def _check(image: np.ndarray | jax.Array, *layouts: str) -> None:
    """Raises ValueError unless an image, or batch of them, is uint8 RGB in one of the layouts."""
    if image.dtype != np.uint8:
        raise ValueError(
            f"image has dtype {image.dtype}; give the uint8 pixels 0..255, the model's own "
            "normalisation is applied here."
        )
    fits = image.ndim in [layout.count(",") + 1 for layout in layouts]
    if not fits or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}; give RGB as {' or '.join(layouts)}.")
