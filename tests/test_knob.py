"""The quality knob: one codec at many rates, and none of it where there is one rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL

from onedc_jax.models.codec import Codec, RateKnob
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


def test_a_model_of_one_rate_has_no_knob():
    codec = MICRO_MODEL["codec"]
    one, three = (
        param_shapes(build(MICRO_MODEL | dict(codec=codec | dict(rates=n)))) for n in (1, 3)
    )
    knob = three["codec"].pop("knob")
    assert {name: x.shape for name, x in knob.items()} == dict.fromkeys(
        ("gain", "inverse", "bias"), (3, codec["channels"])
    )
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, three)


def test_gains_are_those_of_the_rate():
    codec, y = Codec(channels=CHANNELS, rates=POINTS), jnp.ones((1, 2, 2, CHANNELS))
    gained = codec.apply({"params": {"knob": PARAMS}}, y, jnp.ones(1), method=Codec.gained)
    np.testing.assert_allclose(gained[0, 0, 0], [8, 32], rtol=1e-5)
    same = Codec(channels=CHANNELS).apply({"params": {}}, y, method=Codec.gained)
    np.testing.assert_array_equal(same, y)
