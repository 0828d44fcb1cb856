"""PSNR and MS-SSIM against the accepted implementations, and at their limits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from pictures import pictures
from reference import GOLDEN

from onedc_jax import metrics

EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())  # by golden/make_metrics.py


@pytest.mark.parametrize("name", ["psnr", "ms_ssim"])
def test_values_are_the_accepted_ones(name):
    a, b = pictures(*EXPECTED["sizes"][name])
    np.testing.assert_allclose(getattr(metrics, name)(a, b), EXPECTED[name], rtol=1e-4)


@pytest.mark.parametrize("name,best", [("psnr", np.inf), ("ms_ssim", 1)])
def test_equal_images_are_the_best(name, best):
    a, _ = pictures(*EXPECTED["sizes"][name])
    np.testing.assert_allclose(getattr(metrics, name)(a, a), [best] * 3, rtol=1e-6)


def test_bytes_and_fractions_mean_the_same():
    a, b = pictures(1, 24, 40)
    fractions = jnp.float32(a) / 255, jnp.float32(b) / 255
    np.testing.assert_allclose(metrics.psnr(a, b), metrics.psnr(*fractions), rtol=1e-5)


def test_ms_ssim_refuses_small_images():
    a, b = pictures(1, 160, 200)
    with pytest.raises(ValueError, match="at least 161"):
        metrics.ms_ssim(a, b)


def test_bpp_counts_every_byte():
    assert metrics.bpp(b"\0" * 30, 8, 10) == 3
