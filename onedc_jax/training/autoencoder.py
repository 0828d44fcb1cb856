"""The KL autoencoder, on L1 + LPIPS + a little KL: the first link of the chain from scratch."""

import functools

import jax
import jax.numpy as jnp

from onedc_jax.models import transform
from onedc_jax.models.init import random_params
from onedc_jax.models.lpips import load_lpips, lpips
from onedc_jax.models.pixels import from_uint8, to_unit
from onedc_jax.models.vae import VAE
from onedc_jax.training import losses
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.training.state import (
    Stage,
    TrainState,
    check_begun,
    gradient_update,
    init_state,
    measured,
    merge,
    partition,
)


def make(config) -> Stage:
    """The stage of a configuration such as configs/vae.py's."""
    settings = config.model.vae.to_dict()
    model = VAE(**settings | dict(dtype=config.dtype, remat=config.remat))
    optimizer = make_optimizer(config)

    @functools.cache  # tracing takes seconds
    def shapes() -> dict:
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        key = jax.random.key(0)
        return {"vae": jax.eval_shape(model.init, key, image, key)["params"]}

    def init() -> tuple[TrainState, dict]:
        params = random_params(shapes(), config.seed)
        if model.transform:
            transform.begin_autoencoder(params["vae"])
        # The posterior begins narrow: noise as large as the latents would drown the image for long.
        params["vae"]["quant_conv"]["bias"][model.latent_channels :] = -6.0
        trainable, frozen = partition(params, config.trainable)
        return init_state(trainable, optimizer, config.ema), dict(
            model=frozen, lpips=load_lpips(config.lpips.net)
        )

    def loss(params, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        params = merge(params, frozen["model"])["vae"]
        sample_key, shift_key = jax.random.split(key)
        decoded, posterior = model.apply({"params": params}, image, sample_key)
        pair = map(to_unit, losses.shifted(shift_key, decoded, image))
        terms = dict(
            l1=losses.l1(decoded, image),
            lpips=lpips(frozen["lpips"], *pair, **config.lpips).mean(),
            kl=losses.kl(*posterior),
        )
        total = config.l1 * terms["l1"] + terms["lpips"] + config.kl * terms["kl"]
        latent_std = posterior.mean.std()
        return total, terms | dict(
            loss=total, psnr=losses.psnr(decoded, image), latent_std=latent_std
        )

    def panel(state, frozen, batch):
        image = from_uint8(batch["image"])
        params = {"params": merge(state.averaged, frozen["model"])["vae"]}
        latent = model.apply(params, image, method=VAE.encode).mean
        return dict(original=image, decoded=model.apply(params, latent, method=VAE.decode))

    def export(state, frozen):
        return merge(state.averaged, frozen["model"])

    def check() -> list[str]:
        check_begun(shapes(), config.trainable, "vae")
        return []

    update = gradient_update(loss, optimizer, config.ema, config.accumulate)
    return Stage(
        *(init, dict(model=update), panel, export, {"vae": settings}),
        measure=measured(loss, config.accumulate),
        block=model.stride,
        check=check,
    )
