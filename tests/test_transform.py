"""Models that begin as block transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL
from pictures import photo

from onedc_jax.errors import ModelError
from onedc_jax.models import transform
from onedc_jax.models.onedc import build, param_shapes
from onedc_jax.training.stage1 import initial_params

LATENTS, CHANNELS = 32, 48
MODEL = MICRO_MODEL | dict(
    latent_scale=1.0,
    vae=MICRO_MODEL["vae"] | dict(latent_channels=LATENTS, transform=True),
    codec=MICRO_MODEL["codec"] | dict(rates=3, channels=CHANNELS, transform=True),
    generator=MICRO_MODEL["generator"]
    | dict(unet=MICRO_MODEL["generator"]["unet"] | dict(out_channels=LATENTS)),
)


@pytest.mark.parametrize("size, count", [(8, 32), (16, 48), (8, 192)])
def test_modes_are_orthonormal_and_fall(size, count):
    chosen, deviations = transform.modes(size, count)
    basis = transform.basis(size, chosen).reshape(-1, count)
    np.testing.assert_allclose(basis.T @ basis, np.eye(count), atol=1e-12)
    assert np.all(np.diff(deviations) <= 0) and deviations[-1] > 0


def test_a_model_begins_as_what_it_transforms():
    """Latents, y and the image are those of the transforms but for a little of random networks."""
    sources = dict(vae="", codec="", generator="", unet="", reshaped=False)
    model = build(MODEL)
    params = initial_params(model, param_shapes(model), 0, sources, y_gain=4.0, span=16.0)
    image = jnp.asarray(photo(128, 192)[None] / 127.5 - 1, jnp.float32)
    run = jax.jit(lambda p, x, r: model.apply({"params": p}, x, r))
    blocks = {size: blocks_of(np.asarray(image), size) for size in (8, 16)}
    errors = []
    for rate in (0.0, 1.0):
        out = run(params, image, jnp.array([rate]))
        for name, size, count in (("latent", 8, LATENTS), ("y", 16, CHANNELS)):
            chosen, deviations = transform.modes(size, count)
            basis = transform.basis(size, chosen).reshape(-1, count)
            wanted = blocks[size] @ (basis / deviations)
            assert np.linalg.norm(out[name] - wanted) / np.linalg.norm(wanted) < 0.7
        errors.append(float(jnp.square(out["decoded"] - image).mean()))
    # Steps of a quarter lose little; four times as large ones at the lowest rate lose more.
    basis = transform.basis(16, transform.modes(16, CHANNELS)[0]).reshape(-1, CHANNELS)
    lost = np.square(blocks[16] - blocks[16] @ basis @ basis.T).mean()
    assert errors[1] < lost + 0.02 and errors[1] < errors[0] < lost + 0.2


def test_scales_begin_near_what_y_is():
    sources = dict(vae="", codec="", generator="", unet="", reshaped=False)
    model = build(MODEL)
    params = initial_params(model, param_shapes(model), 0, sources, y_gain=4.0, span=1.0)
    image = jnp.asarray(photo(128, 192)[None] / 127.5 - 1, jnp.float32)
    out = jax.jit(lambda p, x, r: model.apply({"params": p}, x, r))(params, image, jnp.ones(1))
    scales = out["scales"].mean((0, 1, 2))
    assert scales[0] > 3 * scales[1:].max() > 0


def test_what_is_made_of_the_image_needs_no_pixels():
    """`through` a transform of smaller blocks: as that of the whole image, but for the order."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 3, 5, 12))
    inverse, smaller = transform.BlockInverse(16), transform.BlockTransform(7, 4)
    image, params = inverse.init_with_output(keys[1], x)
    wanted, there = smaller.init_with_output(keys[2], image)
    found = inverse.apply(params, x, lambda image: smaller.apply(there, image))
    assert found.shape == wanted.shape == (2, 12, 20, 7)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_codec_without_a_knob_is_refused():
    sources = dict(vae="", codec="", generator="", unet="", reshaped=False)
    model = build(MODEL | dict(codec=MODEL["codec"] | dict(rates=1)))
    with pytest.raises(ModelError, match="rates to 2 or more"):
        initial_params(model, param_shapes(model), 0, sources)


def blocks_of(image: np.ndarray, size: int) -> np.ndarray:
    """[1, H, W, 3] -> [1, H/size, W/size, 3 · size²], channel by channel and row by row."""
    _, h, w, c = image.shape
    x = image.reshape(1, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(1, h // size, w // size, -1)
