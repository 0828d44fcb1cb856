"""Networks as they are run: what does not depend on the image is computed once.

Low-rank adaptation goes into the kernels beside it. Both U-Nets are asked at one timestep only, so
that its embedding is a constant, which each residual block adds behind its first convolution: it
goes into that convolution's bias.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onedc_jax.models.generator import merge_lora
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.unet import ANALYSIS_TIMESTEP, UNet

Params = Mapping[str, Any]


def folded(model: OneDC) -> OneDC:
    """The model without adaptation and time embeddings, for parameters from `fold`."""
    unet = dict(model.generator.unet) | {"rank": 0, "timed": False}
    analysis_unet = dict(model.codec.analysis_unet or {}) | {"timed": False}
    return model.clone(
        codec=model.codec.clone(analysis_unet=analysis_unet),
        generator=model.generator.clone(unet=unet),
    )


def fold(model: OneDC, params: Params) -> dict[str, Any]:
    """Parameters with which `folded(model)` computes what `model` does with `params`.

    `params` are {"vae", "codec", "generator"}; what stays as it is is not copied.
    """
    unet = model.generator.unet
    generator, codec = dict(params["generator"]), dict(params["codec"])
    adapted = generator["unet"]
    if unet.get("rank"):
        adapted = merge_lora(adapted, unet.get("alpha", UNet.alpha))
    generator["unet"] = _at(adapted, model.generator.timestep)
    analysis = codec["analysis"]
    codec["analysis"] = analysis | {"unet": _at(analysis["unet"], ANALYSIS_TIMESTEP)}
    return {**params, "generator": generator, "codec": codec}


def _at(unet: Params, timestep: int) -> dict[str, Any]:
    """A U-Net's parameters with the embedding of a timestep in its residual blocks' biases."""
    unet = dict(unet)
    embedding = unet.pop("time_embedding")
    return _with_time(unet, _silu(_embedded(embedding, timestep)))


def _embedded(embedding: Params, timestep: int) -> np.ndarray:
    """As `layers.TimeEmbedding`, [T]: in NumPy, since jax would compile each operation of it."""
    half = embedding["linear1"]["kernel"].shape[0] // 2
    angles = timestep * np.exp(-math.log(10000.0) * np.arange(half) / half)
    x = np.concatenate([np.cos(angles), np.sin(angles)])
    return _dense(embedding["linear2"], _silu(_dense(embedding["linear1"], x)))


def _with_time(block: Params, time: np.ndarray) -> dict[str, Any]:
    block = {k: _with_time(v, time) if isinstance(v, Mapping) else v for k, v in block.items()}
    if "time_emb_proj" in block:
        added, conv = _dense(block.pop("time_emb_proj"), time), block["conv1"]
        block["conv1"] = {**conv, "bias": np.asarray(conv["bias"] + added, np.float32)}
    return block


def _dense(layer: Params, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))
