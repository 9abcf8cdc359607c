"""Defines what a network computes on uint8 images, as pure functions for a caller to compile."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.crf import CrfPreset, dense_crf
from flaxseg.layers import largest_class, normalize

MAX_CLASSES = 255  # label maps are uint8, and 255 means "ignore"

Forward = Callable[[Mapping, jax.Array], jax.Array]


def batch_classes(model: nn.Module, crf: CrfPreset | None = None) -> Forward:
    """Returns `classes(variables, images)`: uint8 [N, H, W, 3] RGB -> uint8 [N, H, W].

    Pixels become floats and classes are chosen on the device, so logits never leave it. The images
    of a batch run one after the other: XLA rounds differently for each batch size, and one pixel in
    a few million would get another class. This also needs the memory of one image only, and is the
    faster way on CPUs.

    Args:
      model: a flaxseg model with at most 255 classes.
      crf: refines the logits by the image, before the classes are chosen.
    """

    def classes(variables: Mapping, images: jax.Array) -> jax.Array:
        def one(image: jax.Array) -> jax.Array:
            return largest_class(_scores(model, variables, image, crf)).astype(jnp.uint8)

        return jax.lax.map(one, images)

    return classes


def image_probabilities(model: nn.Module, crf: CrfPreset | None = None) -> Forward:
    """Returns `probabilities(variables, image)`: uint8 [H, W, 3] -> float32 [H, W, C]; with a CRF
    its marginals."""

    def probabilities(variables: Mapping, image: jax.Array) -> jax.Array:
        scores = _scores(model, variables, image, crf)
        return jax.nn.softmax(scores) if crf is None else scores

    return probabilities


def image_energies(model: nn.Module) -> Forward:
    """Returns `energies(variables, image)`: uint8 [H, W, 3] -> float32 [H, W, C], what a CRF takes
    of an image that is run as it is."""
    return lambda variables, image: -_scores(model, variables, image, None)


def window_values(model: nn.Module, flip_fusion: str | None, softmax: bool) -> Forward:
    """Returns `values(variables, pixels)`: the normalised pixels of a window, float32 [h, w, 3] ->
    float32 [h, w, C].

    Args:
      model: a flaxseg model.
      flip_fusion: how a window and its mirror image become one, see `Protocol`; None runs no mirror
        image.
      softmax: whether the values are probabilities, not logits, where there is no mirror image.
    """

    def values(variables: Mapping, pixels: jax.Array) -> jax.Array:
        logits = model.apply(variables, pixels[None]).logits[0]
        if flip_fusion is None:
            return jax.nn.softmax(logits) if softmax else logits
        mirrored = model.apply(variables, pixels[None, :, ::-1]).logits[0][:, ::-1]
        if flip_fusion == "probabilities":
            return (jax.nn.softmax(logits) + jax.nn.softmax(mirrored)) / 2
        if flip_fusion == "product":
            return jnp.exp(jax.nn.log_softmax(logits) + jax.nn.log_softmax(mirrored))
        return jax.nn.softmax((logits + mirrored) / (2 if flip_fusion == "logits" else 1))

    return values


def _scores(
    model: nn.Module, variables: Mapping, image: jax.Array, crf: CrfPreset | None
) -> jax.Array:
    """Returns the logits [H, W, C] of one image, uint8 [H, W, 3], or the marginals of the CRF."""
    logits = model.apply(variables, normalize(image[None], model.normalization)).logits[0]
    return logits if crf is None else dense_crf(-logits, image, crf)
