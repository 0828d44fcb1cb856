"""Folded networks compute what they were folded from."""

import jax
import numpy as np
from conftest import MICRO_MODEL

from onedc_jax.models.folding import fold, folded
from onedc_jax.models.init import random_params
from onedc_jax.models.onedc import OneDC, build, param_shapes


def test_adaptation_and_time_are_in_the_weights():
    unet = MICRO_MODEL["generator"]["unet"] | dict(rank=2, alpha=3.0)
    model = build(MICRO_MODEL | dict(generator=MICRO_MODEL["generator"] | dict(unet=unet)))
    params = random_params(param_shapes(model), seed=0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype("f4"), params)
    after, weights = folded(model), fold(model, params)
    names = str(jax.tree.structure(weights))
    assert "lora" in str(jax.tree.structure(params))
    assert not any(name in names for name in ("lora", "time_emb"))
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    assert shapes(param_shapes(after)) == shapes(weights)

    image = rng.uniform(-1, 1, (1, 64, 128, 3)).astype("f4")
    run = lambda model: jax.jit(lambda p, x: model.apply({"params": p}, x, method=both))
    for found, wanted in zip(run(after)(weights, image), run(model)(params, image), strict=True):
        assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-5


def both(model: OneDC, image):
    """y, and the image of y and fixed tokens."""
    out = model.analyse(image)
    tokens = np.arange(2, dtype=np.int32).reshape(1, 1, 2)
    return out["y"], out["z"], model.reconstruct(out["y"], tokens)
