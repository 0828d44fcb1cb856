"""Stage 1: codec, hyperprior and generator together, on pixels and rate (paper, stage 1)."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import OneDCError
from onedc_jax.models import transform
from onedc_jax.models.init import random_params
from onedc_jax.models.lpips import load_lpips
from onedc_jax.models.onedc import BLOCK, PARTS, OneDC, build, param_shapes
from onedc_jax.models.pixels import from_uint8
from onedc_jax.models.prior import training_bits
from onedc_jax.models.quantize import CODEBOOK_SIZE
from onedc_jax.models.unet import UNet
from onedc_jax.training import distillation, losses
from onedc_jax.training.sources import adapted_unet, check_scale, replaced
from onedc_jax.training.state import (
    Stage,
    check_adapted,
    check_begun,
    merge,
    one_loss,
    partition,
)
from onedc_jax.training.texture import Texture

Array = jax.Array


def make(config) -> Stage:
    """The stage of a configuration such as configs/stage1.py's."""
    settings = config.model.to_dict()
    model = build(settings, dtype=config.dtype, remat=config.remat)
    semantics = distillation.load(config)
    bits_of = _proxy(config.rate.proxy)
    texture = Texture(**config.texture)
    textured = texture.weight or texture.critic

    @cache  # tracing takes seconds
    def shapes() -> dict:
        return param_shapes(model)

    def begin() -> tuple[dict, dict]:
        given = dict(y_gain=config.y_gain, span=config.rate.span)
        params = initial_params(model, shapes(), config.seed, config.init, **given)
        trainable, frozen = partition(params, config.trainable)
        frozen = dict(model=frozen)
        if config.perceptual:
            frozen["lpips"] = load_lpips(config.lpips.net)
        if textured:
            frozen["texture"] = texture.load()
        if texture.critic:
            trainable["critic"] = texture.init_critic(config.seed)
        if semantics:
            trainable["head"] = semantics.init_head(model.codec.semantic, config.seed)
            frozen["tokenizer"] = semantics.params
        return trainable, frozen

    def params_of(trainable, frozen) -> dict:
        """The model's, without those of the critic and the head, which only training has."""
        return merge({part: trainable[part] for part in PARTS}, frozen["model"])

    def prices(rate, step) -> tuple[Array | float, Array]:
        """What L1 and a bit a pixel cost at rates [B]."""
        fidelity, bits = config.l1, losses.ramp(step, config.rate.weight, config.rate.ramp)
        if model.codec.rates == 1:
            return fidelity, bits
        return fidelity * config.l1_span**rate, bits * config.rate.span ** (1.0 - rate)

    def loss(params, frozen, batch, key, step, sampled=config.sampled):
        image = from_uint8(batch["image"])
        keys = jax.random.split(key, 7)
        noise_key, shift_key, rate_key, alone_key, texture_key, origin_key, latent_key = keys
        rate = losses.spread(rate_key, len(image))
        alone = jax.random.bernoulli(alone_key, config.alone, (len(image),))
        origin = losses.origins(origin_key, len(image))
        given = alone if config.alone else None, origin, latent_key if sampled else None
        out = model.apply({"params": params_of(params, frozen)}, image, rate, *given)
        decoded = out["decoded"]
        bits = bits_of(out, noise_key).sum((1, 2, 3))
        # Of images made from their tokens alone no y is sent.
        bpp = jnp.where(alone, 0.0, bits) / (image.shape[1] * image.shape[2])  # [B]
        fidelity, price = prices(rate, step)
        l1 = jax.vmap(losses.l1)(decoded, image)  # [B]
        terms = dict(
            l1=l1.mean(),
            bpp=bpp.mean(),
            coarse=losses.l1(*(losses.pooled(x, 16) for x in (decoded, image))),
            chroma=losses.chroma(decoded, image),
            motif=losses.motif(decoded, image, 32),
            latent=jnp.square(out["x0"] - out["latent"]).mean(),
            whiteness=losses.whiteness(out["z"].astype(jnp.float32)),
        )
        total = (fidelity * l1 + price * bpp).mean()
        for name in ("coarse", "chroma", "motif", "latent", "whiteness"):
            total += config[name] * terms[name]
        # Tokens alone hold no detail: asked for it, the network would draw one texture everywhere.
        seen = jnp.where(alone[:, None, None, None], image, decoded)
        if config.perceptual:
            terms["lpips"] = losses.perceptual(
                shift_key, frozen["lpips"], seen, image, **config.lpips
            )
            total += config.perceptual * terms["lpips"]
        if textured:
            critic = params.get("critic")
            added, found = texture(critic, frozen["texture"], texture_key, seen, image)
            terms |= found
            total += added
        if semantics:
            terms |= semantics(params["head"], frozen["tokenizer"], image, out["tokens"])
            meaning = terms["ce"] + config.distillation.mse * terms["semantic_mse"]
            total += config.distillation.weight * meaning
        return total, terms | dict(
            loss=total, psnr=losses.psnr(decoded, image), tokens_used=_tokens_used(out["z_indices"])
        )

    def panel(params, frozen, batch):
        image, count = from_uint8(batch["image"]), len(batch["image"])
        images, rates = (jnp.concatenate([x, x]) for x in (image, jnp.linspace(0.0, 1.0, count)))
        alone = jnp.arange(2 * count) >= count
        made = model.apply({"params": params}, images, rates, alone)["image"]
        return dict(original=image, decoded=made[:count], tokens_alone=made[count:])

    def check() -> list[str]:
        begun = config.init
        for part in ("vae", "codec"):
            check_begun(shapes(), config.trainable, part, begun[part], part)
        generator = begun.generator or begun.unet
        check_begun(shapes(), config.trainable, "generator", generator, "unet")
        check_adapted(model, config.trainable, "config.model.generator.unet.rank=64 adds it")
        wanted = config.distillation.weight and not semantics
        return ["no config.distillation.tokenizer: without semantic distillation"] * bool(wanted)

    known = dict(model=settings, block=BLOCK, check=check, params_of=params_of)
    # The codec itself sees the mean.
    return one_loss(config, begin, loss, panel, measure=partial(loss, sampled=False), **known)


def initial_params(
    model: OneDC, shapes: dict, seed: int, sources, *, y_gain: float = 1.0, span: float = 1.0
) -> dict:
    """Random parameters, replaced subtree by subtree by those of model folders.

    `shapes` are the model's, see `param_shapes`.

    A random codec's y is `y_gain` times as large as its kernels make it: below the rounding step it
    would say nothing, and the decoder would learn not to listen. Where it has a knob, the gains
    begin as λ does, which is `span` times larger at the lowest rate: the best rounding step is as
    the root of λ.

    `sources` maps "vae", "codec", "generator" and "unet" to a path or "": the last is a diffusion
    U-Net that a generator begins as, see `sources.adapted_unet`. "reshaped" is as in
    `sources.replaced`. Raises ModelError where a folder does not fit, and OneDCError where there is
    both a generator and a U-Net to begin with.
    """
    params = random_params(shapes, seed)
    if model.vae.transform:
        transform.begin_autoencoder(params["vae"])
    if model.codec.transform:
        transform.begin_codec(params["codec"], params["generator"], y_gain)
    else:
        last = params["codec"]["analysis"]["trans_coding_4"]
        for name in {"dw_out", "dw_shortcut"} & last.keys():  # no shortcut where the widths agree
            last[name]["kernel"] *= np.float32(y_gain)
    if "knob" in params["codec"]:
        knob = params["codec"]["knob"]
        gains = 0.5 * np.log(span) * np.linspace(-1.0, 0.0, len(knob["gain"]), dtype=np.float32)
        knob["gain"] += gains[:, None]
        knob["inverse"] -= gains[:, None]
    if sources["unet"] and sources["generator"]:
        raise OneDCError("init.unet and init.generator: the generator can begin as one of them")
    for part in ("unet", "generator"):
        check_scale(sources[part], model.latent_scale)
    unet = UNet(**model.generator.unet)
    params["generator"]["unet"] = adapted_unet(params["generator"]["unet"], unet, sources["unet"])
    for part in PARTS:
        own, reshaped = (params[part], getattr(model, part)), sources["reshaped"]
        params[part] = replaced(*own, part, sources[part], reshaped=reshaped)
    return params


def _proxy(name: str) -> Callable:
    """What stands for the bits of y in training: `(out, key) -> [B, H/16, W/16, C]`."""

    def noise(out, key):
        u = jax.random.uniform(key, out["residual"].shape, minval=-0.5, maxval=0.5)
        return training_bits(out["residual"], out["scales"], u)

    def rounding(out, key):
        return training_bits(out["symbols"], out["scales"], 0.0)

    proxies = dict(noise=noise, rounding=rounding)
    if name not in proxies:
        raise OneDCError(f"rate.proxy={name!r}: expected {' or '.join(proxies)}")
    return proxies[name]


def _tokens_used(z_indices: Array) -> Array:
    """How many different tokens the batch holds: a hyperprior that collapses shows here."""
    return (jnp.bincount(z_indices.ravel(), length=CODEBOOK_SIZE) > 0).sum()
