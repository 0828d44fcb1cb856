"""Stage 1: codec, hyperprior and generator together, on pixels and rate (paper, stage 1)."""

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import load_model, resolve
from onedc_jax.errors import ModelError
from onedc_jax.models.init import random_params
from onedc_jax.models.lpips import load_lpips, lpips
from onedc_jax.models.onedc import OneDC, build, param_shapes
from onedc_jax.models.prior import training_bits
from onedc_jax.models.quantize import CODEBOOK_SIZE
from onedc_jax.training import losses
from onedc_jax.training.state import (
    Stage,
    TrainState,
    gradient_update,
    init_state,
    make_optimizer,
    merge,
    partition,
)


def make(config) -> Stage:
    """The stage of a configuration such as configs/stage1.py's."""
    settings = config.model.to_dict()
    model = build(settings)
    optimizer = make_optimizer(config)

    def init() -> tuple[TrainState, dict]:
        params = initial_params(model, config.seed, config.init, config.y_gain)
        trainable, frozen = partition(params, config.trainable)
        return init_state(trainable, optimizer), dict(
            model=frozen, lpips=load_lpips(config.lpips.net)
        )

    def loss(params, frozen, batch, key, step):
        image = losses.from_uint8(batch["image"])
        out = model.apply({"params": merge(params, frozen["model"])}, image)
        decoded = out["decoded"]
        noise_key, shift_key = jax.random.split(key)
        noise = jax.random.uniform(noise_key, out["residual"].shape, minval=-0.5, maxval=0.5)
        pixels = image.shape[0] * image.shape[1] * image.shape[2]
        bpp = training_bits(out["residual"], out["scales"], noise).sum() / pixels
        weight = losses.ramp(step, config.rate.weight, config.rate.ramp)
        pair = map(losses.to_unit, losses.shifted(shift_key, decoded, image))
        distance = lpips(frozen["lpips"], *pair, **config.lpips).mean()
        terms = dict(
            l1=losses.l1(decoded, image),
            lpips=distance,
            bpp=bpp,
            latent=jnp.square(out["x0"] - out["latent"]).mean(),
            whiteness=losses.whiteness(out["z"]),
        )
        total = config.l1 * terms["l1"] + terms["lpips"] + weight * bpp
        total += config.latent * terms["latent"] + config.whiteness * terms["whiteness"]
        return total, terms | dict(
            loss=total, psnr=losses.psnr(decoded, image), tokens_used=_tokens_used(out["z_indices"])
        )

    def panel(state, frozen, batch):
        image = losses.from_uint8(batch["image"])
        params = {"params": merge(state.ema, frozen["model"])}
        return dict(original=image, decoded=model.apply(params, image)["image"])

    def export(state, frozen):
        return merge(state.ema, frozen["model"])

    update = gradient_update(loss, optimizer, config.ema)
    return Stage(init, update, panel, export, settings)


def initial_params(model: OneDC, seed: int, sources, y_gain: float = 1.0) -> dict:
    """Random parameters, replaced subtree by subtree by those of model directories.

    A random codec's y is `y_gain` times as large as its kernels make it: below the rounding step it
    would say nothing, and the decoder would learn not to listen.

    `sources` maps "vae", "codec" or "generator" to a path or None. Raises ModelError where a source
    lacks the subtree or has other shapes.
    """
    params = random_params(param_shapes(model), seed)
    last = params["codec"]["analysis"]["trans_coding_4"]
    for name in {"dw_out", "dw_shortcut"} & last.keys():  # no shortcut where the widths agree
        last[name]["kernel"] *= np.float32(y_gain)
    for part, path in sources.items():
        if not path:
            continue
        _, loaded = load_model(resolve(path))
        if part not in loaded:
            raise ModelError(f"{path}: holds no {part!r}, only {', '.join(sorted(loaded))}")
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        if shapes(loaded[part]) != shapes(params[part]):
            raise ModelError(
                f"{path}: its {part!r} has other layers or widths than config.model.{part}"
            )
        params[part] = loaded[part]
    return params


def _tokens_used(z_indices) -> jax.Array:
    """How many different tokens the batch holds: a hyperprior that collapses shows here."""
    return (jnp.bincount(z_indices.ravel(), length=CODEBOOK_SIZE) > 0).sum()
