"""Attention too large to hold all its logits is what it is at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import relative_l2

from onedc_jax.models import layers

ON_CUDA = "cuda" in jax.local_devices()[0].client.platform_version


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [40, 160])
def test_large_attention_is_that_of_all_logits(width, dtype, monkeypatch):
    # On an NVIDIA GPU half precision takes cuDNN's kernel, whose weights are rounded too.
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (
        jax.random.normal(key, (2, n, 3, width)).astype(dtype)
        for key, n in zip(keys, (300, 286, 286), strict=False)
    )
    mask = jax.random.bernoulli(keys[3], 0.7, (2, 286))
    bias = jax.random.normal(keys[4], (1, 300, 286))

    def run(q, k, v):
        out = layers.attention(q, k, v, mask, bias)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    def found():
        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(q, k, v)

    (_, whole), gradients = found()
    monkeypatch.setattr(layers, "_DENSE_LOGITS", 0)
    (_, parts), others = found()
    bound = 1e-5 if dtype == "float32" else 1e-2
    for a, b in zip((whole, *gradients), (parts, *others), strict=True):
        assert relative_l2(np.asarray(b, np.float32), np.asarray(a, np.float32)) < bound


@pytest.mark.skipif(not ON_CUDA, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", [8, 40, 80, 160])
def test_half_precision_is_fused_on_an_nvidia_gpu(width):
    assert layers._is_fused(jnp.zeros((1, 8, 1, width), jnp.bfloat16))
