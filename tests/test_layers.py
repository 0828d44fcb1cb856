"""Layers that compute what plainer ones do, another way."""

import jax
import numpy as np
import pytest
from reference import relative_l2

from onedc_jax.models.layers import Conv
from onedc_jax.models.vae import UpsampledConv


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsampled_conv_is_the_convolution_of_what_is_larger(factor):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 4, 6)).astype(np.float32)
    params = UpsampledConv(3, factor).init(jax.random.key(0), x)
    params["params"]["bias"] = rng.normal(size=3).astype(np.float32)
    larger = x.repeat(factor, axis=1).repeat(factor, axis=2)
    expected = Conv(3, 3).apply(params, larger)
    assert relative_l2(UpsampledConv(3, factor).apply(params, x), expected) < 1e-6
