"""The KL autoencoder of Stable Diffusion (the layout of diffusers' AutoencoderKL), at H/8 × W/8.

Its mid-block attention runs in windows, so that the cost grows with the number of pixels and not
with its square. `patch` > 1 makes cheap full-resolution ends for small presets, in place of as many
levels: the encoder begins with patches of pixels as channels (pixel unshuffle), and the decoder
ends with them (pixel shuffle). With `transform` latents begin as the strongest coefficients of
blocks, see `transform.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.attention import attention
from onedc_jax.models.layers import (
    Conv,
    Dense,
    GroupNorm,
    pixel_shuffle,
    pixel_unshuffle,
    recomputed,
)
from onedc_jax.models.transform import BlockInverse, BlockTransform
from onedc_jax.models.unet import MidBlock, Resnet

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
    statistics, which are taken per window. Nor do positions that `mask`, boolean [B, h, w, 1],
    leaves out.
    """

    window: int = 16
    norm: Any = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        b, h, w, c = x.shape
        size_h, size_w = (self.window or h), (self.window or w)
        rows, cols = -(-h // size_h), -(-w // size_w)
        pad = ((0, 0), (0, rows * size_h - h), (0, cols * size_w - w), (0, 0))

        def split(x):  # [B', rows·size, cols·size, C] -> [B'·rows·cols, size, size, C]
            x = x.reshape(x.shape[0], rows, size_h, cols, size_w, x.shape[-1])
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size_h, size_w, x.shape[-1])

        windows = split(jnp.pad(x, pad))
        mask = jnp.ones((b, h, w, 1), bool) if mask is None else mask
        inside = split(jnp.pad(mask, pad))
        inside |= ~inside.any((1, 2, 3), keepdims=True)  # no statistics of nothing

        y = self.norm(name="group_norm")(windows, inside).reshape(-1, size_h * size_w, 1, c)
        q, k, v = (Dense(c, dtype=self.dtype, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        y = attention(q, k, v, inside.reshape(-1, size_h * size_w))
        y = Dense(c, dtype=self.dtype, name="to_out_0")(y)
        y = y.reshape(b, rows, cols, size_h, size_w, c).transpose(0, 1, 3, 2, 4, 5)
        return x + y.reshape(b, rows * size_h, cols * size_w, c)[:, :h, :w]


class Level(nn.Module):
    """Resnets, then (None: nothing) a change of size.

    That is a stride-2 convolution padded on the right and bottom only ("down"), or
    nearest-neighbour upsampling and a convolution ("up").
    """

    features: int
    layers: int
    change: str | None
    resnet: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = self.resnet(self.features, name=f"resnets_{i}")(x)
        conv = partial(Conv, self.features, 3, dtype=self.dtype)
        if self.change == "down":
            return conv(2, ((0, 1), (0, 1)), name="downsamplers_0_conv")(x)
        if self.change == "up":
            return conv(name="upsamplers_0_conv").of_upsampled(x, 2 * x.shape[1], 2 * x.shape[2])
        return x


class Encoder(nn.Module):
    """Image [B, H, W, 3] -> [B, H/8, W/8, features]."""

    features: int
    widths: Sequence[int]
    layers: int
    norm: Callable
    resnet: Callable
    attend: Callable | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[0], 3, dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            change = "down" if i < len(self.widths) - 1 else None
            level = partial(Level, width, self.layers, change, self.resnet, self.dtype)
            x = level(name=f"down_blocks_{i}")(x)
        x = MidBlock(self.resnet, self.attend, name="mid_block")(x)
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        return Conv(self.features, 3, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent [B, H/8, W/8, C] -> [B, H, W, features]."""

    features: int
    patch: int
    widths: Sequence[int]
    layers: int
    norm: Callable
    resnet: Callable
    attend: Callable | None
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[-1], 3, dtype=self.dtype, name="conv_in")(x)
        x = MidBlock(self.resnet, self.attend, name="mid_block")(x)
        for i, width in enumerate(reversed(self.widths)):
            change = "up" if i < len(self.widths) - 1 else None
            level = partial(Level, width, self.layers + 1, change, self.resnet, self.dtype)
            x = level(name=f"up_blocks_{i}")(x)
        x = nn.silu(self.norm(name="conv_norm_out")(x))
        x = Conv(self.features * self.patch**2, 3, dtype=self.dtype, name="conv_out")(x)
        return pixel_shuffle(x, self.patch)


class VAE(nn.Module):
    """Images in [-1, 1] <-> unscaled latents. The defaults are Stable Diffusion 2.1's.

    `widths` are the channels of its levels, each half as fine as the one before, with `layers`
    residual blocks. `window` is that of the attention in the middle; 0: all is one window, None: no
    attention. The decoder ends in patches of `patch` pixels a side. `transform`: it begins as a
    block transform, see `transform.py`. `norm_groups`: see `layers.GroupNorm`.
    """

    widths: Sequence[int] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    window: int | None = 16
    patch: int = 1
    encoder_widths: Sequence[int] = ()  # where they are not `widths`
    transform: bool = False
    norm_groups: int = 32
    remat: str = ""  # what training recomputes of each resnet, see `layers.recomputed`
    dtype: Any = "float32"

    def setup(self):
        norm = partial(GroupNorm, self.norm_groups, 1e-6)
        resnet = partial(recomputed(Resnet, self.remat), norm=norm, dtype=self.dtype)
        attend = None
        if self.window is not None:
            attend = partial(WindowAttention, self.window, norm, self.dtype)
        shared = (self.layers, norm, resnet, attend, self.dtype)
        widths = self.encoder_widths or self.widths
        self.encoder = Encoder(2 * self.latent_channels, widths, *shared)
        self.decoder = Decoder(3, self.patch, self.widths, *shared)
        self.quant_conv = Conv(2 * self.latent_channels, dtype=self.dtype)
        self.post_quant_conv = Conv(self.latent_channels, dtype=self.dtype)
        if self.transform:
            self.block_transform = BlockTransform(self.latent_channels, 8)
            self.block_inverse = BlockInverse(8)

    @property
    def stride(self) -> int:
        """How many pixels a position of the latent has along a side; the paper's have 8."""
        return self.patch * 2 ** (len(self.widths) - 1)

    def encode(self, image: Array) -> Posterior:
        """Image float [B, H, W, 3] in [-1, 1], sides multiples of 8 -> posterior, float32."""
        x = pixel_unshuffle(image, self.patch) if self.patch > 1 else image
        moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        if self.transform:
            mean += self.block_transform(image)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    def decode(self, latent: Array) -> Array:
        """Latent [B, H/8, W/8, C] -> image float32 [B, H, W, 3], not clipped."""
        image = self.decoder(self.post_quant_conv(latent)).astype(jnp.float32)
        if self.transform:
            image += self.block_inverse(latent)
        return image

    def __call__(self, image: Array, key: Array) -> tuple[Array, Posterior]:
        """Encodes, samples, decodes."""
        posterior = self.encode(image)
        return self.decode(posterior.sample(key)), posterior
