"""From uint8 pictures to label maps: one prediction step for training, `evaluate` and `predict`."""

import functools
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxseg.crf import CrfPreset, dense_crf
from flaxseg.inference.program_limit import ProgramLimit
from flaxseg.layers import largest_class, normalize

MAX_CLASSES = 255  # label maps are uint8, and 255 means "ignore"


@functools.lru_cache(maxsize=8)
def make_predict_step(
    model: nn.Module, crf: CrfPreset | None = None
) -> Callable[[Mapping, jax.Array], jax.Array]:
    """The prediction as a pure function, to be compiled by the caller.

    Pixels become floats and classes are chosen on the device: uint8 goes in, uint8 comes out,
    logits never leave. The images of a batch are run one after the other: XLA rounds otherwise for
    each batch size, and a pixel in a few million would get another class. It also needs the memory
    of one image only, and is the faster way on CPUs.

    Over several devices use `make_predict_fn`; `jax.jit` with a sharded batch would run every image
    on every device.

    Args:
      model: a flaxseg model with at most 255 classes.
      crf: refines the logits by the picture, before the classes are chosen.

    Returns:
      `step(variables, image)`: image uint8 [N, H, W, 3] RGB -> the class of the largest logit,
      uint8 [N, H, W]. It is the same function object each time, so that JAX finds what it compiled.

    Raises:
      ValueError: the model has more than 255 classes.
    """
    if model.num_classes > MAX_CLASSES:
        raise ValueError(
            f"a label map is uint8 and 255 is 'ignore', so at most {MAX_CLASSES} classes fit; the "
            f"model has {model.num_classes}."
        )

    def step(variables: Mapping, image: jax.Array) -> jax.Array:
        def classes(one: jax.Array) -> jax.Array:
            return largest_class(_scores(model, variables, one, crf)).astype(jnp.uint8)

        return jax.lax.map(classes, image)

    return step


def _scores(
    model: nn.Module, variables: Mapping, image: jax.Array, crf: CrfPreset | None
) -> jax.Array:
    """Of one picture, uint8 [H, W, 3]: the logits [H, W, C], or the marginals of the CRF."""
    logits = model.apply(variables, normalize(image[None], model.normalization)).logits[0]
    return logits if crf is None else dense_crf(-logits, image, crf)


@functools.lru_cache(maxsize=8)
def compiled_probabilities(
    model: nn.Module, crf: CrfPreset | None = None
) -> Callable[[Mapping, jax.Array], jax.Array]:
    """The probabilities of one whole picture: (variables, uint8 [H, W, 3]) -> float32 [H, W, C];
    with a CRF its marginals. It compiles once per size."""

    def probabilities(variables: Mapping, image: jax.Array) -> jax.Array:
        scores = _scores(model, variables, image, crf)
        return jax.nn.softmax(scores) if crf is None else scores

    return jax.jit(probabilities)


@functools.lru_cache(maxsize=8)
def _compiled_step(
    model: nn.Module, mesh: Mesh | None = None, crf: CrfPreset | None = None
) -> Callable[[Mapping, jax.Array], jax.Array]:
    """The jitted step of a model, over the devices of a mesh; it compiles once per input shape."""
    step = make_predict_step(model, crf)
    if mesh is not None:
        step = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    return jax.jit(step)


@functools.lru_cache(maxsize=8)
def _limit(
    model: nn.Module, mesh: Mesh | None = None, crf: CrfPreset | None = None
) -> ProgramLimit:
    """Of the same step, wherever it is used."""
    return ProgramLimit(_compiled_step(model, mesh, crf))


def make_predict_fn(
    model: nn.Module,
    variables: Mapping,
    devices: Sequence[jax.Device] | None = None,
    *,
    crf: CrfPreset | None = None,
) -> Callable[[np.ndarray], jax.Array]:
    """A function of the pictures alone, as `evaluate` wants it; each new input shape compiles once.

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      devices: the batch is spread evenly over them, so its size must be a multiple of their number
        (give `evaluate` the same `device_count`). Without them everything runs where `variables`
        are.
      crf: see `make_predict_step`.

    Returns:
      `predict_fn(image)`: image uint8 [N, H, W, 3] -> classes uint8 [N, H, W], on the device, not
      waited for.
    """
    if devices is None or len(devices) == 1:
        mesh, target = None, devices[0] if devices else None
        variables = jax.device_put(variables, target)
    else:
        mesh = Mesh(np.array(devices), ("data",))
        target = NamedSharding(mesh, P("data"))
        variables = jax.device_put(variables, NamedSharding(mesh, P()))
    step, limit = _compiled_step(model, mesh, crf), _limit(model, mesh, crf)

    def predict_fn(image: np.ndarray) -> jax.Array:
        limit.expect(image.shape)
        return step(variables, jax.device_put(image, target))

    return predict_fn


def predict(
    model: nn.Module, variables: Mapping, image: np.ndarray, *, crf: CrfPreset | None = None
) -> np.ndarray:
    """The label map of a picture, or of a batch of pictures of one size.

    The first picture of each size compiles (seconds); the compiled program is kept for the next one
    of that size.

    Example, from a picture file to its mask:

        model, variables = flaxseg.load_model("runs/camvid/model")
        image = flaxseg.inference.read_image("street.jpg")
        pred = flaxseg.inference.whole_image(model, variables, image)
        colors = flaxseg.read_model_card("runs/camvid/model")["class_colors"]
        flaxseg.drawing.save_palette_png("street_mask.png", pred, colors)

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      image: uint8 RGB, [H, W, 3] or [N, H, W, 3], any H and W that the model takes.
      crf: refines the result by the picture; `flaxseg.crf.crf_preset` has published ones.

    Returns:
      Class indices, uint8 [H, W] or [N, H, W].

    Raises:
      ValueError: the image has another shape or dtype.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(
            f"image has dtype {image.dtype}; give the uint8 pixels 0..255, the model's own "
            "normalisation is applied here."
        )
    if image.ndim not in (3, 4) or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}; give RGB as [H, W, 3] or [N, H, W, 3].")
    batch = image if image.ndim == 4 else image[None]
    _limit(model, None, crf).expect(batch.shape)
    pred = np.asarray(_compiled_step(model, None, crf)(variables, batch))
    return pred if image.ndim == 4 else pred[0]
