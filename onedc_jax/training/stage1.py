"""Stage 1: codec, hyperprior and generator together, on pixels and rate (paper, stage 1)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import OneDCError
from onedc_jax.models import transform
from onedc_jax.models.init import random_params
from onedc_jax.models.lpips import load_lpips, lpips
from onedc_jax.models.onedc import BLOCK, OneDC, build, param_shapes
from onedc_jax.models.pixels import from_uint8, to_unit
from onedc_jax.models.prior import training_bits
from onedc_jax.models.quantize import CODEBOOK_SIZE
from onedc_jax.training import distillation, losses
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.training.sources import adapted_unet, replaced
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
from onedc_jax.training.texture import Texture

_PARTS = ("vae", "codec", "generator")


def make(config) -> Stage:
    """The stage of a configuration such as configs/stage1.py's."""
    settings = config.model.to_dict()
    computed = dict(dtype=config.dtype, remat=config.remat)
    model = build(settings | {part: settings[part] | computed for part in _PARTS})
    semantics = distillation.load(config)
    optimizer = make_optimizer(config)
    bits_of = _proxy(config.rate.proxy)
    texture = Texture(**config.texture)
    textured = texture.weight or texture.critic

    def init() -> tuple[TrainState, dict]:
        params = initial_params(
            model, config.seed, config.init, y_gain=config.y_gain, span=config.rate.span
        )
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
        return init_state(trainable, optimizer, config.ema), frozen

    def whole(trainable, frozen) -> tuple[dict, dict]:
        """The parameters of the model, and those of what only training has, by name."""
        helpers = {name: part for name, part in trainable.items() if name not in _PARTS}
        parts = {name: part for name, part in trainable.items() if name in _PARTS}
        return merge(parts, frozen["model"]), helpers

    def loss(params, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        params, helpers = whole(params, frozen)
        keys = jax.random.split(key, 7)
        noise_key, shift_key, rate_key, alone_key, texture_key, origin_key, latent_key = keys
        rate = losses.spread(rate_key, len(image))
        alone = jax.random.bernoulli(alone_key, config.alone, (len(image),))
        origin = losses.origins(origin_key, len(image))
        given = alone if config.alone else None, origin, latent_key if config.sampled else None
        out = model.apply({"params": params}, image, rate, *given)
        decoded = out["decoded"]
        bits = bits_of(out, noise_key).sum((1, 2, 3))
        # Of images made from their tokens alone no y is sent.
        bpp = jnp.where(alone, 0.0, bits) / (image.shape[1] * image.shape[2])  # [B]
        weight, fidelity = losses.ramp(step, config.rate.weight, config.rate.ramp), config.l1
        if model.codec.rates > 1:
            weight *= config.rate.span ** (1.0 - rate)
            fidelity *= config.l1_span**rate
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
        total = (fidelity * l1 + weight * bpp).mean()
        for name in ("coarse", "chroma", "motif", "latent", "whiteness"):
            total += config[name] * terms[name]
        # Tokens alone hold no detail: asked for it, the network would draw one texture everywhere.
        seen = jnp.where(alone[:, None, None, None], image, decoded)
        if config.perceptual:
            pair = map(to_unit, losses.shifted(shift_key, seen, image))
            terms["lpips"] = lpips(frozen["lpips"], *pair, **config.lpips).mean()
            total += config.perceptual * terms["lpips"]
        if textured:
            critic = helpers.get("critic")
            added, found = texture(critic, frozen["texture"], texture_key, seen, image)
            terms |= found
            total += added
        if semantics:
            terms |= semantics(helpers["head"], frozen["tokenizer"], image, out["tokens"])
            meaning = terms["ce"] + config.distillation.mse * terms["semantic_mse"]
            total += config.distillation.weight * meaning
        return total, terms | dict(
            loss=total, psnr=losses.psnr(decoded, image), tokens_used=_tokens_used(out["z_indices"])
        )

    def panel(state, frozen, batch):
        image = from_uint8(batch["image"])
        params = {"params": whole(state.averaged, frozen)[0]}
        rate = jnp.linspace(0.0, 1.0, len(image))
        out = model.apply(params, image, rate)
        tokens = model.apply(params, out["z_indices"], rate, method=OneDC.reconstruct_z_only)
        return dict(original=image, decoded=out["image"], tokens_alone=tokens)

    def export(state, frozen):
        return whole(state.averaged, frozen)[0]

    def check() -> list[str]:
        shapes, begun = param_shapes(model), config.init
        for part in ("vae", "codec"):
            check_begun(shapes, config.trainable, part, begun[part], part)
        generator = begun.generator or begun.unet
        check_begun(shapes, config.trainable, "generator", generator, "unet")
        wanted = config.distillation.weight and not semantics
        return ["no config.distillation.tokenizer: without semantic distillation"] * bool(wanted)

    updates = dict(model=gradient_update(loss, optimizer, config.ema, config.accumulate))
    return Stage(
        *(init, updates, panel, export, settings),
        measure=measured(loss, config.accumulate),
        block=BLOCK,
        check=check,
    )


def initial_params(
    model: OneDC, seed: int, sources, *, y_gain: float = 1.0, span: float = 1.0
) -> dict:
    """Random parameters, replaced subtree by subtree by those of model folders.

    A random codec's y is `y_gain` times as large as its kernels make it: below the rounding step it
    would say nothing, and the decoder would learn not to listen. Where it has a knob, the gains
    begin as λ does, which is `span` times larger at the lowest rate: the best rounding step is as
    the root of λ.

    `sources` maps "vae", "codec", "generator" and "unet" to a path or "": the last is a diffusion
    U-Net that a generator begins as, see `sources.adapted_unet`. "reshaped" is as in
    `sources.replaced`. Raises ModelError where a folder does not fit, and OneDCError where there is
    both a generator and a U-Net to begin with.
    """
    params = random_params(param_shapes(model), seed)
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
    params["generator"]["unet"] = adapted_unet(params["generator"]["unet"], sources["unet"])
    for part in _PARTS:
        reshaped = sources["reshaped"]
        params[part] = replaced(params[part], part, sources[part], reshaped=reshaped)
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


def _tokens_used(z_indices) -> jax.Array:
    """How many different tokens the batch holds: a hyperprior that collapses shows here."""
    return (jnp.bincount(z_indices.ravel(), length=CODEBOOK_SIZE) > 0).sum()
