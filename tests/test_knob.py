"""The quality knob: one codec at many rates, and none of it where there is one rate."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL
from pictures import photo

from onedc_jax import quantization
from onedc_jax.checkpoint import save_model
from onedc_jax.cli import main
from onedc_jax.coding import search, stream
from onedc_jax.coding.loading import load
from onedc_jax.coding.path import IntegerPath
from onedc_jax.errors import ImageError, ModelError, StreamError
from onedc_jax.images import write
from onedc_jax.models import integer
from onedc_jax.models.codec import RateKnob, Synthesis, stretched
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.layers import GroupNorm
from onedc_jax.models.onedc import build, param_shapes

POINTS, CHANNELS = 3, 2
PARAMS = {
    "gain": jnp.log(jnp.array([[1.0, 2.0], [4.0, 2.0], [8.0, 32.0]])),
    "inverse": jnp.zeros((POINTS, CHANNELS)),
    "bias": jnp.array([[0.0, 1.0], [2.0, 3.0], [4.0, -1.0]]),
}


@pytest.mark.parametrize(
    "rate, gain, bias",
    [
        (0.0, [1, 2], [0, 1]),
        (0.25, [2, 2], [1, 2]),
        (0.5, [4, 2], [2, 3]),
        (0.75, [32**0.5, 8], [3, 1]),
        (1.0, [8, 32], [4, -1]),
    ],
)
def test_between_points_it_interpolates(rate, gain, bias):
    found = RateKnob(POINTS, CHANNELS).apply({"params": PARAMS}, jnp.array([rate, 0.0]))
    assert [x.shape for x in found] == [(2, 1, 1, CHANNELS)] * 3
    np.testing.assert_allclose(found[0][0].ravel(), gain, rtol=1e-5)
    np.testing.assert_allclose(found[2][0].ravel(), bias, rtol=1e-5, atol=1e-6)


def test_a_stretched_knob_has_all_it_had_and_goes_on_as_it_did():
    told = dict.fromkeys(("rate_in", "rate_out"), jnp.array([[0.0], [1.0], [3.0]]))
    longer = stretched(dict(knob=PARAMS, synthesis=told), 1.0)
    knob = RateKnob(POINTS, CHANNELS)
    before = knob.apply({"params": PARAMS}, jnp.array([0.0, 0.5, 0.75, 1.0]))
    after = knob.apply({"params": longer["knob"]}, jnp.array([0.0, 0.5, 0.625, 0.75, 1.0]))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[0][4].ravel(), [16, 512], rtol=1e-5)
    np.testing.assert_allclose(longer["synthesis"]["rate_in"].ravel(), [0, 1, 5])
    with pytest.raises(ModelError, match="no knob"):
        stretched(dict(synthesis={}), 1.0)
    with pytest.raises(ModelError, match="by more than 0"):
        stretched(dict(knob=PARAMS, synthesis=told), float("nan"))


def test_a_model_of_one_rate_has_no_knob():
    codec = MICRO_MODEL["codec"]
    one, three = (
        param_shapes(build(MICRO_MODEL | dict(codec=codec | dict(rates=n)))) for n in (1, 3)
    )
    knob = three["codec"].pop("knob")
    biases = [three["codec"]["synthesis"].pop(name) for name in ("rate_in", "rate_out")]
    assert [len(x) for x in biases] == [3, 3]
    assert {name: x.shape for name, x in knob.items()} == dict.fromkeys(
        ("gain", "inverse", "bias"), (3, codec["channels"])
    )
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, three)


@pytest.mark.parametrize("name", ["rate_in", "rate_out"])
def test_the_synthesis_hears_of_the_rate(name):
    synthesis = Synthesis(8, 4, POINTS, partial(GroupNorm, 0), dtype="float32")
    y_hat, tokens = jnp.ones((2, 4, 4, CHANNELS)), jnp.ones((2, 1, 1, 8))
    rates = jnp.array([0.0, 0.5])
    shapes = shapes_of(synthesis, y_hat, tokens, rates)
    params = random_params(shapes, seed=0)
    run = lambda params: synthesis.apply({"params": params}, y_hat, tokens, rates)
    before = run(params)
    np.testing.assert_array_equal(before[0], before[1])
    changed = run(params | {name: np.array([[0.0], [1.0], [0.0]]) + params[name]})
    np.testing.assert_array_equal(changed[0], before[0])
    assert np.abs(changed[1] - before[1]).mean() > 1e-2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of three points, whose prior hears of the rate."""
    config = MICRO_MODEL | dict(codec=MICRO_MODEL["codec"] | dict(rates=3))
    params = random_params(param_shapes(build(config)), seed=0)
    knob = params["codec"]["knob"]
    gains = np.array([-3.0, -1.0, 1.0], np.float32)[:, None]
    bias = 0.1 * np.random.default_rng(0).normal(size=knob["bias"].shape).astype("f4")
    params["codec"]["knob"] = dict(
        gain=knob["gain"] + gains, inverse=knob["inverse"] - gains, bias=bias
    )
    path = tmp_path_factory.mktemp("knob") / "model"
    save_model(path, config, params)
    return path


def test_gains_are_those_of_the_rate(model):
    gained = load(model).networks.gained
    y = np.ones((4, 4, MICRO_MODEL["codec"]["channels"]), np.float32)
    for place, gain in ((0.0, -3.0), (0.25, -2.0), (1.0, 1.0)):
        found = gained(y, np.full(1, place, np.float32))
        np.testing.assert_allclose(found, np.exp(gain) * y, rtol=1e-5)


@pytest.fixture(scope="module")
def entropy(model):
    """Its integers."""
    codec = load(model)
    y, z_indices = codec.analyse(photo(64, 128))
    params = codec.params["codec"]
    return quantization.calibrate(codec.model.codec, params, z_indices[None], y[None])


@pytest.fixture(scope="module")
def exact(model, entropy):
    """The same with them."""
    return replace(load(model), path=IntegerPath.of(entropy))


def test_a_quality_reaches_the_decoder(exact):
    image = photo(60, 128)
    sizes = []
    for quality in (0, 40, 100):
        data = exact.encode(image, quality=quality)
        header, latents = exact.decode_latents(data)
        assert header.rate == latents.rate == round(2.55 * quality)
        held = exact.quantise(*exact.analyse(image), header.rate)
        np.testing.assert_array_equal(latents.y_hat, held[1])
        assert exact.decode(data).shape == image.shape
        sizes.append(len(data))
    assert sizes == sorted(set(sizes))
    assert exact.encode(image) == exact.encode(image, quality=75)


def test_the_rate_changes_what_the_decoder_makes_of_the_same_latents(exact):
    latents = exact.decode_latents(exact.encode(photo(64, 128), quality=60))[1]
    other = replace(latents, rate=255)
    assert (exact.reconstruct(latents) != exact.reconstruct(other)).any()


@pytest.mark.parametrize("rate", [0, 100, 255])
def test_integers_follow_the_float_network_at_any_rate(model, exact, rate):
    held = exact.analyse(photo(64, 128))
    steps, y_hat = exact.quantise(*held, rate)
    wanted, close = load(model).quantise(*held, rate)
    differ = np.mean([np.mean(a[0] != b[0]) for a, b in zip(steps, wanted, strict=True)])
    assert differ < 0.02
    assert np.median(np.abs(y_hat - close)) < 0.02


def test_each_segment_has_integers_as_fine_as_its_values_are_small(entropy):
    low, high = integer.segments(entropy)
    coarser = lambda part: (
        high["prior"]["spatial_1"][part]["input"] - low["prior"]["spatial_1"][part]["input"]
    )
    assert min(coarser("dw_in").min(), coarser("ffn_in").min()) >= 0
    assert coarser("dw_in").mean() > 1  # gains are e^2 times larger, so up to 2.9 bits
    assert low["hyper_synthesis"] is high["hyper_synthesis"]


def test_segments_share_the_knobs_places():
    of = [integer.segment_of(rate, 4) for rate in range(integer.RATES)]
    assert integer.RATES == stream.MAX_RATE + 1
    assert of == sorted(of) and [of.count(i) for i in range(4)] == [64] * 4
    assert integer.segment_of(None, 1) == 0


def test_a_knob_whose_segments_have_no_integers_is_refused(entropy, exact):
    one = integer.segments(entropy)[0]["prior"]
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), entropy["prior"])
    for wrong in (one, twice):
        with pytest.raises(ModelError, match="each of the knob's 2 segments"):
            integer.check(entropy | dict(prior=wrong), exact.params["codec"])


@pytest.mark.parametrize("layer", ["reduction", "spatial_1"])
def test_a_knob_whose_prior_lacks_a_layer_is_refused(entropy, exact, layer):
    prior = {name: x for name, x in entropy["prior"].items() if name != layer}
    with pytest.raises(ModelError, match=f"{layer}.*: only one of"):
        integer.check(entropy | dict(prior=prior), exact.params["codec"])


def test_offsets_of_the_wrong_shape_or_size_are_refused(entropy, exact):
    codec = exact.params["codec"]
    integer.check(entropy, codec)
    offset = np.asarray(entropy["knob"]["offset"])
    for wrong in (offset[1:], offset.astype(np.int64), offset + (1 << 28)):
        with pytest.raises(ModelError, match="entropy/knob"):
            integer.check(entropy | dict(knob=dict(offset=wrong)), codec)
    with pytest.raises(ModelError, match="needs hyper_synthesis, knob, prior"):
        integer.check({k: v for k, v in entropy.items() if k != "knob"}, codec)


def test_a_search_finds_the_last_that_fits():
    sizes = [7, 7, 9, 12, 12, 30]
    tried = []

    def make(i):
        tried.append(i)
        return bytes(sizes[i])

    found = {limit: search.most_within(make, len(sizes), limit)[0] for limit in range(5, 40)}
    assert found == {n: max([0] + [i for i, s in enumerate(sizes) if s <= n]) for n in found}
    assert len(tried) <= 4 * len(found)
    near = lambda size: len(search.nearest(make, make, len(sizes), size))
    nearest = {size: near(size) for size in (1, 8, 10, 11, 20, 22, 99)}
    assert nearest == {1: 7, 8: 7, 10: 9, 11: 12, 20: 12, 22: 30, 99: 30}


def test_a_size_is_met(exact):
    image = photo(64, 128)
    smallest = len(exact.encode(image, steps=0))
    for size in (smallest, 100, 300, 10**6):
        data = exact.encode_within(image, size)
        assert len(data) <= size
        exact.decode(data)
        rate = stream.inspect(data).header.rate
        if 0 < rate < 255:
            assert len(exact.encode(image, quality=100 * (rate + 1) / 255)) > size
    assert len(data) == len(exact.encode(image, quality=100))
    with pytest.raises(ImageError, match=f"smallest file has {smallest}"):
        exact.encode_within(image, smallest - 1)
    assert len(exact.encode_near(image, 1)) == smallest


def test_a_model_of_one_rate_meets_sizes_by_steps(tiny_model):
    codec, image = load(tiny_model), photo(128, 128)
    sizes = [len(codec.encode(image, steps)) for steps in range(5)]
    assert len(codec.encode_within(image, sizes[2])) == sizes[2]
    with pytest.raises(ModelError, match="of one rate"):
        codec.encode(image, quality=50)


def test_streams_and_models_must_both_have_a_rate(exact):
    content = stream.unpack(exact.encode(photo(64, 128)))
    forged = stream.pack(replace(content.header, rate=None), content.z, content.y, content.words)
    with pytest.raises(StreamError, match=r"no rate, .* with a quality knob"):
        exact.decode(forged)


def test_the_command_line_meets_a_quality_or_a_size(model, tmp_path, capsys):
    write(tmp_path / "p.png", photo(64, 128), overwrite=False)
    run = lambda *options: main(
        ["encode", str(tmp_path / "p.png"), "--model", str(model), "--overwrite", *options]
    )
    assert run("--quality", "80") == 0
    assert "quality 80" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "p.onedc")]) == 0
    assert "quality     80  (rate 204 of 255)" in capsys.readouterr().out
    assert run("--max-bytes", "100") == 0
    assert (tmp_path / "p.onedc").stat().st_size <= 100
    assert run("--target-bpp", "0.2") == 0
    assert run("--max-bytes", "10") == 2
    assert "10 bytes are too few" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--quality", "101")
    assert "101 is no number from 0 to 100" in capsys.readouterr().err
