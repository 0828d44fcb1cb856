"""What a training starts from: parts of model folders, such as the "vae" of runs/vae."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import built, load_model, read_config, resolve
from onedc_jax.errors import ModelError
from onedc_jax.models.onedc import hashable
from onedc_jax.models.unet import AnalysisUNet, UNet
from onedc_jax.trees import map_named, named

Array = np.ndarray

_UNETS = dict(unet=UNet, analysis_unet=AnalysisUNet)  # fields that are a U-Net's


def load_part(path: str, part: str) -> tuple[dict, dict]:
    """A part of a model folder: its fields, with tuples where JSON has lists, and its parameters.

    Raises ModelError if the folder has no such part.
    """
    config, params = load_model(resolve(path))
    if part not in params:
        raise ModelError(f"{path}: holds no {part!r}, only {', '.join(sorted(params))}")
    return hashable(config.get(part, {})), params[part]


def cast(params: Any, dtype: str) -> Any:
    """All arrays of a tree in this type."""
    return jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), params)


def replaced(
    params: dict, module: nn.Module, part: str, path: str, *, reshaped: bool = False
) -> dict:
    """The parameters of `part` in a model folder, in place of `params`; without a path `params`.

    With `reshaped`, what the folder lacks stays as it is in `params`, and what is wider there goes
    on from it, see `widened`; without it, ModelError is raised where they differ, or are of another
    model than `module`.
    """
    if not path:
        return params
    fields, loaded = load_part(path, part)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    same = shapes(loaded) == shapes(params)
    if not reshaped:
        if not same:
            raise ModelError(
                f"{path}: its {part!r} has other layers or widths than config.model.{part} "
                "(--config.init.reshaped=True widens what is narrower, and begins the rest at "
                "random)"
            )
        _check_alike(path, part, fields, module, "--config.init.reshaped=True goes on all the same")
    if same:
        return loaded
    known = named(loaded)
    return map_named(lambda name, x: widened(known[name], x) if name in known else x, params)


def widened(narrow: Array, wide: Array) -> Array:
    """Weights [..., inputs, outputs] or [outputs] of a layer that goes on from a narrower one.

    Its first outputs are those of `narrow`, and the new inputs have no part in them yet: layers
    widened together compute the same, as long as none takes several inputs side by side. All else
    is as in `wide`, and so is everything where no widening leads from one shape to the other.
    """
    narrow, wide = np.asarray(narrow), np.asarray(wide)
    axes = min(wide.ndim, 2)  # those of kernels do not grow
    grows = narrow.ndim == wide.ndim and narrow.shape[:-axes] == wide.shape[:-axes]
    if not grows or any(a > b for a, b in zip(narrow.shape, wide.shape, strict=True)):
        return wide
    wide = wide.copy()
    wide[..., : narrow.shape[-1]] = 0
    wide[tuple(slice(size) for size in narrow.shape)] = narrow
    return wide


def adapted_unet(params: dict, unet: UNet, path: str) -> dict:
    """A diffusion U-Net's parameters, in place of the generator's; without a path `params`.

    The first convolution, which sees features and no latent, and LoRA stay as they are in `params`,
    those of `unet`. Raises ModelError where the folder's "unet" is another one in the rest.
    """
    if not path:
        return params
    fields, loaded = load_part(path, "unet")
    shared = lambda name: not name.startswith("conv_in/") and "/lora_" not in name
    known = {name: x for name, x in named(loaded).items() if shared(name)}
    own = {name: x for name, x in named(params).items() if shared(name)}
    for name in sorted(known.keys() | own.keys()):
        shapes = [list(tree[name].shape) if name in tree else None for tree in (known, own)]
        if shapes[0] != shapes[1]:
            found, wanted = (shape or "nothing" for shape in shapes)
            raise ModelError(
                f"{path}: its U-Net does not fit config.model.generator.unet: at {name} it has "
                f"{found} where the generator has {wanted}"
            )
    remedy = "set config.model.generator.unet"
    _check_alike(path, "unet", fields, unet, remedy, but=("rank", "alpha"))
    return map_named(lambda name, x: known.get(name, x), params)


def _check_alike(
    path: str,
    part: str,
    fields: Mapping[str, Any],
    module: nn.Module,
    remedy: str,
    but: Collection[str] = (),
) -> None:
    """ModelError where a folder's part is another model than `module`, but for the fields `but`.

    For what shapes do not tell, such as the number of heads.
    """
    other = built(f"{path}: its {part!r}", lambda: type(module)(**fields))
    found, wanted = _fields(other), _fields(module)
    names = [name for name in wanted if name not in but and found.get(name) != wanted[name]]
    if names:
        told = lambda fields: ", ".join(f"{name}={fields.get(name)}" for name in names)
        raise ModelError(
            f"{path}: its {part!r} has {told(found)}, the recipe {told(wanted)} ({remedy})"
        )


def check_scale(path: str, latent_scale: float) -> None:
    """ModelError where a folder's diffusion model was made for latents times another scale."""
    found = read_config(resolve(path)).get("latent_scale") if path else None
    if found not in (None, latent_scale):
        raise ModelError(
            f"{path}: made for latents times {found:g}, the codec's are times {latent_scale:g}"
        )


def _fields(module: nn.Module) -> dict[str, Any]:
    """What a module computes, by the names of its fields and of its U-Net's, defaults and all."""
    fields = {}
    for name in (field.name for field in dataclasses.fields(module)):
        value = hashable(getattr(module, name))
        if name in _UNETS:
            nested = _fields(_UNETS[name](**(value or {})))
            fields |= {f"{name}.{inner}": x for inner, x in nested.items()}
        elif name not in ("parent", "name", "dtype", "remat"):
            fields[name] = value
    return fields
