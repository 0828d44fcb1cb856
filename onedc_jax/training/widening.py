"""More channels of y for a trained codec that began as a transform.

How many coefficients of a block y has bounds how near the image can come, at any rate. The wider
model computes what the narrow one did: the new channels are the next coefficients, expected near
zero, and nothing that was there reads them yet.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from onedc_jax.errors import ModelError
from onedc_jax.models.onedc import build
from onedc_jax.models.transform import BESIDE
from onedc_jax.training.stage1 import initial_params
from onedc_jax.training.state import paths

Array = np.ndarray

_NOTHING = dict(vae="", codec="", generator="", unet="", reshaped=False)
_SHUFFLED = ("subpel_conv", "upsample")  # their outputs are channels of 2×2 pixels, side by side


def with_channels(
    config: Mapping[str, Any], params: Mapping[str, Any], channels: int, *, y_gain: float, seed: int
) -> tuple[dict, dict]:
    """A model with `channels` of y that goes on from a narrower one: its config and parameters.

    `config` and `params` are as `checkpoint.load_model` gives them, y_gain is as in a recipe.
    Raises ModelError for a model without `transform` or a knob, and for a number of channels that
    is not a larger multiple of 4.
    """
    config = {k: v for k, v in config.items() if k in ("vae", "codec", "generator", "latent_scale")}
    codec = dict(config["codec"])
    old = codec.get("channels", 0)
    if not codec.get("transform"):
        raise ModelError("only a codec with `transform` has coefficients to go on with")
    if channels <= old or channels % 4:
        raise ModelError(f"{channels} channels: expected a multiple of 4, more than {old}")
    config |= dict(codec=codec | dict(channels=channels))
    wide = initial_params(build(config), seed, _NOTHING, y_gain=y_gain)
    narrow = dict(zip(paths(params), jax.tree.leaves(params), strict=True))
    # The prior codes y in four groups: each keeps the channels that it has and is given new ones.
    places = np.arange(channels).reshape(4, -1)[:, : old // 4].ravel()
    order = np.concatenate([places, np.setdiff1d(np.arange(channels), places)])
    leaves = [
        _widened(name, np.asarray(narrow[name], np.float32), leaf, order, old)
        for name, leaf in zip(paths(wide), jax.tree.leaves(wide), strict=True)
    ]
    return config, jax.tree.unflatten(jax.tree.structure(wide), leaves)


def _widened(name: str, narrow: Array, wide: Array, order: Array, old: int) -> Array:
    """One parameter. Channel c of `wide`, as it was drawn, goes to place order[c]."""
    if narrow.shape == wide.shape:
        return narrow
    if "/knob/" in name and name.rsplit("/")[-1] != "bias":
        # As much finer or coarser as the weakest have become that were there.
        wide = wide + (narrow - wide[:, :old])[:, -old // 4 :].mean(1, keepdims=True)
    shuffled = any(part in name for part in _SHUFFLED)

    def places(channels: Array) -> list[Array]:
        """Where these channels are, along each axis."""
        sizes = list(zip(narrow.shape, wide.shape, strict=True))
        along = [_along(a, b, channels, len(order), old) for a, b in sizes]
        if shuffled and narrow.shape[-1] != wide.shape[-1]:
            along[-1] = (4 * channels[:, None] + np.arange(4)[None]).ravel()
        return along

    kept = places(order[:old])
    result = np.zeros_like(wide)
    result[np.ix_(*places(order))] = wide
    if name.endswith("kernel") and "/block_" not in name and "dw_conv" not in name:
        fresh = [~np.isin(np.arange(size), k) for size, k in zip(wide.shape, kept, strict=True)]
        # What is old hears nothing of what is new; what is new hears little of what is old.
        little = 0.0 if "/prior/" in name else BESIDE
        result *= np.where(fresh[-2][:, None], fresh[-1], np.where(fresh[-1], little, 1.0))
    result[np.ix_(*kept)] = narrow
    return result


def _along(a: int, b: int, channels: Array, new: int, old: int) -> Array:
    """Places of channels along an axis that has grown from a to b.

    It holds one or more times all channels of y, block after block, and then what is not of y.
    """
    blocks = (b - a) // (new - old)
    return np.concatenate(
        [*(new * i + channels for i in range(blocks)), np.arange(blocks * new, b)]
    )
