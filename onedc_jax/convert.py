"""Released weight files -> a model folder."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from onedc_jax import checkpoint, weights
from onedc_jax.errors import ModelError
from onedc_jax.models import generator, onedc
from onedc_jax.models.unet import UNet

RELEASED = {"generator": {"unet": {"rank": 64}}}  # the rest of it is what modules default to
DTYPES = ("float32", "bfloat16")


def convert(
    codec_file: str | Path,
    generator_file: str | Path,
    vae: str | Path,
    out: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    merge_lora: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes the model folder `out` from the released weights of codec, generator and VAE.

    Each source is whatever `weights.read` opens. `config` describes the model as
    `models.onedc.build` takes it; by default the released one. `merge_lora` folds the generator's
    low-rank adaptation into its kernels: smaller, faster, no longer adaptable. `dtype`, one of
    `DTYPES`, is how the weights are stored; merging is done in float32 before.

    Raises ModelError if a tensor is missing, unexpected or of another shape, if the configuration
    has an unknown field, or if `out` exists.
    """
    if dtype not in DTYPES:
        raise ModelError(f"{dtype}: weights are stored as one of {', '.join(DTYPES)}")
    checkpoint.refuse_existing(out, overwrite=False)
    for source in (codec_file, generator_file, vae):
        weights.read(source)  # what cannot be opened is told before the long part
    config = dict(RELEASED if config is None else config)
    try:
        model = onedc.build(config)
        shapes = onedc.param_shapes(model)
    except TypeError as error:
        raise ModelError(f"the model's configuration has an unknown field: {error}") from error
    sources = {
        "generator": (generator_file, weights.generator_name),
        "codec": (codec_file, weights.codec_name),
        "vae": (vae, weights.vae_name),
    }

    params = {}
    for part, (source, rename) in sources.items():
        # Opened here, one after the other, so that only one file at a time is mapped into memory.
        tensors = weights.read(source)
        progress = partial(tqdm, desc=part, unit="tensor", disable=None)
        filled = weights.fill(shapes[part], tensors, rename, progress=progress)
        if merge_lora and part == "generator":
            unet = dict(model.generator.unet)
            filled = generator.merge_lora(filled, unet.get("alpha", UNet.alpha))
            merged = {"unet": unet | {"rank": 0}}
            config["generator"] = dict(config.get("generator", {})) | merged
        params[part] = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), filled)
    checkpoint.save_model(out, config, params)
