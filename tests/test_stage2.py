"""Stage 2: who moves at which update, on models of a few channels."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL, NORMS
from recipes import recipe_file

from onedc_jax.checkpoint import load_model, save_model
from onedc_jax.coding.loading import load
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.clip import TextEncoder
from onedc_jax.models.init import random_params
from onedc_jax.models.unet import UNet
from onedc_jax.training import stage2
from onedc_jax.training.scores import Scores
from onedc_jax.trees import named

UNET = NORMS | dict(widths=(8, 16), layers=0, attention=(False, False), heads=2)
TEXT = dict(vocabulary=16, length=7, width=8, layers=1, heads=2, hidden=8)


def unet_params(**fields):
    x, context = jnp.zeros((1, 8, 8, 4)), jnp.zeros((1, 1, 8))
    shapes = jax.eval_shape(
        UNet(**UNET | fields).init, jax.random.key(0), x, jnp.array([7]), context
    )
    return random_params(shapes["params"], seed=1)


def text_params():
    ids = jnp.zeros((1, 7), jnp.int32)
    shapes = jax.eval_shape(TextEncoder(**TEXT).init, jax.random.key(0), ids)
    return random_params(shapes["params"], seed=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A diffusion model without captions."""
    path = tmp_path_factory.mktemp("teacher") / "model"
    save_model(path, {"unet": UNET}, {"unet": unet_params()})
    return path


def recipe(model, teacher, **changes):
    config = recipe_file("stage2")("tiny")
    config.init.model, config.init.teacher = str(model), str(teacher)
    config.realism = dict(width=8, norm_groups=1)
    config.batch_size, config.data.crop, config.warmup = 2, 128, 0
    config.update_from_flattened_dict(changes)
    return config


def moved(before, after) -> list[bool]:
    """Of each leaf, whether it is another."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [not np.array_equal(a, b) for a, b in pairs]


@pytest.fixture(scope="module")
def run(tiny_model, teacher):
    """Each update run once from the start, the generator first."""
    stage = stage2.make(recipe(tiny_model, teacher))
    first, frozen = stage.init()
    rng = np.random.default_rng(0)
    batch = dict(image=rng.integers(0, 256, (2, 128, 128, 3), np.uint8))
    updates = {name: jax.jit(update) for name, update in stage.updates.items()}
    keys = jax.random.split(jax.random.key(0), 2)
    second, metrics = updates["generator"](first, frozen, batch, keys[0])
    third, more = updates["guidance"](second, frozen, batch, keys[1])
    return SimpleNamespace(
        stage=stage, frozen=frozen, states=[first, second, third], metrics=[metrics, more]
    )


def test_each_update_moves_its_own_player_and_nothing_else(run):
    assert list(run.stage.updates) == ["generator", "guidance"]
    for name, before, after in zip(run.stage.updates, run.states, run.states[1:], strict=False):
        other = ({*run.stage.updates} - {name}).pop()
        assert any(moved(before.params[name], after.params[name]))
        assert any(moved(before.opt_state[name], after.opt_state[name]))
        assert not any(moved(before.params[other], after.params[other]))
        assert not any(moved(before.opt_state[other], after.opt_state[other]))
    first, second, third = run.states
    assert any(moved(first.ema, second.ema))
    assert not any(moved(second.ema, third.ema))


def test_a_step_ends_with_the_guidance_whoever_was_before(run):
    assert [int(state.step) for state in run.states] == [0, 0, 1]
    every = 5
    due = [[name for name in run.stage.updates if run.stage.due(s, name)] for s in range(every + 1)]
    both = ["generator", "guidance"]
    assert due == [both] + (every - 1) * [["guidance"]] + [both]


def test_metrics_are_finite_and_have_their_own_names(run):
    generator, guidance = run.metrics
    assert {"dm", "adversarial", "l1", "lpips", "generator_loss"} <= generator.keys()
    assert {"denoising", "realism", "guidance_loss"} <= guidance.keys()
    assert generator.keys() & guidance.keys() == {"finite"}
    for name, value in (generator | guidance).items():
        assert np.all(np.isfinite(value)), name


def test_where_the_fake_score_is_the_real_one_nothing_is_matched(run):
    # So it is in the beginning, where there is no guidance by captions.
    assert run.metrics[0]["dm"] == 0.0


def test_what_is_frozen_has_no_optimizer_memory(run):
    for player in run.stage.updates:
        params, memory = run.states[0].params[player], run.states[0].opt_state[player]
        sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
        counters = 2  # of AdamW and of its schedule
        assert sizes(memory) == 2 * sizes(params) + counters


def test_a_run_is_a_codec_that_reads_the_same_streams(run, tiny_model, tmp_path):
    params = run.stage.export(run.states[-1], run.frozen)
    save_model(tmp_path / "model", run.stage.model, params)
    config, before = load_model(tiny_model)
    assert run.stage.model == config
    assert not any(moved(before["codec"], params["codec"]))
    assert not any(moved(before["vae"], params["vae"]))
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = load(tiny_model).encode(image)
    assert load(tmp_path / "model").decode(data).shape == image.shape


def test_integers_stay_those_of_the_codec(tiny_model, teacher, tmp_path):
    config, params = load_model(tiny_model)
    integers = {"prior": {"table": np.arange(3, dtype=np.int32)}}
    save_model(tmp_path / "exact", config, params | {"entropy": integers})
    stage = stage2.make(recipe(tmp_path / "exact", teacher))
    exported = stage.export(*stage.init())
    assert exported.keys() == params.keys() | {"entropy"}
    np.testing.assert_array_equal(exported["entropy"]["prior"]["table"], np.arange(3))


def test_lora_trains_and_its_base_does_not(tmp_path, teacher):
    generator = MICRO_MODEL["generator"]
    adapted = generator | dict(unet=generator["unet"] | dict(rank=2))
    config = recipe("", teacher)
    with config.unlocked():
        config.model = MICRO_MODEL | dict(generator=adapted)
    config.trainable = r"generator/(unet/conv_in|vae_reduction)/|generator/.*lora_"
    state, frozen = stage2.make(config).init()
    trained = named(state.params["generator"])
    assert any(path.endswith("lora_a") for path in trained)
    rest = [path for path in trained if "lora_" not in path]
    assert all(path.startswith(("unet/conv_in/", "vae_reduction/")) for path in rest)
    assert "generator/unet/conv_out/kernel" in named(frozen["model"])


def test_captions_are_heard_and_none_is_the_empty_one(tmp_path):
    folder = tmp_path / "model"
    save_model(folder, {"unet": UNET, "text": TEXT}, {"unet": unet_params(), "text": text_params()})
    scores = Scores({}, str(folder), "", seed=0, dtype="float32", remat="")
    _, frozen = scores.init("bfloat16")
    assert {x.dtype for x in jax.tree.leaves(frozen["real"])} == {jnp.dtype("bfloat16")}
    image = np.zeros((2, 128, 128, 3), np.uint8)
    captions = np.array([[14, 15, 15, 15, 15, 15, 15], [14, 3, 15, 15, 15, 15, 15]])
    assert frozen.keys() == {"real", "text"}  # nothing that was computed, in digits of one machine
    context, empty = scores.context(frozen, dict(image=image, caption=captions))
    assert context.shape == (2, 7, 8)
    np.testing.assert_allclose(context[0], empty[0], rtol=0.05, atol=0.05)  # but for bfloat16
    assert not np.allclose(context[1], empty[0], rtol=0.05, atol=0.05)
    context, unguided = scores.context(frozen, dict(image=image))
    np.testing.assert_array_equal(context[1], empty[0])
    assert unguided is None


def test_folders_that_do_not_fit_are_refused(tiny_model, teacher, tmp_path):
    with pytest.raises(OneDCError, match="the classifier of stage 2 needs 128"):
        stage2.make(recipe(tiny_model, teacher, **{"data.crop": 64}))
    with pytest.raises(ModelError, match="not a whole codec"):
        stage2.make(recipe(teacher, teacher))
    with pytest.raises(ModelError, match="no diffusion model"):
        stage2.make(recipe(tiny_model, tiny_model))
    folder = tmp_path / "wide"
    save_model(folder, {"unet": UNET | {"out_channels": 5}}, {"unet": unet_params()})
    with pytest.raises(ModelError, match="latents of 5 channels, those of the codec's VAE have 4"):
        stage2.make(recipe(tiny_model, folder))
    folder = tmp_path / "captions"
    save_model(folder, {"unet": UNET, "text": TEXT}, {"unet": unet_params()})
    with pytest.raises(ModelError, match=r"learned with captions.*init\.text"):
        stage2.make(recipe(tiny_model, folder)).init()


def test_a_run_needs_both_models_and_says_where_it_goes_unguided(tiny_model, teacher, tmp_path):
    with pytest.raises(OneDCError, match=r"config\.init\.teacher: would be random"):
        stage2.make(recipe(tiny_model, "", **{"data.crop": 512})).check()
    assert stage2.make(recipe(tiny_model, teacher)).check() == []
    save_model(tmp_path / "heard", {"unet": UNET, "text": TEXT}, {"unet": unet_params()})
    assert "no captions" in stage2.make(recipe(tiny_model, tmp_path / "heard")).check()[0]
    unheard = recipe(tiny_model, teacher, **{"data.captions": "some/folder"})
    assert "knows no captions" in stage2.make(unheard).check()[0]


def test_adapting_a_model_without_lora_is_refused(tiny_model, teacher):
    trainable = recipe_file("stage2")("full").trainable
    with pytest.raises(OneDCError, match="has no LoRA"):
        stage2.make(recipe(tiny_model, teacher, trainable=trainable)).check()
