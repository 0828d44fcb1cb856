"""The KL autoencoder of Stable Diffusion (the layout of diffusers' AutoencoderKL), at H/8 × W/8.

Its mid-block attention runs in windows, so that the cost grows with the number of pixels and not
with its square. `patch` > 1 makes cheap full-resolution ends for small presets, in place of as many
levels: the encoder begins with patches of pixels as channels (pixel unshuffle), the decoder ends
with nearest-neighbour upsampling before its last convolution (a pixel shuffle would leave a grid).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    attention,
    pixel_unshuffle,
    upsample_nearest,
)
from onedc_jax.models.unet import Resnet

Array = jax.Array


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents, both [B, H/8, W/8, C]."""

    mean: Array
    logvar: Array

    def sample(self, key: Array) -> Array:
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise


class WindowAttention(nn.Module):
    """x + to_out(attention(norm(x))) within windows of `window` × `window` positions.

    `window=0` makes all of it one window. Windows at the right and bottom edge are
    smaller where the size is no multiple: their padding enters neither the softmax nor the norm's
    statistics, which are taken per window.
    """

    window: int = 16
    norm: Any = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        size_h, size_w = (self.window or h), (self.window or w)
        rows, cols = -(-h // size_h), -(-w // size_w)
        pad = ((0, 0), (0, rows * size_h - h), (0, cols * size_w - w), (0, 0))

        def split(x):  # [B', rows·size, cols·size, C] -> [B'·rows·cols, size, size, C]
            x = x.reshape(x.shape[0], rows, size_h, cols, size_w, x.shape[-1])
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size_h, size_w, x.shape[-1])

        windows = split(jnp.pad(x, pad))
        inside = split(np.pad(np.ones((1, h, w, 1), bool), ((0, 0), *pad[1:])))
        inside = jnp.tile(inside, (b, 1, 1, 1))

        y = self.norm(name="group_norm")(windows, inside).reshape(-1, size_h * size_w, 1, c)
        q, k, v = (Dense(c, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        y = attention(q, k, v, inside.reshape(-1, size_h * size_w))
        y = Dense(c, dtype=self.dtype, name="to_out_0")(y)
        y = y.reshape(b, rows, cols, size_h, size_w, c).transpose(0, 1, 3, 2, 4, 5)
        return x + y.reshape(b, rows * size_h, cols * size_w, c)[:, :h, :w]


class MidBlock(nn.Module):
    """Resnet, attention in windows (left out when `window` is None), resnet."""

    window: int | None = 16
    norm: Any = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        resnet = partial(Resnet, x.shape[-1], norm=self.norm, dtype=self.dtype)
        x = resnet(name="resnets_0")(x)
        if self.window is not None:
            x = WindowAttention(self.window, self.norm, self.dtype, name="attentions_0")(x)
        return resnet(name="resnets_1")(x)


class DownBlock(nn.Module):
    """Resnets, then (unless last) a stride-2 convolution padded on the right and bottom only."""

    features: int
    layers: int
    last: bool
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Resnet(self.features, norm=self.norm, dtype=self.dtype, name=f"resnets_{i}")(x)
        if self.last:
            return x
        pad = ((0, 1), (0, 1))
        return Conv(self.features, 3, 2, pad, dtype=self.dtype, name="downsamplers_0_conv")(x)


class UpBlock(nn.Module):
    """Resnets, then (unless last) nearest-neighbour upsampling and a convolution."""

    features: int
    layers: int
    last: bool
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Resnet(self.features, norm=self.norm, dtype=self.dtype, name=f"resnets_{i}")(x)
        if self.last:
            return x
        x = upsample_nearest(x, 2 * x.shape[1], 2 * x.shape[2])
        return Conv(self.features, 3, dtype=self.dtype, name="upsamplers_0_conv")(x)


class Encoder(nn.Module):
    """Image [B, H, W, 3] -> [B, H/8, W/8, features]."""

    features: int
    widths: Sequence[int]
    layers: int
    window: int | None
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[0], 3, dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            x = DownBlock(width, self.layers, last, self.norm, self.dtype, name=f"down_blocks_{i}")(
                x
            )
        x = MidBlock(self.window, self.norm, self.dtype, name="mid_block")(x)
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        return Conv(self.features, 3, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent [B, H/8, W/8, C] -> [B, H, W, features]."""

    features: int
    patch: int
    widths: Sequence[int]
    layers: int
    window: int | None
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[-1], 3, dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(self.window, self.norm, self.dtype, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            last = i == len(self.widths) - 1
            x = UpBlock(width, self.layers + 1, last, self.norm, self.dtype, name=f"up_blocks_{i}")(
                x
            )
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        x = x.repeat(self.patch, axis=1).repeat(self.patch, axis=2)
        return Conv(self.features, 3, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """Images in [-1, 1] <-> unscaled latents. The defaults are Stable Diffusion 2.1's."""

    widths: Sequence[int] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    window: int | None = 16
    patch: int = 1
    norm_groups: int = 32
    norm_local: bool = False
    dtype: Any = "float32"

    def setup(self):
        norm = partial(GroupNorm, self.norm_groups, 1e-6, self.norm_local)
        shared = (self.widths, self.layers, self.window, norm, self.dtype)
        self.encoder = Encoder(2 * self.latent_channels, *shared)
        self.decoder = Decoder(3, self.patch, *shared)
        self.quant_conv = Conv(2 * self.latent_channels, dtype=self.dtype)
        self.post_quant_conv = Conv(self.latent_channels, dtype=self.dtype)

    def encode(self, image: Array) -> Posterior:
        """Image float [B, H, W, 3] in [-1, 1], sides multiples of 8 -> posterior, float32."""
        x = pixel_unshuffle(image, self.patch) if self.patch > 1 else image
        moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latent: Array) -> Array:
        """Latent [B, H/8, W/8, C] -> image float32 [B, H, W, 3], not clipped."""
        return self.decoder(self.post_quant_conv(latent)).astype(jnp.float32)

    def __call__(self, image: Array, key: Array) -> tuple[Array, Posterior]:
        """Encodes, samples, decodes."""
        posterior = self.encode(image)
        return self.decode(posterior.sample(key)), posterior
