"""The semantic distillation: its terms by their limits, and stage 1 learning from a teacher."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MICRO_MODEL
from pictures import photo
from recipes import recipe, recipe_file

from onedc_jax.checkpoint import save_model
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.codec import Codec
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.pixels import from_uint8
from onedc_jax.models.quantize import fsq
from onedc_jax.models.unet import UNet
from onedc_jax.models.vqgan import VQGAN, Tokens
from onedc_jax.training import distillation, stage1
from onedc_jax.training.sources import adapted_unet, check_scale, load_part, replaced
from onedc_jax.training.state import gradient_update, init_state
from onedc_jax.trees import named

TEACHER = dict(widths=(8,) * 5, layers=1, codes=16, features=4, norm_groups=4)
HEAD = dict(width=16, pairs=1, heads=2, window=2)


def save_tokenizer(path, **changes):
    """A model folder with a random tokenizer."""
    fields = TEACHER | changes
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = shapes_of(VQGAN(**fields), image)
    save_model(path, {"tokenizer": fields}, {"tokenizer": random_params(shapes, seed=0)})
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tokenizer(tmp_path_factory.mktemp("teacher") / "tokenizer")


def taught(tokenizer: str, **changes):
    """Stage 1 with a student that counts as much as the pictures do."""
    config = recipe("stage1", **{"distillation.tokenizer": tokenizer})
    config.distillation.head = HEAD
    config.distillation.weight, config.lr, config.schedule = 1.0, 3e-3, "constant"
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def lesson(tokenizer):
    """A codec's tokens and a student before and after some steps on one batch, and the metrics."""
    config = taught(tokenizer)
    semantics = distillation.load(config)
    codec = Codec(**MICRO_MODEL["codec"])
    image = photo(128, 64).reshape(2, 64, 64, 3)
    # Some features in place of the analysis': all of stage 1 takes minutes to compile.
    y = np.random.default_rng(0).standard_normal((2, 4, 4, 16), np.float32)
    tokens_of = lambda m: m.adaptor(m.hyper_synthesis(fsq(m.hyper_analysis(y, y[:, :1, :1])))[1])
    init = partial(codec.init, method=tokens_of)
    shapes = jax.eval_shape(init, jax.random.key(0))["params"]
    params = {"codec": random_params(shapes, 0), "head": semantics.init_head(16, 0)}

    def loss(params, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        tokens = codec.apply({"params": params["codec"]}, method=tokens_of)
        terms = semantics(params["head"], frozen["tokenizer"], image, tokens)
        return terms["ce"], terms

    optimizer = optax.adam(3e-3)  # without weight decay: what has no gradient stays
    update = jax.jit(gradient_update(loss, optimizer))
    before = state = init_state(params, optimizer)
    history = []
    for step in range(20):
        frozen = {"tokenizer": semantics.params}
        state, metrics = update(state, frozen, {"image": image}, jax.random.key(step))
        history.append(jax.device_get(metrics))
    return before.params, state.params, history


def test_the_student_learns_from_the_teacher(lesson):
    *_, history = lesson
    assert history[-1]["ce"] < 0.8 * history[0]["ce"]


def test_the_teacher_reaches_what_the_tokens_say(lesson):
    """The cross-entropy has a gradient in the hyperprior, on both sides, and in the adaptor."""
    before, after, _ = lesson
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    for part in ("hyper_analysis", "hyper_synthesis", "adaptor"):
        assert any(jax.tree.leaves(moved["codec"][part])), part
    assert np.mean(jax.tree.leaves(moved["head"])) > 0.9


def test_stage_1_has_a_student_and_its_model_folder_has_none(tokenizer):
    stage = stage1.make(taught(tokenizer))
    state, frozen = stage.init()
    assert "head" in state.params and "tokenizer" in frozen
    assert not [path for path in named(state) if "tokenizer" in path]
    assert stage.export(state, frozen).keys() == {"vae", "codec", "generator"}
    assert stage.model.keys() <= {"vae", "codec", "generator", "latent_scale"}
    batch = {"image": jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)}
    after, metrics = jax.eval_shape(stage.updates["model"], state, frozen, batch, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"ce", "semantic_mse", "accuracy"} <= metrics.keys()


def test_a_perfect_student_has_nothing_to_learn():
    rng = np.random.default_rng(0)
    codebook = rng.standard_normal((16, 4), np.float32)
    indices = rng.integers(16, size=(2, 3, 5))
    target = Tokens(codebook[indices] + 1, codebook[indices], indices)
    perfect = distillation.semantic_terms(100 * jax.nn.one_hot(indices, 16), target, codebook)
    assert perfect["ce"] < 1e-6 and perfect["semantic_mse"] < 1e-10 and perfect["accuracy"] == 1
    ignorant = distillation.semantic_terms(jnp.zeros((2, 3, 5, 16)), target, codebook)
    assert ignorant["ce"] == pytest.approx(np.log(16))
    mean = np.square(codebook.mean(0) - codebook[indices]).mean()
    assert ignorant["semantic_mse"] == pytest.approx(mean, rel=1e-5)


def test_the_teacher_sees_half_the_image_bilinearly():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    half = jax.image.resize(image, (2, 4, 6, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(distillation.teacher_input(image), half / 2 + 0.5, atol=1e-6)


def test_the_codebook_stays_exact_where_the_teacher_is_rounded(tokenizer):
    rounded = distillation.load(taught(tokenizer, dtype="bfloat16")).params
    assert {x.dtype for x in jax.tree.leaves(rounded["encoder"])} == {jnp.dtype("bfloat16")}
    _, exact = load_part(tokenizer, "tokenizer")
    table = rounded["quantize"]["embedding"]["embedding"]
    np.testing.assert_array_equal(table, exact["quantize"]["embedding"]["embedding"])


def test_crops_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(OneDCError, match=r"crops of 96 pixels.*multiples of 64"):
        stage1.make(taught(tokenizer, **{"data.crop": 96}))


def test_a_teacher_that_does_not_fit_is_refused(tmp_path, tiny_model):
    path = save_tokenizer(tmp_path / "coarse", widths=(8,) * 4)
    with pytest.raises(ModelError, match=r"a token for 8 pixels a side; .* needs one for 16"):
        stage1.make(taught(path))
    with pytest.raises(ModelError, match="holds no 'tokenizer', only codec"):
        stage1.make(taught(str(tiny_model)))


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_crops_of_the_recipe_fit_its_student(size, tokenizer):
    config = recipe_file("stage1")(size)
    config.distillation.tokenizer = tokenizer
    assert distillation.load(config).head.window == config.distillation.head.window


SMALL_UNET = dict(widths=(8, 8), layers=1, attention=(False, True), heads=2, norm_groups=4)


def small_unet(**fields) -> UNet:
    return UNet(**SMALL_UNET | fields)


def unet_params(channels: int, seed: int, unet: UNet):
    x, context = jnp.zeros((1, 8, 8, channels)), jnp.zeros((1, 1, 8))
    init = partial(unet.init, jax.random.key(0), t=jnp.zeros(1, int))
    return random_params(jax.eval_shape(init, x=x, context=context)["params"], seed)


def test_a_generator_begins_as_a_diffusion_model(tmp_path):
    adapted, path = small_unet(rank=2), str(tmp_path / "teacher")
    teacher, own = unet_params(4, 0, small_unet()), unet_params(8, 1, adapted)
    save_model(path, {"unet": SMALL_UNET}, {"unet": teacher})
    got = adapted_unet(own, adapted, path)
    known = named(teacher)
    leaves = zip(named(own), jax.tree.leaves(own), jax.tree.leaves(got), strict=True)
    for name, mine, found in leaves:
        stays = name.startswith("conv_in/") or "lora_" in name
        np.testing.assert_array_equal(found, mine if stays else known[name], name)
    with pytest.raises(ModelError, match=r"does not fit .* nothing where the generator has"):
        adapted_unet(unet_params(8, 1, small_unet(layers=2)), small_unet(layers=2), path)
    # What shapes do not tell.
    with pytest.raises(ModelError, match=r"'unet' has heads=2, the recipe heads=4 \(set config"):
        adapted_unet(own, small_unet(rank=2, heads=4), path)
    with pytest.raises(ModelError, match="'unet' has norm_groups=4, the recipe norm_groups=2"):
        replaced(teacher, small_unet(norm_groups=2), "unet", path)
    replaced(teacher, small_unet(norm_groups=2), "unet", path, reshaped=True)
    replaced(teacher, small_unet(widths=[8, 8]), "unet", path)
    save_model(tmp_path / "newer", {"unet": SMALL_UNET | {"new": 1}}, {"unet": teacher})
    with pytest.raises(ModelError, match=r"its 'unet': .*new"):
        replaced(teacher, small_unet(), "unet", str(tmp_path / "newer"))


def test_a_diffusion_model_of_latents_of_another_scale_is_refused(tmp_path):
    save_model(tmp_path / "teacher", {"latent_scale": 0.25}, {"unet": np.zeros(1)})
    check_scale(str(tmp_path / "teacher"), 0.25)
    with pytest.raises(ModelError, match=r"latents times 0\.25, the codec's are times 1"):
        check_scale(str(tmp_path / "teacher"), 1.0)
