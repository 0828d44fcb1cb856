"""Convolutions with fewer multiplications against plain ones."""

from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import relative_l2

from onedc_jax.metrics import psnr
from onedc_jax.models.init import random_params
from onedc_jax.models.layers import convolved, upsample_nearest
from onedc_jax.models.padding import within
from onedc_jax.models.vae import VAE
from onedc_jax.models.winograd import convolved_3x3, convolved_upsampled_3x3, on_cpu

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("size", [(1, 8, 12), (2, 7, 5), (1, 1, 1), (1, 737, 733)])
def test_a_convolution_is_the_plain_one(size, upsampled):
    """Also of sizes that are no multiple of a tile, and of more than one band."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (*size, 6))
    kernel = jax.random.normal(keys[1], (3, 3, 6, 5))
    plain = lambda x: convolved(x, kernel, 1, ((1, 1), (1, 1)))
    if upsampled:
        wanted = plain(upsample_nearest(x, 2 * size[1], 2 * size[2]))
        assert relative_l2(convolved_upsampled_3x3(x, kernel), wanted) <= 1e-6
    else:
        assert relative_l2(convolved_3x3(x, kernel), plain(x)) <= 2e-6


@pytest.mark.parametrize(
    "model", [VAE(widths=(256,), layers=0, patch=8), VAE(widths=(64, 64), layers=0, patch=4)]
)
def test_a_network_makes_the_same_picture(model):
    """Of an image that ends within its array, too: there the network sees zeros."""
    latent = 0.3 * jax.random.normal(jax.random.key(0), (1, 64, 64, 4))
    decode = lambda params: model.apply({"params": params}, latent, method=VAE.decode)
    init = lambda key: model.init(key, latent, method=VAE.decode)["params"]
    params = random_params(jax.eval_shape(init, jax.random.key(0)), 0)

    def shown(params, convolutions):
        with within(jnp.array([[7, 5]], jnp.int32), (8, 8)), convolutions:
            return decode(params)[:, : 7 * 64, : 5 * 64]

    contexts = nullcontext(), on_cpu()
    plain, fast = (np.asarray(jax.jit(partial(shown, convolutions=c))(params)) for c in contexts)
    assert (fast != plain).any()
    low, high = plain.min(), plain.max()
    unit = lambda x: np.clip((x - low) / (high - low), 0, 1)
    assert psnr(unit(fast), unit(plain))[0] >= 60
