"""Strict modes on, and a small model on disk for whatever needs a whole codec."""

import os

import jax
import pytest

from onedc_jax.checkpoint import save_model
from onedc_jax.models.init import random_params
from onedc_jax.models.onedc import build, param_shapes

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Compiling takes most of the time, and code that is not optimised computes the same; where it must
# be what people run, or runs for long, there is the fixture `optimised`. Commands always are.
jax.config.update("jax_disable_most_optimizations", True)

NORMS = dict(norm_groups=1)
MICRO_MODEL = dict(
    vae=NORMS | dict(widths=(8, 8, 8), layers=0, latent_channels=4, window=None, patch=2),
    codec=NORMS
    | dict(
        channels=16,
        internal=16,
        semantic=16,
        features=16,
        pixel_features=8,
        fused_features=8,
        analysis_unet=dict(
            widths=(8, 8, 16), layers=0, attention=(False,) * 3, mid_attention=False
        ),
        attention=False,
    ),
    generator=dict(
        timestep=499,
        unet=NORMS | dict(widths=(8, 16), layers=0, attention=(False, True), heads=2),
    ),
)


# Files that take minutes come first, so that no worker is left alone with one at the end.
LONG = ("test_training", "test_dmd", "test_stage2", "test_teachers", "test_loop", "test_convert")


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs compiled once a session: tests, commands and all workers share them."""
    options = dict(jax_persistent_cache_min_compile_time_secs=0.2)
    if not jax.config.jax_compilation_cache_dir:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "xla"
        folder.mkdir(exist_ok=True)
        options["jax_compilation_cache_dir"] = str(folder)
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module")
def optimised():
    """Code as people run it."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The path of a model directory with few and random weights: fast, and hard on the coder."""
    path = tmp_path_factory.mktemp("model") / "micro"
    save_model(path, MICRO_MODEL, random_params(param_shapes(build(MICRO_MODEL)), seed=0))
    return path
