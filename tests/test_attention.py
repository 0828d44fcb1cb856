"""Attention too large to hold all its logits is what it is at once."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from reference import relative_l2

from onedc_jax.models import attention
from onedc_jax.sharding import AXES, attention_spec

_DEVICE = jax.local_devices()[0]
ON_HOPPER = (
    "cuda" in _DEVICE.client.platform_version
    and float(getattr(_DEVICE, "compute_capability", 0)) >= 9
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width, keys", [(40, 286), (40, 77), (160, 286)])
def test_large_attention_is_that_of_all_logits(width, keys, dtype, monkeypatch):
    # On an NVIDIA GPU half precision takes cuDNN's kernel, whose weights are rounded too.
    *rngs, rng, other = jax.random.split(jax.random.key(0), 5)
    q, k, v = (
        jax.random.normal(rng, (2, n, 3, width)).astype(dtype)
        for rng, n in zip(rngs, (300, keys, keys), strict=True)
    )
    mask = jax.random.bernoulli(rng, 0.7, (2, keys))
    bias = jax.random.normal(other, (1, 300, keys))

    def run(q, k, v):
        out = attention.attention(q, k, v, mask, bias)
        return jnp.square(out.astype(jnp.float32)).sum(), out

    def found():
        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))(q, k, v)

    (_, whole), gradients = found()
    monkeypatch.setattr(attention, "_DENSE_LOGITS", 0)
    (_, parts), others = found()
    bound = 1e-5 if dtype == "float32" else 1e-2
    for a, b in zip((whole, *gradients), (parts, *others), strict=True):
        assert relative_l2(np.asarray(b, np.float32), np.asarray(a, np.float32)) < bound


def test_bias_on_the_logits_is_the_same_all_at_once_and_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 300, 2, 4), np.float32)
    for bias in rng.standard_normal((1, 300, 300)), rng.standard_normal((2, 300, 300)):
        bias = np.where(bias > -1.0, bias, -np.inf).astype(np.float32)
        at_once = attention.attention(q, k, v, bias=bias)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "_DENSE_LOGITS", 0)
            in_blocks = attention.attention(q, k, v, bias=bias)
        np.testing.assert_allclose(at_once, in_blocks, atol=1e-6)


@pytest.mark.parametrize(
    "queries, keys, masked, biased",
    [(7, 5, True, True), (6, 5, False, False), (7, 4, False, True), (6, 4, True, False)],
)
def test_what_the_fused_kernel_is_given_is_the_same_attention(
    queries, keys, masked, biased, monkeypatch
):
    def kernel(q, k, v, bias, scale, implementation):  # in cuDNN's place
        assert q.shape[1] % 2 == k.shape[1] % 2 == q.shape[3] % 8 == 0
        assert q.shape[3] == k.shape[3] == v.shape[3]
        return unfused(q, k, v, bias, scale=scale, implementation="xla")

    unfused = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    q, k, v = draw(2, queries, 3, 8), draw(2, keys, 3, 8), draw(2, keys, 3, 8)
    mask = np.array([[True] * (keys - 1) + [False], [True] * keys]) if masked else None
    bias = draw(1, queries, keys) if biased else None

    @partial(jax.jit, static_argnums=0)
    def run(attend):
        total = lambda *qkv: jnp.square(attend(*qkv, mask, bias)).sum()
        return attend(q, k, v, mask, bias), *jax.grad(total, (0, 1, 2))(q, k, v)

    for found, wanted in zip(
        run(attention._fused_attention), run(attention._dense_attention), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "images, heads, spec",
    [
        (64, 1, P(AXES, None, None)),
        (8, 8, P("data", None, "fsdp")),  # bands of few images: every head in one place
        (8, 1, P("data", None, None)),
        (3, 5, P(None, None, None)),
    ],
)
def test_on_a_mesh_attention_is_never_cut_along_positions(images, heads, spec):
    assert attention_spec(images, heads) is None
    with jax.sharding.use_abstract_mesh(AbstractMesh((4, 8), AXES)):
        assert attention_spec(images, heads) == spec


@pytest.mark.skipif(not ON_HOPPER, reason="needs an NVIDIA GPU of capability 9 or more")
@pytest.mark.parametrize("width", [8, 40, 80, 160])
def test_half_precision_is_fused_on_an_nvidia_gpu(width):
    assert attention._is_fused(jnp.zeros((1, 8, 1, width), jnp.bfloat16))


@pytest.mark.parametrize("capability, widest", [("7.5", 0), ("8.0", 128), ("gfx942", 0)])
def test_only_gpus_that_have_a_fused_kernel_are_given_one(capability, widest):
    device = SimpleNamespace(compute_capability=capability)  # a T4, an A100, an AMD Instinct
    assert attention._widest_fused(device) == widest
    assert attention._widest_fused(SimpleNamespace()) == 0  # a CPU
