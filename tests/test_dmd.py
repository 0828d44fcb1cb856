"""Distribution matching: the reference's losses and gradients, with its noises and timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import recipe_file
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models.heads import RealismHead
from onedc_jax.models.init import shapes_of
from onedc_jax.models.unet import UNet
from onedc_jax.training import dmd
from onedc_jax.training.dmd import Draw, Guidance

pytestmark = pytest.mark.usefixtures("optimised")

MICRO = Guidance(UNet(widths=(32, 64, 64, 64)), RealismHead())


@pytest.fixture(scope="module")
def reference():
    """The golden arrays, the five draws, and the parameters of the real score and the players."""
    arrays = golden("micro/dmd2")
    draws = [
        Draw(arrays[f"noise_{i}"], arrays[f"timesteps_{i}"].astype(np.int32)) for i in range(5)
    ]
    args = arrays["generated"], draws[0].t, arrays["text"]
    unet = shapes_of(MICRO.unet, *args)
    middle = jax.ShapeDtypeStruct((2, 8, 8, 64), jnp.float32)
    head = shapes_of(MICRO.head, middle)
    tensors = checkpoint("micro/guidance", "guidance.")

    def fill(tree, prefix, name):
        own = {k: v for k, v in tensors.items() if k.startswith(prefix)}
        return weights.fill(tree, own, name)

    score = lambda name: fill(unet, name, lambda path: weights.generator_name(f"{name}/{path}"))
    players = dict(
        fake=score("fake_unet"), realism=fill(head, "cls_pred_branch", weights.plain_name)
    )
    return arrays, draws, score("real_unet"), players


def generator_terms(reference, x0, real, players):
    arrays, draws, _, _ = reference
    return MICRO.generator_terms(x0, real, players, arrays["text"], arrays["uncond"], draws[:2])


def guidance_terms(reference, players):
    arrays, draws, _, _ = reference
    latents = arrays["generated"], arrays["real"]
    return MICRO.guidance_terms(*latents, players, arrays["text"], draws[2:])


def test_terms_match_the_reference(reference):
    arrays, _, real, players = reference

    @jax.jit
    def terms(real, players):
        generator = generator_terms(reference, arrays["generated"], real, players)
        return generator | guidance_terms(reference, players)

    values = terms(real, players)
    names = dict(
        dm="loss_dm",
        adversarial="gen_cls_loss",
        denoising="loss_fake",
        realism="guidance_cls_loss",
    )
    assert values.keys() == names.keys()
    for name, expected in names.items():
        np.testing.assert_allclose(values[name], arrays[expected], rtol=1e-4, err_msg=name)


@pytest.mark.slow  # minutes of attention over 64×64 positions
def test_gradients_of_the_generator_match_the_reference(reference):
    arrays, _, real, players = reference

    @jax.jit
    def gradients(x0, real, players):
        values, pull = jax.vjp(lambda x0: generator_terms(reference, x0, real, players), x0)
        zero = dict.fromkeys(values, 0.0)
        return {name: pull(zero | {name: 1.0})[0] for name in values}

    found = gradients(arrays["generated"], real, players)
    assert relative_l2(found["dm"], arrays["grad_dm"]) < 1e-3
    assert relative_l2(found["adversarial"], arrays["grad_gen_cls"]) < 1e-3


@pytest.mark.slow
def test_gradient_of_the_guidance_matches_the_reference(reference):
    arrays, _, _, players = reference

    @jax.jit
    @jax.grad
    def gradient(players):
        terms = guidance_terms(reference, players)
        return terms["denoising"] + 1e-2 * terms["realism"]

    norm = optax.tree.norm(gradient(players))
    np.testing.assert_allclose(norm, arrays["guidance_grad_norm"], rtol=1e-3)


def test_scores_that_agree_move_nothing():
    x0, other = np.random.default_rng(0).standard_normal((2, 2, 4, 4, 3), np.float32)
    assert not np.any(jax.grad(dmd.matching)(x0, other, other))


def test_a_latent_goes_where_the_real_score_points_and_the_fake_does_not():
    x0 = np.zeros((1, 4, 4, 3), np.float32)
    gradient = jax.grad(dmd.matching)(x0, x0 + 2.0, x0 + 0.5)
    # Real moves each number by 2, which is the unit; fake by 0.5: 0.75 of that remain.
    np.testing.assert_allclose(gradient, -0.75 / x0.size, rtol=1e-6)


def test_a_real_score_that_moves_nothing_gives_no_gradient():
    x0 = np.ones((1, 4, 4, 3), np.float32)
    assert not np.any(dmd.matching_gradient(x0, x0, x0))
    assert not np.any(dmd.matching_gradient(x0, x0, x0 + 1))


def test_the_recipe_has_the_ranges_of_the_reference():
    recipe = recipe_file("stage2")()
    ranges = np.array([recipe.matching_steps] + 4 * [recipe.steps_of_noise])
    exclusive = golden("micro/dmd2")["timestep_ranges"]
    np.testing.assert_array_equal(ranges + [0, 1], exclusive)


def test_timesteps_are_within_their_range_at_both_ends():
    t = dmd.draw(jax.random.key(0), (2000, 1, 1, 1), 20, 25).t
    assert set(np.asarray(t)) == {20, 21, 22, 23, 24, 25}
