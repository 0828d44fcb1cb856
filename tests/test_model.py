"""The codec and the VAE against the reference's golden arrays, weights through the converter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import checkpoint, golden, relative_l2

from onedc_jax import weights
from onedc_jax.models import prior, quantize
from onedc_jax.models.codec import Codec
from onedc_jax.models.init import shapes_of
from onedc_jax.models.vae import VAE

MICRO = Codec(
    channels=32,
    internal=64,
    semantic=96,
    features=64,
    analysis_unet={"widths": (64, 96, 96)},
)


@pytest.fixture(scope="module")
def codec_params():
    image, latent = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8, 8, 4))
    shapes = shapes_of(MICRO, image, latent)
    return weights.fill(shapes, checkpoint("micro/codec", "codec."), weights.codec_name)


@pytest.fixture(scope="module")
def codec_out(codec_params):
    expected = golden("micro/codec")
    run = jax.jit(lambda image, latent: MICRO.apply({"params": codec_params}, image, latent))
    return run(expected["image"], expected["latent"]), expected


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("y", "y"),
        ("sem", "sem"),
        ("z", "z"),
        ("z_hat", "z_hat"),
        ("features", "hyper_features"),
        ("z_semantic", "z_semantic"),
        ("parameters", "prior_params"),
        ("tokens", "y_semantic"),
    ],
)
def test_codec_matches_the_reference(codec_out, ours, theirs):
    out, expected = codec_out
    assert relative_l2(out[ours], expected[theirs]) <= 1e-4


def test_tokens_match_the_reference(codec_out):
    out, expected = codec_out
    np.testing.assert_array_equal(out["z_indices"], expected["z_indices"])


def test_prior_matches_the_reference_step_by_step(codec_params):
    """Each step on the reference's y and y_hat so far.

    These weights are seeded, not trained: residuals reach 400 and a change of one symbol changes
    the scales of all around it, so that one rounding tie, decided by the last bit of a float, would
    end any comparison of what follows it.
    """
    expected = golden("micro/codec")
    step = jax.jit(
        lambda k, y_hat: MICRO.apply(
            {"params": codec_params}, k, y_hat, expected["prior_params"], method=Codec.prior_step
        ),
        static_argnums=0,
    )
    y_hat = jnp.zeros_like(expected["y_hat"])
    for k in range(prior.STEPS):
        mean, scales = step(k, y_hat)
        residual = prior.gather(expected["y"], k) - mean
        assert relative_l2(residual, prior.gather(expected["y_res"], k)) <= 1e-4
        assert relative_l2(scales, expected[f"symbol_scales_{k}"]) <= 1e-4
        symbols = jnp.round(residual)
        assert np.mean(np.asarray(symbols) == expected[f"symbols_{k}"]) >= 0.999
        y_hat += prior.scatter(prior.gather(expected["y_hat"], k), k)


def test_symbols_differ_from_the_reference_only_after_a_tie(codec_out):
    out, expected = codec_out
    for k in range(prior.STEPS):
        ours, theirs = prior.gather(out["symbols"], k), expected[f"symbols_{k}"]
        differ = np.asarray(ours) != theirs
        if differ.any():
            residual = np.asarray(prior.gather(expected["y_res"], k))[differ]
            assert np.abs(np.abs(residual - np.floor(residual)) - 0.5).max() <= 1e-3
            break


def test_synthesis_matches_the_reference(codec_params):
    expected = golden("micro/codec")
    run = jax.jit(lambda *x: MICRO.apply({"params": codec_params}, *x, method=Codec.synthesise))
    out = run(expected["y_hat"], expected["z_indices"])
    assert relative_l2(out["x_hat"], expected["x_hat"]) <= 1e-4


def test_unguided_the_codes_reach_nothing_but_the_prior(codec_params):
    expected = golden("micro/codec")
    other = (expected["z_indices"] + 1) % quantize.CODEBOOK_SIZE
    change = {}
    for guided in (True, False):
        codec = MICRO.clone(guided=guided)
        run = jax.jit(
            lambda *x, c=codec: c.apply({"params": codec_params}, *x, method=Codec.synthesise)
        )
        a, b = (run(expected["y_hat"], z)["x_hat"] for z in (expected["z_indices"], other))
        change[guided] = relative_l2(a, b)
    assert change[True] > 0 and change[False] == 0


@pytest.mark.parametrize(
    "name, symbols", [("micro/codec", "y_q"), ("full/full_128x128", "symbols")]
)
def test_estimated_rate_matches_the_reference(name, symbols):
    expected = golden(name)
    bits = prior.estimated_bits(expected[symbols], expected["scales"]).sum()
    _, height, width, _ = expected["image"].shape
    assert bits / (height * width) == pytest.approx(float(expected["bpp_y"]), rel=1e-4)


def test_z_only_matches_the_reference(codec_params, codec_out):
    expected, (_, whole) = golden("micro/codec_z_only"), codec_out
    run = jax.jit(
        lambda *inputs: MICRO.apply({"params": codec_params}, *inputs, None, jnp.array([True]))
    )
    out = run(whole["image"], whole["latent"])
    np.testing.assert_array_equal(out["z_indices"], expected["z_indices"])
    assert relative_l2(out["y_hat"], expected["y_hat"]) <= 1e-4
    assert relative_l2(out["x_hat"], expected["x_hat"]) <= 1e-4


def test_training_rate_and_its_gradients_match_the_reference():
    expected = golden("micro/rate")
    y, scales = expected["y"], expected["scales"]
    bits = prior.training_bits(y, scales, 0.0)
    assert relative_l2(bits, expected["bits"]) <= 1e-4
    total = lambda y, scales: prior.training_bits(y, scales, 0.0).sum()
    grad_y, grad_scales = jax.jit(jax.grad(total, argnums=(0, 1)))(y, scales)
    assert relative_l2(grad_y, expected["grad_y"]) <= 1e-4
    assert relative_l2(grad_scales, expected["grad_scales"]) <= 1e-4


def test_rounding_is_charged_what_is_sent():
    """Noise also charges for values that round to 0; of scales that it cannot express none is."""
    symbols, scales = jnp.array([0.0, 1.0, -3.0]), jnp.array([0.2, 0.7, 2.0])
    bits = prior.training_bits(symbols, scales, 0.0)
    np.testing.assert_allclose(bits, prior.estimated_bits(symbols, scales), rtol=1e-6)
    slope = jax.grad(lambda r: prior.training_bits(quantize.ste_round(r), scales, 0.0).sum())
    silent, up, down = slope(jnp.array([0.4, 0.6, -2.8]))
    assert silent == 0 and up > 0 > down
    u = jnp.linspace(-0.5, 0.5, 101)
    bits = lambda noise: prior.training_bits(jnp.zeros(101), jnp.full(101, 0.01), noise)
    assert bits(u).mean() > 0.05 > bits(0.0).max()


def test_evaluation_rate_matches_the_reference():
    expected = golden("micro/rate")
    bits = prior.estimated_bits(expected["eval_symbols"], expected["scales"])
    assert relative_l2(bits, expected["eval_bits"]) <= 1e-4


@pytest.mark.parametrize("name, window", [("vae", 16), ("vae_global_attention", 0)])
def test_vae_matches_the_reference(name, window):
    expected = golden(f"micro/{name}")
    image = golden("micro/vae")["image"]
    model = VAE(widths=(32, 32, 64, 64), window=window)
    key = jax.random.key(0)
    shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 64, 64, 3)), key)["params"]
    params = {"params": weights.fill(shapes, checkpoint("micro/vae", "vae."), weights.plain_name)}
    posterior = jax.jit(lambda x: model.apply(params, x, method=VAE.encode))(image)
    for field in expected.keys() & {"mean", "logvar"}:
        assert relative_l2(getattr(posterior, field), expected[field]) <= 1e-4
    decode = jax.jit(lambda x: model.apply(params, x, method=VAE.decode))
    latent = golden("micro/vae")["latent"] / 0.18215
    assert relative_l2(decode(latent), expected["decoded"]) <= 1e-4


def test_steps_cover_every_value_once():
    x = jnp.arange(2 * 4 * 6 * 8.0).reshape(2, 4, 6, 8)
    parts = [prior.scatter(prior.gather(x, k), k) for k in range(prior.STEPS)]
    np.testing.assert_array_equal(sum(parts), x)
    assert [int((part != 0).sum()) for part in parts][1:] == [x.size // 4] * 3


def test_a_step_sees_only_the_steps_before(codec_params):
    """The gradient of step 2's scales is zero where y is not yet decoded."""
    parameters = jnp.ones((1, 4, 4, 64))
    y_hat = jnp.zeros((1, 4, 4, 32))

    def total(y, k):
        seen = sum(prior.scatter(prior.gather(y, j), j) for j in range(k))
        mean, scale = MICRO.apply(
            {"params": codec_params}, k, y_hat + seen, parameters, method=Codec.prior_step
        )
        return mean.sum() + scale.sum()

    grad = jax.grad(total)(y_hat, 2)
    assert not np.any(prior.gather(grad, 2)) and not np.any(prior.gather(grad, 3))
    assert np.any(prior.gather(grad, 1))


def test_fsq_codes_and_indices_are_a_bijection():
    indices = jnp.arange(quantize.CODEBOOK_SIZE)
    codes = quantize.indices_to_codes(indices)
    np.testing.assert_array_equal(quantize.codes_to_indices(codes), indices)
    assert len(np.unique(np.asarray(codes), axis=0)) == quantize.CODEBOOK_SIZE


def test_fsq_reaches_every_level_and_passes_gradients():
    z = jnp.linspace(-10.0, 10.0, 1001).reshape(-1, 1) * jnp.ones((1, quantize.FSQ_CHANNELS))
    assert set(np.unique(quantize.fsq(z))) == {-1.0, -0.5, 0.0, 0.5}
    assert np.all(np.asarray(jax.grad(lambda z: quantize.fsq(z).sum())(z[400:600])) > 0)


def test_lower_bound_passes_only_gradients_that_help():
    grad = jax.grad(lambda x, sign: (sign * quantize.lower_bound(x, 1.0)).sum())
    x = jnp.array([0.0, 2.0])
    np.testing.assert_array_equal(
        grad(x, 1.0), [0.0, 1.0]
    )  # descent would lower x further: stopped
    np.testing.assert_array_equal(grad(x, -1.0), [-1.0, -1.0])
