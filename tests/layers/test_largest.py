"""The class with the largest score, in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.layers import convolution_form, largest_class


@pytest.mark.parametrize("form", ["native", "products", "auto"])
@pytest.mark.parametrize("classes", [1, 2, 21, 150])
def test_is_numpys_argmax_and_the_first_of_equal_scores(form, classes):
    # Few values, so that many are equal; and infinities, as masked classes have.
    scores = np.random.default_rng(classes).integers(0, 4, (2, 5, 7, classes)).astype(np.float32)
    scores[0, 0] = -np.inf
    scores[0, 1, :, classes // 2] = np.inf
    for dtype in (jnp.float32, jnp.bfloat16):
        index = jax.jit(lambda x: largest_class(x, form=form))(jnp.asarray(scores, dtype))
        assert index.dtype == jnp.int32
        np.testing.assert_array_equal(index, scores.argmax(-1))


def test_the_form_follows_the_platform():
    def operations(form):
        with convolution_form(form):
            program = jax.make_jaxpr(lambda x: largest_class(x))(jnp.zeros((2, 3, 21)))
        return {equation.primitive.name for equation in program.eqns}

    assert "argmax" in operations("native")
    assert "argmax" not in operations("products")
    with pytest.raises(ValueError, match="form is 'fast'; it must be 'auto', 'native', 'prod"):
        largest_class(jnp.zeros((1, 2)), form="fast")
