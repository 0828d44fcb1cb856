"""The VQGAN tokenizer, on L1 + LPIPS and what keeps its codes near the encoder and in use.

It becomes the teacher of stage 1's semantic distillation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.lpips import load_lpips
from onedc_jax.models.pixels import from_uint8, to_unit
from onedc_jax.models.vqgan import VQGAN
from onedc_jax.training import losses
from onedc_jax.training.state import Stage, check_begun, model_params, one_loss, partition

# Standard deviation of the first codes, about that of the encoder's first outputs: codes that are
# all nearer to zero than to any output would have one winner.
_CODE_STD = 0.6


def make(config) -> Stage:
    """The stage of a configuration such as configs/tokenizer.py's."""
    settings = config.model.tokenizer.to_dict()
    model = VQGAN(**settings | dict(dtype=config.dtype))

    @functools.cache  # tracing takes seconds
    def shapes() -> dict:
        image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
        return {"tokenizer": shapes_of(model, image)}

    def begin() -> tuple[dict, dict]:
        params = random_params(shapes(), config.seed)
        codes = params["tokenizer"]["quantize"]["embedding"]
        codes["embedding"] *= np.float32(_CODE_STD * model.codes**0.5)
        trainable, frozen = partition(params, config.trainable)
        return trainable, dict(model=frozen, lpips=load_lpips(config.lpips.net))

    def loss(params, frozen, batch, key, step):
        image = from_uint8(batch["image"])
        params = {"params": model_params(params, frozen)["tokenizer"]}
        decoded, tokens = model.apply(params, to_unit(image))
        decoded = 2 * decoded - 1
        codebook = model.apply(params, jnp.arange(model.codes), method=VQGAN.lookup)
        hidden = tokens.hidden.reshape(-1, model.features)
        fixed = jax.lax.stop_gradient
        terms = dict(
            l1=losses.l1(decoded, image),
            lpips=losses.perceptual(key, frozen["lpips"], decoded, image, **config.lpips),
            codebook=jnp.square(tokens.quantized - fixed(tokens.hidden)).mean(),
            commitment=jnp.square(tokens.hidden - fixed(tokens.quantized)).mean(),
            disuse=losses.disuse(hidden, codebook, config.temperature),
        )
        total = terms["lpips"]
        for name in ("l1", "codebook", "commitment", "disuse"):
            total += config[name] * terms[name]
        counts = jnp.bincount(tokens.indices.ravel(), length=model.codes)
        return total, terms | dict(
            loss=total,
            psnr=losses.psnr(decoded, image),
            perplexity=jnp.exp(losses.entropy(counts / counts.sum())),
            codes_used=(counts > 0).sum(),
        )

    def panel(params, frozen, batch):
        image = from_uint8(batch["image"])
        decoded, _ = model.apply({"params": params["tokenizer"]}, to_unit(image))
        return dict(original=image, decoded=2 * decoded - 1)

    def check() -> list[str]:
        check_begun(shapes(), config.trainable, "tokenizer")
        return []

    known = dict(model={"tokenizer": settings}, block=model.stride, check=check)
    return one_loss(config, begin, loss, panel, **known)
