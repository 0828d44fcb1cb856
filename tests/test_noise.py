"""Noise as a function of the place: white, and one for all windows."""

import jax.numpy as jnp
import numpy as np

from onedc_jax.models.noise import Noise, white


def test_white_noise_has_unit_variance_and_no_pattern():
    x = np.asarray(white(jnp.array([[5, 1 << 30]]), 256, 256, 4))[0]
    near = 5 / 256  # five standard deviations of a mean of 256² numbers
    assert np.abs(x.mean((0, 1))).max() < near and np.abs(x.var((0, 1)) - 1).max() < near
    neighbours = [x[1:] * x[:-1], x[:, 1:] * x[:, :-1], x[16:] * x[:-16], x[..., 1:] * x[..., :-1]]
    assert max(np.abs(pair.mean((0, 1))).max() for pair in neighbours) < near


def test_windows_over_one_picture_see_one_noise():
    whole = white(jnp.array([[40, 7], [0, 0]]), 24, 16, 2)
    part = white(jnp.array([[48, 11]]), 16, 12, 2)
    np.testing.assert_array_equal(part[0], whole[0, 8:, 4:])
    assert not np.any(whole[0] == whole[1])


def test_the_features_say_how_much_of_it_there_is():
    layer, x, origin = Noise(5), jnp.ones((1, 64, 64, 8)), jnp.zeros((1, 2), jnp.int32)
    level = np.array([0.0, 0.5, 1.0, 2.0, -1.0], np.float32)
    params = dict(level=dict(kernel=np.tile(level / 8, (1, 1, 8, 1)), bias=np.zeros(5)))
    out = layer.apply({"params": params}, x, origin)
    np.testing.assert_allclose(out.std((0, 1, 2)), abs(level), rtol=0.05)
    np.testing.assert_allclose(layer.apply({"params": params}, 3 * x, origin), 3 * out, rtol=1e-5)
