"""The generator, its noise schedule and the merging of its LoRA."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.diffusion import add_noise, alphas_cumprod, x0_from_eps
from onedc_jax.models.generator import Generator, merge_lora
from onedc_jax.models.init import shapes_of
from onedc_jax.models.layers import GroupNorm
from onedc_jax.models.unet import Resnet


@pytest.fixture(scope="module")
def micro():
    generator = Generator(unet=dict(widths=(32, 64, 64, 64), rank=4, alpha=8.0))
    x_hat, tokens = jnp.zeros((1, 8, 8, 64)), jnp.zeros((1, 1, 96))
    tree = shapes_of(generator, x_hat, tokens)
    tensors = checkpoint("micro/unet", "unet.")
    return generator, weights.fill(tree, tensors, weights.generator_name)


# 8 × 24 has odd levels: 1 × 3 in the middle.
@pytest.mark.parametrize("name", ["generator", "generator_8x24"])
def test_generator_matches_the_reference(micro, name):
    generator, params = micro
    arrays = golden(f"micro/{name}")
    out = jax.jit(generator.apply)({"params": params}, arrays["x_hat"], arrays["tokens"])
    for key in out.keys() & arrays.keys():
        assert relative_l2(out[key], arrays[key]) < 1e-4, key


def test_in_half_precision_what_the_step_to_x0_multiplies_is_precise(micro):
    """Float32 alone would be TF32 or bfloat16 on accelerators."""
    generator, params = micro
    half = generator.clone(dtype="bfloat16")
    arrays = golden("micro/generator")
    lowered = jax.jit(half.apply).lower({"params": params}, arrays["x_hat"], arrays["tokens"])
    kind = re.compile(r"(convolution|dot_general).* : \(tensor<[\dx]+xf32>")
    products = [line for line in lowered.as_text().splitlines() if kind.search(line)]
    assert len(products) == 5  # time embedding (2), conv_out, blocks_5 and short_cut
    assert all("HIGHEST" in line for line in products)


def test_schedule_matches_the_reference():
    expected = golden("micro/generator")["alphas_cumprod"]
    np.testing.assert_allclose(alphas_cumprod(), expected, rtol=2e-6)


@pytest.mark.parametrize("t", [0, 999, np.array([20, 640])])
def test_x0_is_what_noise_was_added_to(t):
    x0, noise = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 3), np.float32)
    alphas = alphas_cumprod()
    noisy = add_noise(x0, noise, t, alphas)
    np.testing.assert_allclose(x0_from_eps(noisy, noise, t, alphas), x0, atol=1e-5)


def test_merged_lora_computes_the_same():
    # A block with every kind of layer that is adapted.
    block = Resnet(32, partial(GroupNorm, 4), rank=2, alpha=3.0)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    x, time = draw(1, 8, 8, 16), draw(1, 64)
    tree = shapes_of(block, x, time)
    params = jax.tree.map(lambda p: draw(*p.shape) / np.sqrt(np.prod(p.shape[:-1])), tree)

    before = jax.jit(block.apply)({"params": params}, x, time)
    after = jax.jit(block.clone(rank=0).apply)({"params": merge_lora(params, alpha=3.0)}, x, time)
    assert relative_l2(after, before) < 1e-5


def test_merged_tree_is_that_of_a_generator_without_lora(micro):
    _, params = micro
    plain = Generator(unet=dict(widths=(32, 64, 64, 64)))
    x_hat, tokens = jnp.zeros((1, 8, 8, 64)), jnp.zeros((1, 1, 96))
    tree = shapes_of(plain, x_hat, tokens)
    assert jax.eval_shape(merge_lora, params) == tree
