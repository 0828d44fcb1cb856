"""The two teachers from scratch, tokenizer and latent diffusion model: do they learn?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL
from pictures import photo
from recipes import recipe_file

from onedc_jax.checkpoint import load_model, save_model
from onedc_jax.errors import OneDCError
from onedc_jax.models.clip import empty_caption
from onedc_jax.models.diffusion import alphas_cumprod
from onedc_jax.models.init import shapes_of
from onedc_jax.models.vqgan import VQGAN
from onedc_jax.training import autoencoder, losses, teacher, tokenizer
from onedc_jax.trees import named

STEPS = 25
CAPTIONS = {"data.captions": "a folder that only the loop reads"}


def learn(stage, batch: dict, seeds=range(STEPS)) -> tuple:
    """The state before and after steps on one batch, frozen arrays, and all metrics."""
    before, frozen = stage.init()
    update = jax.jit(stage.updates["model"])
    state, history = before, []
    for seed in seeds:
        state, metrics = update(state, frozen, batch, jax.random.key(seed))
        history.append(jax.device_get(metrics))
    return before, state, frozen, history


@pytest.fixture(scope="module")
def codes():
    config = recipe_file("tokenizer")("tiny")
    with config.unlocked():
        config.model.tokenizer = dict(
            widths=(8, 8, 8, 16), layers=1, codes=32, features=8, norm_groups=4
        )
    config.lr, config.schedule, config.warmup = 3e-3, "constant", 1
    image = photo(128, 64).reshape(2, 64, 64, 3)
    stage = tokenizer.make(config)
    return stage, *learn(stage, {"image": image})


def test_the_tokenizer_learns_and_keeps_its_codes(codes):
    *_, history = codes
    mean = lambda name, part: np.mean([metrics[name] for metrics in history[part]])
    first, last = slice(0, 5), slice(-5, None)
    for name in ("loss", "l1", "disuse"):
        assert mean(name, last) < 0.9 * mean(name, first), name
    assert history[-1]["codes_used"] > 8 and history[-1]["perplexity"] > 4


def test_all_of_the_tokenizer_trains(codes):
    _, before, after, *_ = codes
    leaves = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    moved = [not np.array_equal(a, b) for a, b in leaves]
    assert all(moved), [p for p, m in zip(named(after.params), moved, strict=True) if not m]


def test_the_tokenizer_s_folder_is_a_tokenizer(codes, tmp_path):
    stage, _, state, frozen, _ = codes
    save_model(tmp_path / "model", stage.model, stage.export(state, frozen))
    config, params = load_model(tmp_path / "model")
    image = jnp.zeros((1, 16, 16, 3))
    model = VQGAN(**config["tokenizer"])
    shape = shapes_of(model, image)
    assert jax.tree.map(np.shape, params["tokenizer"]) == jax.tree.map(np.shape, shape)


def test_disuse_is_zero_where_all_codes_are_used_and_largest_where_one_is():
    codebook = 10 * jnp.eye(8)
    assert losses.disuse(jnp.tile(codebook, (3, 1)), codebook, 0.1) < 1e-4
    one = jnp.tile(codebook[:1], (24, 1))
    assert losses.disuse(one, codebook, 0.1) == pytest.approx(np.log(8), rel=1e-4)
    nowhere = jnp.zeros((24, 8))
    assert losses.disuse(nowhere, codebook, 0.1) == pytest.approx(np.log(8), rel=1e-4)


def test_entropy_of_what_is_certain_is_zero_with_a_finite_slope():
    p = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(losses.entropy(p), [0.0, np.log(2)], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda p: losses.entropy(p).sum())(p)).all()


def small_teacher(vae: str, **changes):
    config = recipe_file("teacher")("tiny")
    with config.unlocked():
        config.model.unet = MICRO_MODEL["generator"]["unet"] | dict(out_channels=4)
        config.model.text = dict(vocabulary=16, length=6, width=8, layers=1, heads=2, hidden=16)
    config.init.vae = vae
    config.lr, config.schedule, config.warmup = 3e-3, "constant", 1
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def batch():
    caption = np.array([[14, 3, 5, 15, 15, 15], [14, 7, 15, 15, 15, 15]], np.int32)
    return {"image": photo(128, 64).reshape(2, 64, 64, 3), "caption": caption}


@pytest.fixture(scope="module")
def score(tiny_model, batch):
    config = small_teacher(str(tiny_model), **CAPTIONS, caption_drop=0.0)
    stage = teacher.make(config)
    # The same noise at each step: whether it is learned shows at once.
    return stage, *learn(stage, batch, seeds=[0] * STEPS)


def test_the_teacher_learns_to_predict_noise(score):
    *_, history = score
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_all_of_the_teacher_trains_and_the_vae_does_not(score, tiny_model):
    stage, before, after, frozen, _ = score
    leaves = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    # A key's bias is the same for all keys, and an attention does not mind it.
    moved = {p for p, (a, b) in zip(named(after.params), leaves, strict=True) if np.any(a != b)}
    assert {p for p in named(after.params) if "k_proj/bias" not in p} <= moved
    assert not [path for path in named(after) if "vae" in path]
    assert stage.export(after, frozen).keys() == {"unet", "text"}
    assert stage.model.keys() == {"unet", "text", "latent_scale"}


@pytest.mark.parametrize("captions", [True, False])
def test_panels_show_pictures_of_one_size(tiny_model, batch, captions):
    stage = teacher.make(small_teacher(str(tiny_model), **(CAPTIONS if captions else {})))
    state, frozen = stage.init()
    panel = jax.eval_shape(stage.panel, state, frozen, batch)
    assert {x.shape for x in panel.values()} == {(2, 64, 64, 3)}
    assert stage.export(state, frozen).keys() == stage.model.keys() - {"latent_scale", "context"}


def test_sampling_with_a_perfect_score_finds_the_latent():
    alphas = jnp.asarray(alphas_cumprod())
    latent, noise = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 3))

    def perfect(x, t):
        a = alphas[t].reshape(-1, 1, 1, 1)
        return (x - jnp.sqrt(a) * latent) / jnp.sqrt(1 - a)

    np.testing.assert_allclose(teacher.sample(perfect, noise, 8), latent, atol=1e-4)


def test_an_empty_caption_is_a_beginning_and_ends():
    np.testing.assert_array_equal(empty_caption(49408, 4), [49406, *[49407] * 3])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"init.vae": ""}, "init.vae: name the folder"),
        ({"init.vae": "no/such/model"}, "no such model folder"),
        ({"model.unet.out_channels": 3}, "have 4 channels"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(tiny_model, changes, words):
    with pytest.raises(OneDCError, match=words):
        teacher.make(small_teacher(str(tiny_model), **changes))


def test_what_would_stay_random_is_refused(tiny_model):
    config = small_teacher(str(tiny_model), **CAPTIONS, trainable="unet/")
    with pytest.raises(OneDCError, match=r"not all of text trains.*config\.init\.text"):
        teacher.make(config).check()
    config.init.text = "some/folder"
    assert teacher.make(config).check() == []
    config.data.captions = ""
    assert "nothing reads it" in teacher.make(config).check()[0]
    for stage, part in ((autoencoder, "vae"), (tokenizer, "tokenizer")):
        config = recipe_file(part)("tiny")
        config.trainable = f"{part}/decoder"
        with pytest.raises(OneDCError, match=f"not all of {part} trains.*let all train"):
            stage.make(config).check()
