"""The latent diffusion model: the score of stage 2, and what stage 1's generator may begin as.

Trained as Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022):
predict the noise on a VAE's latent, at any timestep, with or without a caption.
"""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import OneDCError
from onedc_jax.models.clip import TextEncoder, empty_caption
from onedc_jax.models.diffusion import add_noise, alphas_cumprod, x0_from_eps
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.pixels import from_uint8
from onedc_jax.models.unet import UNet
from onedc_jax.models.vae import VAE
from onedc_jax.training.sources import check_scale, load_part, replaced
from onedc_jax.training.state import Stage, check_begun, model_params, one_loss, partition

Array = jax.Array

_PANEL_TIMES = (250, 500, 750)
_PANEL_STEPS = 8  # of sampling


def make(config) -> Stage:
    """The stage of a configuration such as configs/teacher.py's."""
    if not config.init.vae:
        raise OneDCError("init.vae: name the folder of the VAE whose latents are learned")
    settings = config.model.to_dict()
    vae_fields, vae_params = load_part(config.init.vae, "vae")
    vae = VAE(**vae_fields | dict(dtype=config.dtype))
    unet = UNet(**settings["unet"] | dict(dtype=config.dtype, remat=config.remat))
    text = None
    if config.data.captions:
        text = TextEncoder(**settings["text"] | dict(dtype=config.dtype))
    if unet.out_channels != vae.latent_channels:
        raise OneDCError(
            f"model.unet.out_channels={unet.out_channels}: the latents of {config.init.vae} have "
            f"{vae.latent_channels} channels"
        )
    modules, alphas = dict(unet=unet, text=text), alphas_cumprod()

    @functools.cache  # tracing takes seconds
    def shapes() -> dict:
        latent = jax.ShapeDtypeStruct((1, 64, 64, vae.latent_channels), jnp.float32)
        width = text.width if text else config.model.context
        context = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, text.length if text else 1), jnp.int32)
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        found = {"unet": shapes_of(unet, latent, t, context)}
        return found | ({"text": shapes_of(text, ids)} if text else {})

    def begin() -> tuple[dict, dict]:
        params = random_params(shapes(), config.seed)
        for name in params:
            path, reshaped = config.init[name], config.init.reshaped
            params[name] = replaced(params[name], modules[name], name, path, reshaped=reshaped)
        check_scale(config.init.unet, config.model.latent_scale)
        trainable, frozen = partition(params, config.trainable)
        return trainable, dict(model=frozen, vae=vae_params)

    def encode(frozen, image):
        return vae.apply({"params": frozen["vae"]}, image, method=VAE.encode)

    def context_of(params, batch, keep: Array) -> Array:
        """What the U-Net looks at: captions, empty ones where `keep`, bool [B], is false."""
        if text is None:
            return jnp.zeros((len(keep), 1, config.model.context))
        empty = empty_caption(text.vocabulary, batch["caption"].shape[1])
        ids = jnp.where(keep[:, None], batch["caption"], empty[None])
        return text.apply({"params": params["text"]}, ids)[0]

    def loss(params, frozen, batch, key, step):
        params = model_params(params, frozen)
        sample_key, noise_key, time_key, keep_key = jax.random.split(key, 4)
        posterior = encode(frozen, from_uint8(batch["image"]))
        latent = posterior.sample(sample_key) * config.model.latent_scale
        noise = jax.random.normal(noise_key, latent.shape)
        t = jax.random.randint(time_key, latent.shape[:1], 0, len(alphas))
        keep = ~jax.random.bernoulli(keep_key, config.caption_drop, t.shape)
        noisy = add_noise(latent, noise, t, alphas)
        eps, _ = unet.apply({"params": params["unet"]}, noisy, t, context_of(params, batch, keep))
        total = jnp.square(eps - noise).mean()
        return total, dict(loss=total, latent_std=latent.std())

    def panel(params, frozen, batch):
        """Latents as seen through three strengths of noise, and new ones out of noise alone."""
        image = from_uint8(batch["image"])
        count = len(image)
        context = context_of(params, batch, jnp.ones(count, bool))
        denoise = lambda x, t, context: unet.apply({"params": params["unet"]}, x, t, context)[0]

        latent = encode(frozen, image).mean * config.model.latent_scale
        noise = jax.random.normal(jax.random.key(0), latent.shape)
        times = np.repeat(_PANEL_TIMES, count)
        many = lambda x: jnp.tile(x, (len(_PANEL_TIMES), *[1] * (x.ndim - 1)))
        noisy = add_noise(many(latent), many(noise), times, alphas)
        seen = x0_from_eps(noisy, denoise(noisy, times, many(context)), times, alphas)
        new = sample(lambda x, t: denoise(x, t, context), noise, _PANEL_STEPS)

        latents = jnp.concatenate([seen, new]) / config.model.latent_scale
        decoded = vae.apply({"params": frozen["vae"]}, latents, method=VAE.decode)
        names = [*(f"noise_{t}" for t in _PANEL_TIMES), "sampled"]
        images = decoded.reshape(len(names), *image.shape)
        return dict(original=image) | dict(zip(names, images, strict=True))

    def check() -> list[str]:
        for part in shapes():
            check_begun(shapes(), config.trainable, part, config.init[part], part)
        unheard = config.init.text and not text
        return ["config.init.text: without config.data.captions nothing reads it"] * bool(unheard)

    settings.pop("context" if text else "text")
    known = dict(model=settings, block=vae.stride, check=check)
    return one_loss(config, begin, loss, panel, **known)


def sample(denoise, noise: Array, steps: int) -> Array:
    """Latents float32 [B, h, w, C] out of noise, by DDIM without new noise.

    `denoise(x, t)`, t int32 [1], predicts the noise of x. After Song et al., "Denoising Diffusion
    Implicit Models" (2021), at `steps` timesteps from the last one on.
    """
    # One more ā than there are timesteps: 1 of the clean latent, at index 1000.
    alphas = np.append(alphas_cumprod(), np.float32(1.0))
    times = np.linspace(len(alphas) - 2, 0, steps, endpoint=False).round().astype(np.int32)
    pairs = np.array(list(pairwise([*times, len(alphas) - 1])), np.int32)

    def step(x: Array, pair: Array) -> tuple[Array, None]:
        t, after = pair[:1], pair[1:]
        eps = denoise(x, t)
        return add_noise(x0_from_eps(x, eps, t, alphas), eps, after, alphas), None

    return jax.lax.scan(step, noise, pairs)[0]
