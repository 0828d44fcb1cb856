"""Released weight files -> a model folder."""

from collections.abc import Callable, Mapping
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
    config: Mapping[str, Any] | str | Path | None = None,
    merge_lora: bool = False,
    dtype: str = "float32",
) -> None:
    """Writes the model folder `out` from the released weights of codec, generator and VAE.

    Each source is whatever `weights.read` opens. `config` describes the model as
    `models.onedc.build` takes it, or is a JSON file that does; by default the released one.
    `merge_lora` folds the generator's low-rank adaptation into its kernels: smaller, faster, no
    longer adaptable. `dtype`, one of `DTYPES`, is how the weights are stored; merging is done in
    float32 before.

    Raises ModelError if a tensor is missing, unexpected, of another shape or kind or not finite, if
    the configuration has an unknown field or makes no model, if the VAE's config.json says that it
    is for another one, or if `out` exists or cannot be made.
    """
    check_target(out, dtype)
    for source in (codec_file, generator_file, vae):
        weights.read(source)  # what cannot be opened is told before the long part
    where, config = read_config(config, RELEASED)
    model = checkpoint.built(where, lambda: onedc.build(config))
    check_stated(vae, {("config.json", "scaling_factor"): model.latent_scale})
    shapes = checkpoint.built(where, lambda: onedc.param_shapes(model))
    sources = {
        "generator": (generator_file, weights.generator_name),
        "codec": (codec_file, weights.codec_name),
        "vae": (vae, weights.plain_name),
    }

    params = {}
    for part, (source, rename) in sources.items():
        # Opened here, one after the other, so that only one file at a time is mapped into memory.
        filled = fill(part, shapes[part], weights.read(source), rename)
        if merge_lora and part == "generator":
            unet = dict(model.generator.unet)
            filled = generator.merge_lora(filled, unet.get("alpha", UNet.alpha))
            merged = {"unet": unet | {"rank": 0}}
            config["generator"] = dict(config.get("generator", {})) | merged
        params[part] = cast(filled, dtype)
    checkpoint.save_model(out, config, params)


def check_target(out: str | Path, dtype: str) -> None:
    """ModelError if `out` cannot be made or `dtype` is none of `DTYPES`: before the long part."""
    if dtype not in DTYPES:
        raise ModelError(f"{dtype}: weights are stored as one of {', '.join(DTYPES)}")
    checkpoint.refuse_existing(out, overwrite=False)
    above = next(folder for folder in Path(out).absolute().parents if folder.exists())
    if not above.is_dir():
        raise ModelError(f"{out}: cannot be made, {above} is not a folder")


def read_config(
    given: Mapping[str, Any] | str | Path | None, default: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """What to call a configuration in messages, and its fields; a model.json's serve as well.

    Raises ModelError if a file is missing or no JSON object.
    """
    if given is None or isinstance(given, Mapping):
        return "the configuration", dict(default if given is None else given)
    config = checkpoint.read_object(Path(given))
    return str(given), {key: x for key, x in config.items() if key not in checkpoint.HEAD}


def check_stated(source: str | Path, expected: Mapping[tuple[str, str], Any]) -> None:
    """Compares what lies beside released weights with what their parameters cannot show.

    `expected`: (a file beside those of `source`, a key in it) -> its value, in lists each one's.
    Missing files and keys pass; otherwise raises ModelError.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    for (name, key), value in expected.items():
        file = folder / name
        stated = checkpoint.read_object(file).get(key) if file.is_file() else None
        if any(x not in (None, value) for x in (stated if isinstance(stated, list) else [stated])):
            raise ModelError(
                f"{file}: {key} is {stated}, expected {value}; these are another network's weights"
            )


def fill(name: str, shapes: Any, tensors: weights.Tensors, rename: Callable, **options: Any) -> Any:
    """`weights.fill` with a bar of progress."""
    progress = partial(tqdm, desc=name, unit="tensor", disable=None)
    return weights.fill(shapes, tensors, rename, progress=progress, **options)


def cast(params: Any, dtype: str) -> Any:
    """A tree of numpy arrays of this type."""
    return jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), params)
