"""A diffusion model's prediction, with classifier-free guidance where there are captions."""

from typing import Any

import jax
import jax.numpy as jnp

from onedc_jax.models.unet import UNet

Array = jax.Array


def guided_eps(
    unet: UNet,
    params: Any,
    sample: Array,
    t: Array,
    context: Array,
    empty: Array | None = None,
    scale: float = 1.0,
) -> Array:
    """The noise in `sample`, float32 [B, h, w, C], drawn away from what no caption would give.

    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022; here without + scale·(with -
    without).

    Args:
      unet, params: the diffusion model.
      sample: diffused latents [B, h, w, C].
      t: their timesteps, int [B].
      context: of each sample, [B, N, D].
      empty: [1 or B, N, D], the context of no caption; None: the prediction as it is.
      scale: 1 is no guidance.
    """
    if empty is None:
        return unet.apply({"params": params}, sample, t, context)[0]
    empty = jnp.broadcast_to(empty, context.shape).astype(context.dtype)
    twice = lambda x: jnp.concatenate([x, x])
    both = jnp.concatenate([empty, context])
    eps, _ = unet.apply({"params": params}, twice(sample), twice(t), both)
    without, given = jnp.split(eps, 2)
    return without + scale * (given - without)


def context_width(params: Any) -> int:
    """Of the context D that a `UNet` with these parameters looks at."""
    block = params["mid_block"]["attentions_0"]["transformer_blocks_0"]
    return block["attn2"]["to_k"]["kernel"].shape[0]
