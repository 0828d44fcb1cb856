"""The VQGAN tokenizer: the reference's numbers, the codebook, and training it from scratch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.init import shapes_of
from onedc_jax.models.vqgan import VQGAN

SMALL = VQGAN(widths=(8, 8, 16), layers=1, codes=32, features=6, norm_groups=4)


@pytest.fixture(scope="module")
def small():
    """Seeded parameters of the small tokenizer, and an image."""
    rng = np.random.default_rng(0)
    image = rng.random((1, 8, 12, 3), np.float32)
    shapes = shapes_of(SMALL, image)
    draw = lambda p: rng.standard_normal(p.shape, np.float32) / np.sqrt(np.prod(p.shape[:-1]))
    return {"params": jax.tree.map(draw, shapes)}, image


@pytest.fixture(scope="module")
def released():
    """The golden arrays, and what the released size makes of their image with seeded weights."""
    arrays = golden("micro/tokenizer")
    model = VQGAN()
    shapes = shapes_of(model, arrays["image"])
    tensors = checkpoint("micro/tokenizer", "tokenizer.")
    params = weights.fill(shapes, tensors, weights.plain_name)
    return arrays, *jax.jit(model.apply)({"params": params}, arrays["image"])


def test_tokens_match_the_reference(released):
    arrays, _, tokens = released
    assert relative_l2(tokens.hidden, arrays["hidden"]) < 1e-4
    assert relative_l2(tokens.quantized, arrays["quantized"]) < 1e-6
    np.testing.assert_array_equal(tokens.indices.reshape(1, -1), arrays["indices"])


def test_decoded_image_matches_the_reference(released):
    arrays, decoded, _ = released
    # The reference clips.
    assert relative_l2(np.clip(decoded, 0, 1), arrays["decoded"]) < 1e-4


def test_every_code_is_nearest_to_itself(small):
    params, _ = small
    indices = np.arange(SMALL.codes).reshape(1, 4, -1)
    codes = SMALL.apply(params, indices, method="lookup")
    nearest = SMALL.apply(params, codes, method=lambda model, x: model.quantize.nearest(x))
    np.testing.assert_array_equal(nearest, indices)


def test_nearest_code_has_the_least_distance(small):
    params, _ = small
    x = np.random.default_rng(1).standard_normal((1, 3, 5, SMALL.features), np.float32)
    codes = SMALL.apply(params, np.arange(SMALL.codes), method="lookup")
    distances = np.square(x[..., None, :] - np.asarray(codes)[None, None, None]).sum(-1)
    nearest = SMALL.apply(params, x, method=lambda model, x: model.quantize.nearest(x))
    np.testing.assert_array_equal(nearest, distances.argmin(-1))


def test_gradient_of_the_image_reaches_the_encoder_and_not_the_codebook(small):
    params, image = small
    loss = lambda params: jnp.square(SMALL.apply(params, image)[0] - image).mean()
    gradients = jax.jit(jax.grad(loss))(params)["params"]
    assert all(np.any(g != 0) for g in jax.tree.leaves(gradients["encoder"]))
    assert not np.any(gradients["quantize"]["embedding"]["embedding"])


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 4; got 8×10"):
        jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 8, 10, 3)))
