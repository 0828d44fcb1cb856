"""The one-step generator: features and tokens to a clean latent, and the merging of its LoRA."""

from collections.abc import Callable, Mapping
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.diffusion import alphas_cumprod, x0_from_eps
from onedc_jax.models.layers import PRECISE, Conv, GroupNorm
from onedc_jax.models.noise import Noise
from onedc_jax.models.unet import UNet

Array = jax.Array


class Reduction(nn.Module):
    """[B, h, w, C] -> [B, h, w, features], float32: a residual block that narrows."""

    features: int
    norm: Callable = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.silu(self.norm(name="blocks_0")(x))
        y = Conv(x.shape[-1], 3, dtype=self.dtype, name="blocks_2")(y)
        y = nn.silu(self.norm(name="blocks_3")(y))
        # The step to x0 multiplies an error made here by nearly 15.
        y = Conv(self.features, 3, name="blocks_5", **PRECISE)(y)
        return y + Conv(self.features, name="short_cut", **PRECISE)(x)


class Generator(nn.Module):
    """One step of diffusion, from what the synthesis made to a latent of the VAE.

    The U-Net sees the features themselves and predicts noise; a small block makes of the same
    features the noisy latent from which that noise is taken off.

    Fields:
      unet: the U-Net's own fields, see `UNet` (`remat` and `dtype` aside).
      timestep: the one at which the U-Net is asked, 0 … 999.
      noise: whether x0 gets noise, of which the features say how much, see `Noise`.
      remat: what training recomputes of the U-Net's blocks, see `layers.recomputed`.
      dtype: in which products and convolutions are computed.
    """

    unet: Mapping[str, Any] = field(default_factory=dict)
    timestep: int = 999
    noise: bool = False
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_hat: Array, tokens: Array, origin: Array | None = None
    ) -> dict[str, Array]:
        """Features x_hat [B, h, w, C], context tokens [B, N, D] -> arrays [B, h, w, out_channels].

        Where there is noise, `origin`, int32 [B, 2], is the place of x_hat's first position in its
        picture: row and column, by default 0.

        Returns:
          `eps`, the predicted noise; `reduced`, the noisy latent; `x0`, the clean latent (scaled as
          the diffusion model wants it). All float32.
        """
        unet = UNet(**self.unet, remat=self.remat, dtype=self.dtype, name="unet")
        eps, _ = unet(x_hat, jnp.array([self.timestep]), tokens)
        norm = partial(GroupNorm, unet.norm_groups)
        reduced = Reduction(unet.out_channels, norm, self.dtype, name="vae_reduction")(x_hat)
        x0 = x0_from_eps(reduced, eps, self.timestep, alphas_cumprod())
        if self.noise:
            origin = jnp.zeros((len(x_hat), 2), jnp.int32) if origin is None else origin
            x0 += Noise(unet.out_channels, self.dtype, name="noise")(x_hat, origin)
        return {"eps": eps, "reduced": reduced, "x0": x0}


def merge_lora(params: Mapping[str, Any], alpha: float = 8.0) -> dict[str, Any]:
    """Folds every low-rank adaptation of a tree into the kernel beside it.

    Args:
      params: any tree of parameters; layers with LoRA hold `kernel`, `lora_a` and `lora_b`.
      alpha: the one with which these layers were made.

    Returns:
      the tree for the same module with `rank=0`, which computes the same. The rest is as it was.
    """
    merged = {k: merge_lora(v, alpha) if isinstance(v, Mapping) else v for k, v in params.items()}
    if "lora_a" in merged:
        down, up = merged.pop("lora_a"), merged.pop("lora_b")
        rank = down.shape[-1]
        # `up` is [rank, F], or [1, 1, rank, F] for a convolution: the same product over the rank.
        low = jnp.einsum("...r,rf->...f", down, up.reshape(rank, -1), precision="highest")
        merged["kernel"] = merged["kernel"] + low * (alpha / rank)
    return merged
