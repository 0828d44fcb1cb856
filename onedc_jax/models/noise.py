"""Noise that is a function of the place in the picture: what a generator may make texture of.

A diffusion model of many steps begins with noise. A one-step generator without any, asked to draw
grass where y and tokens are even, can only repeat one motif in each of their cells, since all that
convolutions see there is the same from cell to cell.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.layers import Conv

Array = jax.Array


def white(origin: Array, height: int, width: int, channels: int) -> Array:
    """Uniform noise of mean 0 and variance 1, float32 [B, height, width, channels].

    `origin`, int32 [B, 2], is the row and column of the first position: windows over one picture
    see one noise. A number is a hash of its place, in integers: the same on every device.
    """
    rows, columns = (
        start.astype(jnp.uint32)[:, None] + jnp.arange(length, dtype=jnp.uint32)[None]
        for start, length in zip(origin.T, (height, width), strict=True)
    )
    bits = _mixed(_mixed(rows)[:, :, None] + columns[:, None, :])  # [B, height, width]
    bits = _mixed(bits[..., None] + jnp.arange(channels, dtype=jnp.uint32).reshape(1, 1, 1, -1))
    return ((bits >> 8).astype(jnp.float32) * 2.0**-24 - 0.5) * 12.0**0.5


def _mixed(x: Array) -> Array:
    """A permutation of uint32 after which every bit depends on every bit."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


class Noise(nn.Module):
    """Noise for latents of so many `channels`, as much of each as features ask for, place by place.

    As audio codecs do with what they cannot afford to send (perceptual noise substitution, Schulz,
    1996). It does not begin at nothing: there its gradient is zero on average.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, origin: Array) -> Array:
        """Features [B, h, w, C] -> float32 [B, h, w, channels]; `origin` as in `white`."""
        level = Conv(self.channels, dtype=self.dtype, name="level")(x).astype(jnp.float32)
        return level * white(origin, *x.shape[1:3], self.channels)
