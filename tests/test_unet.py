"""The two U-Nets: the reference's numbers, odd sizes, and where parameters are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.init import shapes_of
from onedc_jax.models.unet import AnalysisUNet, UNet
from onedc_jax.trees import named

MICRO = UNet(widths=(32, 64, 64, 64))
ADAPTED = "to_q to_k to_v to_out_0 proj_in proj_out net_0_proj net_2 conv1 conv2 conv_shortcut"
ADAPTED += " downsamplers_0_conv upsamplers_0_conv time_emb_proj"


def shapes(module, *args):
    """The parameter tree's shapes, by path."""
    return {path: leaf.shape for path, leaf in named(shapes_of(module, *args)).items()}


@pytest.fixture(scope="module")
def teacher():
    """The golden arrays of the stage-2 teacher, and the parameters of its U-Nets by name."""
    arrays = golden("micro/teacher")
    arrays["timesteps"] = arrays["timesteps"].astype(np.int32)
    args = arrays["latent"], arrays["timesteps"], arrays["text"]
    tree = shapes_of(MICRO, *args)
    tensors = checkpoint("micro/guidance", "guidance.")

    def params(name):
        own = {k: v for k, v in tensors.items() if k.startswith(name + ".")}
        return weights.fill(tree, own, lambda path: weights.generator_name(f"{name}/{path}"))

    return arrays, params


def test_prediction_matches_the_reference_with_and_without_guidance(teacher):
    arrays, params = teacher
    # One run for both: the first sample with its text, the second without. What is expected of the
    # latter follows from guided = without + 1.75 (with - without).
    context = np.stack([arrays["text"][0], arrays["uncond"][1]])
    without = (arrays["eps_cfg"] - 1.75 * arrays["eps"]) / (1 - 1.75)
    eps, _ = jax.jit(MICRO.apply)(
        {"params": params("real_unet")}, arrays["latent"], arrays["timesteps"], context
    )
    assert relative_l2(eps[0], arrays["eps"][0]) < 1e-4
    assert relative_l2(eps[1], without[1]) < 1e-4


def test_middle_matches_the_reference(teacher):
    arrays, params = teacher
    middle = jax.jit(lambda *args: MICRO.apply(*args)[1])(
        {"params": params("fake_unet")}, arrays["latent"], arrays["timesteps"], arrays["text"]
    )
    assert relative_l2(middle, arrays["fake_bottleneck"]) < 1e-4


@pytest.mark.parametrize("height, width", [(1, 1), (5, 7), (9, 16)])
def test_odd_sizes_come_back(height, width):
    x, context = jnp.zeros((1, height, width, 4)), jnp.zeros((1, 3, 8))
    (eps, middle), _ = jax.eval_shape(
        MICRO.init_with_output, jax.random.key(0), x, jnp.array([7]), context
    )
    assert eps.shape == (1, height, width, 4)
    assert middle.shape == (1, -(-height // 8), -(-width // 8), 64)


def test_lora_is_on_the_layers_of_the_blocks_and_nowhere_else():
    unet = MICRO.clone(rank=2)
    paths = shapes(unet, jnp.zeros((1, 8, 8, 4)), jnp.array([7]), jnp.zeros((1, 3, 8)))
    layers = [path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")]
    adapted = {layer for layer in layers if f"{layer}/lora_a" in paths}
    assert {layer.split("/")[-1] for layer in adapted} == set(ADAPTED.split())
    plain = {"conv_in", "conv_out", "time_embedding/linear1", "time_embedding/linear2"}
    assert set(layers) - adapted == plain


def test_attention_of_the_analysis_is_where_asked():
    x = jnp.zeros((1, 16, 16, 32))
    small = AnalysisUNet(widths=(32, 32, 32), features=16)
    off = small.clone(attention=(False, False, False), mid_attention=False)
    attended = {p.rpartition("/attentions")[0] for p in shapes(small, x) if "/attentions" in p}
    assert attended == {"down_blocks_0", "down_blocks_1", "mid_block", "up_blocks_0", "up_blocks_1"}
    assert not any("attentions" in path for path in shapes(off, x))


@pytest.mark.parametrize("widths, layers", [((8, 16), 1), ((8, 16, 24), 0), ((8,), 0)])
def test_the_middle_is_as_wide_as_said(widths, layers):
    """Also without residual blocks, where the last level has no width of its own."""
    unet = UNet(widths, layers, (False,) * len(widths), heads=2, norm_groups=1)
    inputs = jnp.zeros((1, 16, 16, 4)), jnp.array([7]), jnp.zeros((1, 1, 8))
    (_, middle), _ = jax.eval_shape(unet.init_with_output, jax.random.key(0), *inputs)
    assert middle.shape[-1] == unet.middle_width
