"""Images in arrays that are larger than they are: as if they were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL

from onedc_jax.models.init import random_params
from onedc_jax.models.layers import inside
from onedc_jax.models.onedc import OneDC, build, param_shapes
from onedc_jax.models.padding import within

# All that looks beyond a pixel: norms over the whole image, attention everywhere, windows.
GLOBAL = dict(norm_groups=4)
EVERYTHING = dict(
    vae=MICRO_MODEL["vae"] | GLOBAL | dict(window=5, transform=True),
    codec=MICRO_MODEL["codec"]
    | GLOBAL
    | dict(
        attention=True,
        transform=True,
        analysis_unet=MICRO_MODEL["codec"]["analysis_unet"]
        | dict(attention=(True,) * 3, mid_attention=True),
    ),
    generator=MICRO_MODEL["generator"]
    | dict(unet=MICRO_MODEL["generator"]["unet"] | GLOBAL, noise=True),
)
SIZES = [(1, 2), (2, 1)]  # rows and columns of blocks, in arrays of
BLOCKS = (2, 3)


@pytest.fixture(scope="module")
def model():
    model = build(EVERYTHING)
    params = random_params(param_shapes(model), seed=0)
    rng = np.random.default_rng(1)
    # Biases, which are zero at first, would make something of nothing beyond the images' ends.
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype("f4"), params)
    return model, params


def in_arrays(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """x [h, w, ..] in the corner of an array of something else."""
    array = np.resize(x[::-1, ::-1], (height, width, *x.shape[2:]))
    array[: x.shape[0], : x.shape[1]] = x
    return array


def draw(scale: int, channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(scale)
    return [rng.uniform(-1, 1, (scale * r, scale * c, channels)).astype("f4") for r, c in SIZES]


def test_inside_counts_blocks():
    there = inside(jnp.array(SIZES), BLOCKS, 8, 12)
    assert there.shape == (2, 8, 12, 1)
    assert np.sum(there, (1, 2, 3)).tolist() == [4 * 8, 8 * 4]
    assert there[0, 3, 7] and not there[0, 4, 7] and not there[0, 3, 8]


def analyse(model: OneDC, image):
    out = model.analyse(image)
    return out["latent"], out["y"], out["z"]


def decode(model: OneDC, y_hat, z_indices):
    out = model.codec.synthesise(y_hat, z_indices)
    return (model.generate(out["x_hat"], out["tokens"], out["scaled"])["decoded"],)


def assert_alone(model, method, images: list[tuple]):
    """Each image's maps are those that it has when it is not in arrays with others."""
    module, params = model

    def run(*args):
        # A new function each time: what was traced in the context must not be taken out of it.
        apply = lambda *args: module.apply({"params": params}, *args, method=method)
        return jax.jit(apply)(*args)

    sides = lambda x: (BLOCKS[i] * x.shape[i] // SIZES[0][i] for i in (0, 1))
    together = lambda xs: np.stack([in_arrays(x, *sides(xs[0])) for x in xs])
    arrays = [together(xs) for xs in zip(*images, strict=True)]
    with within(jnp.array(SIZES), BLOCKS):
        together = run(*arrays)
    for i, image in enumerate(images):
        for found, wanted in zip(together, run(*(x[None] for x in image)), strict=True):
            h, w = wanted.shape[1:3]
            error = np.linalg.norm(found[i, :h, :w] - wanted[0]) / np.linalg.norm(wanted)
            assert error < 1e-5


def test_analysis(model):
    assert_alone(model, analyse, [(x,) for x in draw(64, 3)])


def test_reconstruction(model):
    rng = np.random.default_rng(0)
    z_indices = [rng.integers(0, 16384, size).astype(np.int32) for size in SIZES]
    y_hat = draw(4, EVERYTHING["codec"]["channels"])
    assert_alone(model, decode, list(zip(y_hat, z_indices, strict=True)))
