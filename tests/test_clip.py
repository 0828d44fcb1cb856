"""CLIP's text encoder: the reference's numbers, and what a causal network must not do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.clip import TextEncoder
from onedc_jax.models.init import shapes_of

MICRO = TextEncoder(vocabulary=512, width=96, layers=3, heads=4, hidden=192)


@pytest.fixture(scope="module")
def encode():
    shapes = shapes_of(MICRO, jnp.zeros((1, 77), int))
    tensors = checkpoint("micro/text_encoder", "text_encoder.")
    params = weights.fill(shapes, tensors, weights.clip_name)
    return partial(jax.jit(MICRO.apply), {"params": params})


def test_features_match_the_reference(encode):
    arrays = golden("micro/text_encoder")
    features, pooled = encode(arrays["ids"])
    assert relative_l2(features, arrays["last_hidden_state"]) < 1e-4
    assert relative_l2(pooled, arrays["pooled"]) < 1e-4


def test_a_token_changes_nothing_before_it(encode):
    ids = golden("micro/text_encoder")["ids"]
    other = ids.copy()
    other[:, 40] = 3
    before, after = encode(ids)[0], encode(other)[0]
    np.testing.assert_array_equal(before[:, :40], after[:, :40])
    assert np.all(np.any(before[:, 40:] != after[:, 40:], axis=-1))


def test_texts_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="at most 77 tokens; got 78"):
        jax.eval_shape(MICRO.init, jax.random.key(0), jnp.zeros((1, 78), int))
