"""The texture terms of stage 1 (training/texture.py)."""

import jax
import numpy as np
import optax
import pytest
from recipes import recipe
from reference import GOLDEN

from onedc_jax.models.heads import Critic
from onedc_jax.training import stage1
from onedc_jax.training.texture import Texture, critic_terms

pytestmark = pytest.mark.usefixtures("optimised")

WEIGHTS = str(GOLDEN / "dists" / "weights.pt")


@pytest.fixture(scope="module")
def critic():
    """A critic of two maps: its module, its parameters, and the features of two pairs."""
    module = Critic(width=8)
    key = jax.random.key(0)
    shapes = [(2, 16, 16, 3), (2, 8, 8, 6), (2, 4, 4, 12)]
    fake, real = (
        [jax.random.uniform(jax.random.fold_in(key, 10 * n + i), s) for i, s in enumerate(shapes)]
        for n in (1, 2)
    )
    return module, module.init(key, real[0], real[1:])["params"], fake, real


def test_each_player_has_gradients_for_its_own_side_alone(critic):
    module, params, fake, real = critic
    norm = {}
    for term in ("critic", "adversarial"):
        of = lambda p, f, term=term: critic_terms(module, p, f, real)[term]
        norm[term] = [float(optax.tree.norm(g)) for g in jax.grad(of, (0, 1))(params, fake)]
    assert norm["critic"][0] > 0 and norm["critic"][1] == 0
    assert norm["adversarial"][0] == 0 and norm["adversarial"][1] > 0


def test_originals_leave_nothing_to_tell_apart(critic):
    module, params, _, real = critic
    terms = critic_terms(module, params, real, real)
    assert float(terms["adversarial"]) == 0 and float(terms["critic"]) == 1


def test_a_critic_does_not_mind_how_strong_features_are(critic):
    module, params, fake, _ = critic
    judge = lambda features: module.apply({"params": params}, fake[0], features)
    for a, b in zip(judge(fake[1:]), judge([100 * x for x in fake[1:]]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_critic_learns_what_a_blur_lacks():
    texture = Texture(
        crop=32, images=4, file=WEIGHTS, weight=1.0, critic=1.0, width=16, dtype="float32"
    )
    frozen, params = texture.load(), texture.init_critic(seed=0)
    image = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3), minval=-1.0)
    blurred = jax.image.resize(
        jax.image.resize(image, (4, 8, 8, 3), "linear"), image.shape, "linear"
    )
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        def loss(params):
            return texture(params, frozen, jax.random.key(2), blurred, image)

        gradient, terms = jax.grad(loss, has_aux=True)(params)
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state, terms

    for _ in range(20):
        params, state, terms = step(params, state)
    assert terms["told_apart"] > 0.7


def test_a_critic_trains_along_and_is_no_part_of_the_model():
    texture = {"texture.file": WEIGHTS, "texture.critic": 0.1}
    stage = stage1.make(recipe("stage1", perceptual=0.0, **texture))
    state, frozen = jax.device_get(stage.init())
    assert "critic" in state.params
    assert set(stage.export(state, frozen)) == {"vae", "codec", "generator"}
