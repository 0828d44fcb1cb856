"""Training: losses by their limits, and whole runs on real photographs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from pictures import photo
from PIL import Image
from recipes import recipe, recipe_file

import onedc_jax
from onedc_jax.checkpoint import load_model, resolve
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.vae import VAE
from onedc_jax.training import losses, stage1
from onedc_jax.training.loop import train
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.training.sources import widened
from onedc_jax.training.state import gradient_update, init_state, merge, partition
from onedc_jax.trees import named

ROOT = Path(__file__).parent.parent

# What trains in stage 1's run: at both ends, so that gradients pass through all between. An
# optimizer of all parameters compiles for minutes.
TRAINED = r"codec/(analysis/pix_emb|prior)/|vae/(decoder|post_quant_conv)/"


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "vae"
    train(recipe("vae", schedule="constant"), workdir)
    return workdir


@pytest.fixture(scope="module")
def stage1_run(vae_run, tiny_model):
    workdir = vae_run.with_name("stage1")
    (folder := vae_run.with_name("coded")).mkdir()
    Image.fromarray(photo(64, 64)).save(folder / "photo.png")
    coded = {"coded.images": str(folder), "coded.metrics": ("psnr",), "best": "-coded_psnr"}
    train(after(vae_run, tiny_model, **coded), workdir)
    return workdir


def after(vae_run: Path, model: Path, **changes):
    """Stage 1 with that autoencoder and what else `model` has, at a rate that stays."""
    fixed = {"init.vae": str(vae_run), "trainable": TRAINED, "schedule": "constant"}
    fixed |= {"init.codec": str(model), "init.generator": str(model)}
    return recipe("stage1", **fixed | changes)


def leaves(path: Path) -> dict[str, np.ndarray]:
    _, params = load_model(resolve(path))
    return named(params)


def test_a_run_is_a_codec(stage1_run):
    codec = onedc_jax.load(stage1_run)
    image = photo(64, 64)
    assert codec.decode(codec.encode(image)).shape == image.shape


def test_what_is_frozen_stays_and_the_rest_moves(vae_run, tiny_model, stage1_run):
    begun, trained = leaves(tiny_model) | leaves(vae_run), leaves(stage1_run)
    assert begun.keys() == trained.keys()
    for path, value in begun.items():
        assert np.array_equal(value, trained[path]) != bool(re.match(TRAINED, path)), path


def test_a_run_that_was_stopped_continues_as_if_it_had_not_been(vae_run):
    workdir = vae_run.with_name("resumed")
    for steps in (2, 4):
        train(recipe("vae", schedule="constant", steps=steps), workdir)
    expected, got = leaves(vae_run), leaves(workdir)
    for path, value in expected.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_a_run_leaves_metrics_and_pictures(stage1_run):
    lines = [json.loads(line) for line in (stage1_run / "metrics.jsonl").read_text().splitlines()]
    assert {"bpp", "lpips", "l1", "psnr", "loss"} <= lines[-2].keys()
    assert (stage1_run / "panels" / "0000004.png").is_file()


def test_what_would_stay_random_is_refused_and_what_is_left_out_said():
    stage = lambda **changes: stage1.make(recipe("stage1", **dict(trainable="codec/") | changes))
    with pytest.raises(OneDCError, match=r"not all of vae trains.*config\.init\.vae"):
        stage().check()
    with pytest.raises(OneDCError, match=r"not all of generator trains.*init\.unet"):
        stage(**{"init.vae": "some/folder"}).check()
    begun = {"init.vae": "some/folder", "init.unet": "another"}
    assert "without semantic distillation" in stage(**begun).check()[0]
    assert not stage(**begun, **{"distillation.weight": 0.0}).check()
    lora = recipe_file("stage1")("full").trainable
    with pytest.raises(OneDCError, match=r"the model has no LoRA; .*rank=64 adds it"):
        stage(**begun, trainable=lora).check()


def test_the_latent_is_a_sample_in_training_where_that_is_asked_for():
    """A Gaussian is drawn then, and nowhere else in this stage; validation goes by the mean."""
    operations, _, measured = traced(sampled=True)
    assert "erf_inv" in str(operations) and "erf_inv" not in str(measured)


def test_lpips_is_computed_only_where_it_counts():
    metrics = traced(perceptual=0.0)[1]
    assert "l1" in metrics and "lpips" not in metrics


def traced(**changes) -> tuple:
    """The operations and metrics of an update of stage 1, and the operations of its `measure`.

    Neither is run.
    """
    stage = stage1.make(recipe("stage1", trainable="vae/decoder/", **changes))
    state, frozen = jax.eval_shape(stage.init)
    batch = dict(image=jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8))
    key = jax.eval_shape(lambda: jax.random.key(0))
    update = jax.make_jaxpr(stage.updates["model"], return_shape=True)
    operations, (_, metrics) = update(state, frozen, batch, key)
    return operations, metrics, jax.make_jaxpr(stage.measure)(state, frozen, batch, key)


def test_checkpoints_are_measured_through_bytes(stage1_run):
    lines = [json.loads(line) for line in (stage1_run / "metrics.jsonl").read_text().splitlines()]
    coded = [line["validation_coded_bpp"] for line in lines if "validation_coded_bpp" in line]
    assert len(coded) == 2  # one for each checkpoint
    data = onedc_jax.load(stage1_run).encode(photo(64, 64))
    assert coded[-1] == pytest.approx(8 * len(data) / 64**2)


def test_squares_are_cut_at_one_place_of_several_images():
    images = jnp.arange(6 * 8 * 8, dtype=jnp.float32).reshape(6, 8, 8, 1)
    for key in map(jax.random.key, range(4)):
        a, b = losses.sampled(key, 3, 4, images, -images)
        assert a.shape == (3, 4, 4, 1)
        np.testing.assert_array_equal(a, -b)
        first = int(a[0, 0, 0, 0])
        assert first // 64 < 2  # every other image, of the same place
        np.testing.assert_array_equal(a[:, 0, 0, 0] - first, [0, 128, 256])
        np.testing.assert_array_equal(jnp.diff(a[0, :, 0, 0]), 8)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"best": "coded_bpp"}, "name images to code"),
        ({"init.vae": "no/such/model"}, "no such model folder"),
        ({"batch_size": 3, "data.crops_per_image": 2}, "does not divide"),
        ({"trainable": "nothing/"}, "matches no parameter"),
        ({"remat": "save_only_these_names"}, "must be one of everything_saveable, nothing"),
        ({"schedule": "sawtooth"}, "expected constant or cosine"),
        ({"schedule": "cosine", "warmup": 4}, "steps=4: .* more than its warm-up, warmup=4"),
        ({"rate.proxy": "hope"}, "expected noise or rounding"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(tmp_path, changes, words):
    with pytest.raises(OneDCError, match=words):
        train(recipe("stage1", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_belongs_to_one_recipe(stage1_run, vae_run, tiny_model):
    with pytest.raises(OneDCError, match="another seed"):
        train(after(vae_run, tiny_model, seed=1), stage1_run)


def test_weights_of_other_widths_are_refused(tmp_path, vae_run, tiny_model):
    config = after(vae_run, tiny_model)
    config.model.vae.widths = (8, 8, 16)
    with pytest.raises(ModelError, match="vae"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "option, words",
    [
        ("--config.data.root=no/such", "train: config.data.root: no/such: no such folder"),
        ("--config.learning_rate=1", "train: the recipe has no key"),
        ("--config=nope.py:tiny", "train: nope.py: no such recipe"),
        ("--config=README.md", "train: README.md: no recipe, line "),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, option, words):
    command = [sys.executable, "launch/train.py", "--config=configs/stage1.py:tiny"]
    options = [f"--workdir={tmp_path / 'run'}", option]
    done = subprocess.run(command + options, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(words)
    assert "Traceback" not in done.stderr


def test_partition_and_merge_are_inverse():
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    trainable, frozen = partition(tree, "a/x|b")
    assert trainable == {"a": {"x": 1, "y": None}, "b": 3}
    assert frozen == {"a": {"x": None, "y": 2}, "b": None}
    assert merge(trainable, frozen) == tree


def test_muon_turns_kernels_by_as_much_in_all_directions_and_transforms_by_a_tenth():
    config = ml_collections.ConfigDict(
        dict(muon=0.1, lr=0.02, schedule="constant", warmup=0, clip=1e9, b2=0.99, weight_decay=0.0)
    )
    optimizer = make_optimizer(config)
    shapes = dict(kernel=(3, 3, 8, 16), depthwise=dict(kernel=(3, 3, 1, 8)), bias=(16,), other=None)
    shapes |= dict(block_inverse=dict(kernel=(2, 2, 24, 16)))
    rng = np.random.default_rng(0)
    # What all inputs have in common outweighs all else in these gradients, as brightness does.
    gradients = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape) + 10, jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    changes, _ = optimizer.update(gradients, optimizer.init(gradients), gradients)
    for part, rate in ((changes, 0.1), (changes["block_inverse"], 0.01)):
        singular = np.linalg.svd(part["kernel"].reshape(-1, 16), compute_uv=False)
        assert singular.min() > 0.5 * rate and singular.max() < 1.3 * rate
    # A depthwise kernel is no matrix: each weight moves by itself, as a bias does.
    moved = changes["depthwise"]["kernel"]
    np.testing.assert_allclose(moved, np.broadcast_to(changes["bias"][:8], moved.shape), rtol=1e-3)
    assert changes["other"] is None


@pytest.mark.parametrize("updates, shares", [(0, (1.0, 0.93)), (10, (1.0, 0.1))])
def test_a_cosine_ends_with_the_updates_that_there_are(updates, shares):
    """Of a player who moves at every tenth step there are ten in a hundred."""
    config = recipe("stage2", steps=100, warmup=0, final_lr=0.1, lr=1e-3, clip=1e9)
    optimizer = make_optimizer(config, updates)
    params = dict(w=jnp.zeros(3))
    state, sizes = optimizer.init(params), []
    for _ in range(11):
        changes, state = optimizer.update(dict(w=jnp.ones(3)), state, params)
        sizes.append(float(-changes["w"][0]) / config.lr)
    np.testing.assert_allclose((sizes[0], sizes[-1]), shares, atol=0.06)


def test_what_trains_is_float32_whatever_it_was_read_as():
    """A step of a thousandth of a weight, and a hundredth of that into its average, both arrive."""
    optimizer = optax.sgd(1e-3)
    state = init_state({"w": jnp.ones(3, jnp.bfloat16)}, optimizer, ema=0.99)
    loss = lambda params, *_: (params["w"].sum(), {})
    update = gradient_update(loss, optimizer, ema=0.99)
    state, _ = update(state.replace(step=jnp.int32(1000)), {}, {}, jax.random.key(0))
    np.testing.assert_allclose(state.params["w"], 0.999, rtol=1e-6)
    np.testing.assert_allclose(state.ema["w"], 1 - 1e-5, rtol=1e-6)


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    loss = lambda params, frozen, batch, *_: (jnp.square(batch["x"] @ params["w"]).mean(), {})
    batch = {"x": jax.random.normal(jax.random.key(0), (8, 3))}
    optimizer, params = optax.sgd(1.0), {"w": jnp.arange(1.0, 4.0)}
    whole, parts = (
        gradient_update(loss, optimizer, 0.0, count)(
            init_state(params, optimizer, 0.0), {}, batch, jax.random.key(1)
        )[0]
        for count in (1, 4)
    )
    assert jnp.abs(whole.params["w"] - params["w"]).max() > 1
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)


def test_a_wider_network_goes_on_from_a_narrower_one():
    plain = dict(layers=0, window=None, norm_groups=0)
    narrow, wide = (VAE(widths=widths, **plain) for widths in ((4, 8), (6, 16)))
    *keys, key = jax.random.split(jax.random.key(0), 3)
    latent = jax.random.normal(key, (1, 4, 4, 4))
    decode = dict(method=VAE.decode)
    first, second = (
        model.init(k, latent, **decode)["params"]
        for model, k in zip((narrow, wide), keys, strict=True)
    )
    grown = jax.tree.map(widened, first, second)
    shown = lambda model, params: model.apply({"params": params}, latent, **decode)
    np.testing.assert_allclose(shown(wide, grown), shown(narrow, first), atol=1e-5)
    inner = grown["decoder"]["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert jnp.abs(inner[..., 8:]).min() > 0


def test_ramp_is_quadratic_from_start_to_value():
    values = [
        float(losses.ramp(jnp.array(step), 2.0, 100, start=0.0)) for step in (0, 50, 100, 999)
    ]
    assert values == [0.0, 0.5, 2.0, 2.0]


def test_whiteness_is_zero_for_independent_channels_and_large_for_a_collapse():
    z = jax.random.normal(jax.random.key(0), (4096, 7))
    assert losses.whiteness(z) < 0.01
    assert losses.whiteness(jnp.ones((64, 7))) > 1.0
    assert losses.whiteness(z[:, :1] * jnp.ones((1, 7))) > 0.8  # all channels the same
    far = jax.grad(losses.whiteness)(z + 20.0)
    assert jnp.all(far.mean(0) > 0)  # no tail without a gradient


def test_chroma_is_blind_to_brightness_and_to_nothing_else():
    image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3), minval=-1.0)
    moved = lambda *by: image + jnp.array(by)[None, None, None]
    brighter, redder = moved(0.2, 0.2, 0.2), moved(0.2, 0.0, 0.0)
    assert losses.chroma(image, brighter) < 1e-6
    np.testing.assert_allclose(
        losses.chroma(image, redder), 0.1 * (0.701 + 2 * 0.299) / 3, rtol=1e-4
    )


def test_motif_is_what_all_cells_of_an_image_share():
    image, noise = jax.random.normal(jax.random.key(0), (2, 2, 128, 128, 3))
    pattern = jnp.tile(noise[:, :16, :16], (1, 8, 8, 1))
    found = lambda change: losses.motif(image + change, image, 16)
    np.testing.assert_allclose(found(pattern), 1.0, atol=0.01)
    np.testing.assert_allclose(found(noise), 1 / 64, rtol=0.1)
    assert found(jnp.ones_like(image)) < 1e-4  # another brightness is no pattern


def test_shifted_cuts_all_images_at_one_place():
    a = jnp.arange(2 * 24 * 24 * 3.0).reshape(2, 24, 24, 3)
    x, y = losses.shifted(jax.random.key(0), a, 2 * a, reach=8)
    assert x.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(2 * x, y)
    np.testing.assert_array_equal(losses.shifted(jax.random.key(0), a, reach=0)[0], a)
