"""The KL autoencoder, on L1 + LPIPS + a little KL: the first link of the chain from scratch."""

import functools

import jax
import jax.numpy as jnp

from onedc_jax.models import transform
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.lpips import load_lpips
from onedc_jax.models.pixels import from_uint8
from onedc_jax.models.vae import VAE
from onedc_jax.training import losses
from onedc_jax.training.state import Stage, check_begun, model_params, one_loss, partition


def make(config) -> Stage:
    """The stage of a configuration such as configs/vae.py's."""
    settings = config.model.vae.to_dict()
    model = VAE(**settings | dict(dtype=config.dtype, remat=config.remat))

    @functools.cache  # tracing takes seconds
    def shapes() -> dict:
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        return {"vae": shapes_of(model, image, jax.random.key(0))}

    def begin() -> tuple[dict, dict]:
        params = random_params(shapes(), config.seed)
        if model.transform:
            transform.begin_autoencoder(params["vae"])
        # The posterior begins narrow: noise as large as the latents would drown the image for long.
        params["vae"]["quant_conv"]["bias"][model.latent_channels :] = -6.0
        trainable, frozen = partition(params, config.trainable)
        return trainable, dict(model=frozen, lpips=load_lpips(config.lpips.net))

    def loss(params, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        params = model_params(params, frozen)["vae"]
        sample_key, shift_key = jax.random.split(key)
        decoded, posterior = model.apply({"params": params}, image, sample_key)
        terms = dict(
            l1=losses.l1(decoded, image),
            lpips=losses.perceptual(shift_key, frozen["lpips"], decoded, image, **config.lpips),
            kl=losses.kl(*posterior),
        )
        total = config.l1 * terms["l1"] + terms["lpips"] + config.kl * terms["kl"]
        latent_std = posterior.mean.std()
        return total, terms | dict(
            loss=total, psnr=losses.psnr(decoded, image), latent_std=latent_std
        )

    def panel(params, frozen, batch):
        image, params = from_uint8(batch["image"]), {"params": params["vae"]}
        latent = model.apply(params, image, method=VAE.encode).mean
        return dict(original=image, decoded=model.apply(params, latent, method=VAE.decode))

    def check() -> list[str]:
        check_begun(shapes(), config.trainable, "vae")
        return []

    known = dict(model={"vae": settings}, block=model.stride, check=check)
    return one_loss(config, begin, loss, panel, **known)
