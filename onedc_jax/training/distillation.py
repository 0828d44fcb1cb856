"""The semantic distillation of stage 1: what the tokens of 64×64 pixels mean, learned from a VQGAN.

A head, the student, predicts the teacher's tokens from the generator's context. Its loss reaches
the adaptor and the hyperprior, and so what the 14 bits of a block say.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.heads import SemanticHead
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.pixels import to_unit
from onedc_jax.models.vqgan import VQGAN, Tokens
from onedc_jax.training import losses
from onedc_jax.training.sources import cast, load_part

Array = jax.Array

_STRIDE = 32  # pixels of the image for each of the teacher's tokens: 16 at half the size


class Distillation(NamedTuple):
    """The student and the teacher, and the teacher's parameters, which do not train."""

    head: SemanticHead
    tokenizer: VQGAN
    params: Any

    def init_head(self, width: int, seed: int) -> dict:
        """The student's first parameters, for a context of `width` channels."""
        window = self.head.window
        tokens = jax.ShapeDtypeStruct((1, window, window, width), jnp.float32)
        return random_params(shapes_of(self.head, tokens), seed)

    def __call__(self, head: dict, tokenizer: dict, image: Array, tokens: Array) -> dict:
        """The terms of `semantic_terms`.

        Args:
          head, tokenizer: parameters.
          image: float32 [B, H, W, 3] in [-1, 1].
          tokens: the generator's context [B, H/64, W/64, C].
        """
        teacher = {"params": tokenizer}
        target = self.tokenizer.apply(teacher, teacher_input(image), method=VQGAN.encode)
        codes = jnp.arange(self.tokenizer.codes)
        codebook = self.tokenizer.apply(teacher, codes, method=VQGAN.lookup)
        logits = self.head.apply({"params": head}, tokens)  # [B, H/32, W/32, codes]
        return semantic_terms(logits, target, codebook)


def load(config) -> Distillation | None:
    """The distillation that a stage's configuration asks for; None if it names no tokenizer.

    The teacher is what config.distillation.tokenizer holds, computed in config.dtype and stored in
    it, but for the codebook. Raises ModelError and OneDCError if the tokenizer or the training's
    crops do not fit.
    """
    wanted = config.distillation
    if not wanted.tokenizer:
        return None
    fields, params = load_part(wanted.tokenizer, "tokenizer")
    tokenizer = VQGAN(**fields | dict(dtype=config.dtype))
    reduction = 2 ** len(tokenizer.widths)  # of the image, which is halved before
    if reduction != _STRIDE:
        raise ModelError(
            f"{wanted.tokenizer}: its tokenizer has a token for {reduction // 2} pixels a side; "
            f"the distillation needs one for {_STRIDE // 2}"
        )
    head = SemanticHead(codes=tokenizer.codes, dtype=config.dtype, **wanted.head)
    for size in _sizes(config):
        if size % (_STRIDE * head.window):
            raise OneDCError(
                f"crops of {size} pixels: with config.distillation.head.window={head.window} they "
                f"must be multiples of {_STRIDE * head.window}"
            )
    params = {
        name: part if name == "quantize" else cast(part, config.dtype)
        for name, part in params.items()
    }
    return Distillation(head, tokenizer, params)


def _sizes(config) -> set[int]:
    """The sides of the images that are trained on, and of those that are measured."""
    views = {view.get("resize") or view["crop"] for view in config.data.views}
    measured = {config.data.crop} if config.validation_batches or not views else set()
    return views | measured


def teacher_input(image: Array) -> Array:
    """Image [B, H, W, 3] in [-1, 1] -> [B, H/2, W/2, 3] in [0, 1].

    Bilinear and not antialiased, with pixels' centres at ½ (as PyTorch's `align_corners=False`):
    at exactly half the size that is the mean of 2×2 pixels.
    """
    return to_unit(losses.pooled(image, 2))


def semantic_terms(logits: Array, target: Tokens, codebook: Array) -> dict[str, Array]:
    """How far a student is from its teacher.

    Args:
      logits: float32 [B, h, w, codes].
      target: the teacher's tokens at the same positions.
      codebook: float32 [codes, D].

    Returns:
      `ce`, the mean cross-entropy to the teacher's tokens in nats; `semantic_mse`, the mean squared
      difference between the codes that the student expects and the teacher's; `accuracy`, the share
      of positions at which the likeliest token is the teacher's.
    """
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, target.indices[..., None], axis=-1)
    expected = jnp.einsum("bhwk,kd->bhwd", jnp.exp(log_p), codebook)
    return dict(
        ce=-chosen.mean(),
        semantic_mse=jnp.square(expected - target.quantized).mean(),
        accuracy=(logits.argmax(-1) == target.indices).mean(),
    )
