"""The layers every network here is made of. Images and features are NHWC, everywhere.

Parameters are float32; a `dtype` field names the type in which convolutions and products are
computed. Norm statistics, softmax and time embeddings are always float32.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onedc_jax.models.attention import attention

Array = jax.Array


def recomputed(module: type[nn.Module], policy: str) -> type[nn.Module]:
    """`module`, keeping of its forward pass only what a policy says, for less memory in training.

    `policy` names one of `jax.checkpoint_policies`, e.g. "nothing_saveable" or "dots_saveable"
    (which keeps convolutions too); "" keeps everything. Parameters and results are the same.
    """
    if not policy:
        return module
    return nn.remat(module, policy=getattr(jax.checkpoint_policies, policy))


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Array:
    """`module.param`, which traces `init` at each call to compare shapes; this only where it draws.

    That is half of the time that tracing a network takes. Models are compared as a whole instead:
    `checkpoint.check_tree`.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init, shape)


PRECISE = dict(dtype=jnp.float32, precision=lax.Precision.HIGHEST)
"""Fields of the few layers whose errors are multiplied by what follows.

Of float32 alone, accelerators make TF32 or bfloat16 products.
"""


class Conv(nn.Module):
    """A square convolution, optionally with LoRA: [B, H, W, C] -> [B, H', W', F].

    With `rank` > 0, low-rank adaptation adds (alpha / rank) · B(A(x)), A a convolution of the same
    size to `rank` channels and B a 1×1 convolution back; B starts at zero, so adaptation starts at
    the identity.

    `padding` is ((top, bottom), (left, right)) or an int on all sides; by default "same" for
    stride 1 and odd sizes.
    """

    features: int
    size: int = 1
    stride: int = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None
    bias: bool = True
    rank: int = 0
    alpha: float = 8.0
    dtype: Any = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pad = self.size // 2 if self.padding is None else self.padding
        pads = ((pad, pad), (pad, pad)) if isinstance(pad, int) else pad
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        x = x.astype(self.dtype)
        y = convolved(x, kernel, self.stride, pads, self.precision)
        if self.bias:
            y += _along_channels(
                parameter(self, "bias", nn.initializers.zeros, (self.features,)), y
            )
        if self.rank:
            down = parameter(self, "lora_a", nn.initializers.he_uniform(), (*shape[:3], self.rank))
            up = parameter(self, "lora_b", nn.initializers.zeros, (1, 1, self.rank, self.features))
            low = convolved(convolved(x, down, self.stride, pads), up, 1, ((0, 0), (0, 0)))
            y += low * (self.alpha / self.rank)
        return y

    def of_upsampled(self, x: Array, height: int, width: int) -> Array:
        """The convolution of `upsample_nearest`."""
        return self(upsample_nearest(x, height, width))


def convolved(
    x: Array, kernel: Array, stride: int, pads, precision: lax.PrecisionLike = None
) -> Array:
    """x [B, H, W, C] and a kernel [h, w, C, F] -> [B, H', W', F], in the type of x."""
    if kernel.shape[:2] == (1, 1) and stride == 1 and not np.any(pads):
        # A plain product: as a convolution XLA:CPU takes longer, for its gradients most of all.
        return jnp.matmul(x, kernel[0, 0].astype(x.dtype), precision=precision)
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _along_channels(vector: Array, x: Array) -> Array:
    """A vector [C] in the shape and type in which it meets x [..., C]."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Dense(nn.Module):
    """A linear map of the last axis with optional LoRA, as `Conv`."""

    features: int
    bias: bool = True
    rank: int = 0
    alpha: float = 8.0
    dtype: Any = jnp.float32
    precision: lax.PrecisionLike = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape)
        x = x.astype(self.dtype)
        y = jnp.matmul(x, kernel.astype(self.dtype), precision=self.precision)
        if self.bias:
            y += _along_channels(
                parameter(self, "bias", nn.initializers.zeros, (self.features,)), y
            )
        if self.rank:
            down = parameter(self, "lora_a", nn.initializers.he_uniform(), (shape[0], self.rank))
            up = parameter(self, "lora_b", nn.initializers.zeros, (self.rank, shape[1]))
            low = (x @ down.astype(self.dtype)) @ up.astype(self.dtype)
            y += low * (self.alpha / self.rank)
        return y


class DepthwiseConv3x3(nn.Module):
    """A 3×3 convolution of each channel of [B, H, W, C] by itself, as nine shifted multiply-adds.

    XLA:CPU runs a grouped convolution some thirty times slower than this, and on an accelerator
    the nine terms fuse into one kernel.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, channels = x.shape[-3:]
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1))
        kernel = parameter(self, "kernel", init, (3, 3, 1, channels)).astype(self.dtype)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = _along_channels(parameter(self, "bias", nn.initializers.zeros, (channels,)), padded)
        for dy in range(3):
            for dx in range(3):
                y = y + padded[:, dy : dy + height, dx : dx + width] * kernel[dy, dx][None, None]
        return y


class GroupNorm(nn.Module):
    """Group normalisation of [.., H, W, C], in its type, with float32 statistics.

    Statistics of a group are over all positions. `groups=0`: no statistics at all, only scale and
    bias. Norms forget how bright a pixel is and make a texture of what is even; small networks,
    whose gradients need no help, do better without.

    `mask` [..., H, W, 1], where given, says which positions exist (the others are padding and must
    not enter the statistics). `statistics`, as of `moments`, take the place of x's own.
    """

    groups: int = 32
    eps: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        statistics: tuple[Array, Array] | None = None,
    ) -> Array:
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        if self.groups == 0:
            return x * _along_channels(scale, x) + _along_channels(bias, x)
        mean, var = statistics or self.moments(x, mask)
        y = ((self._grouped(x) - mean) * lax.rsqrt(var + self.eps)).reshape(x.shape)
        return (y * _along_channels(scale, y) + _along_channels(bias, y)).astype(x.dtype)

    def moments(self, x: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """Mean and variance of each group, float32, to broadcast with [.., H, W, groups, C']."""

        def average(values: Array) -> Array:
            # Over positions first, all channels side by side: several times faster on CPUs.
            if mask is None:
                values = values.mean((-3, -2), keepdims=True)
            else:
                values = jnp.where(mask, values, 0).sum((-3, -2), keepdims=True)
                values /= mask.sum((-3, -2), keepdims=True)
            return self._grouped(values).mean(-1, keepdims=True)

        mean = average(x.astype(jnp.float32))
        return mean, average(jnp.square(self._grouped(x) - mean).reshape(x.shape))

    def _grouped(self, x: Array) -> Array:
        """[.., H, W, C] -> float32 [.., H, W, groups, C / groups]."""
        return x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)


def inside(sizes: Array, blocks: tuple[int, int], height: int, width: int) -> Array:
    """Which positions of maps [B, height, width, C] their images have, boolean [B, .., .., 1].

    `sizes`, int32 [B, 2], are the rows and columns of blocks of each image, `blocks` those of the
    arrays; height and width are multiples of them.
    """
    rows, columns = (
        jnp.arange(side)[None] < sizes[:, i : i + 1] * (side // blocks[i])
        for i, side in enumerate((height, width))
    )
    return rows[:, :, None, None] & columns[:, None, :, None]


def pixel_shuffle(x: Array, factor: int = 2) -> Array:
    """[B, H, W, C·f²] -> [B, H·f, W·f, C].

    Channel c·f² + dy·f + dx goes to pixel (dy, dx) of channel c.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, h * factor, w * factor, c // factor**2)


def pixel_unshuffle(x: Array, factor: int = 2) -> Array:
    """The inverse of `pixel_shuffle`: [B, H·f, W·f, C] -> [B, H, W, C·f²]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h // factor, w // factor, c * factor**2)


def upsample_nearest(x: Array, height: int, width: int) -> Array:
    """Nearest-neighbour upsampling [B, H, W, C] -> [B, height, width, C].

    The new size is at most twice the old one.
    """
    x = x.repeat(2, axis=1).repeat(2, axis=2) if (height, width) != x.shape[1:3] else x
    # An odd size is one short of twice the half of it rounded up: nearest then drops the last copy.
    return x[:, :height, :width]


def timestep_embedding(t: Array, features: int) -> Array:
    """Sinusoidal embedding of timesteps, [B] -> float32 [B, features], cosines first."""
    half = features // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Timesteps [B] -> [B, 4 · width]: the sinusoidal embedding and a two-layer perceptron."""

    width: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        x = Dense(4 * self.width, name="linear1", **PRECISE)(timestep_embedding(t, self.width))
        return Dense(4 * self.width, name="linear2", **PRECISE)(nn.silu(x))


class AttnBlock(nn.Module):
    """x + proj_out(attention(norm(x))) of [B, h, w, C], one head over all positions, 1×1 kernels.

    Here and in all attention, `mask`, boolean [B, h, w, 1], says which positions there are.
    """

    norm: Callable = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        b, h, w, c = x.shape
        mask = None if mask is None else mask.reshape(b, h * w)
        y = self.norm(name="norm")(x)
        q, k, v = (
            Conv(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, 1, c)
            for name in ("q", "k", "v")
        )
        y = attention(q, k, v, mask).reshape(b, h, w, c)
        return x + Conv(c, dtype=self.dtype, name="proj_out")(y)


class ResnetBlock(nn.Module):
    """[norm, SiLU, 3×3 conv] twice plus the input, [B, H, W, C] -> [.., features]; no biases.

    When the widths differ, the shortcut is a 1×1 convolution of the block's *output*, added to that
    output: the reference's own way, kept so that its weights mean the same.
    """

    features: int
    norm: Callable = GroupNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.silu(self.norm(name="norm1")(x))
        y = Conv(self.features, 3, bias=False, dtype=self.dtype, name="conv1")(y)
        y = nn.silu(self.norm(name="norm2")(y))
        y = Conv(self.features, 3, bias=False, dtype=self.dtype, name="conv2")(y)
        if x.shape[-1] == self.features:
            return x + y
        return y + Conv(self.features, bias=False, dtype=self.dtype, name="nin_shortcut")(y)


class DepthConvBlock(nn.Module):
    """A depthwise-separable block and a gated 1×1 feed-forward, both residual.

    [B, H, W, C] -> [B, H, W, features].
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = lambda features, name: Conv(features, dtype=self.dtype, name=name)
        y = nn.leaky_relu(conv(x.shape[-1], "dw_in")(x), 0.01)
        y = DepthwiseConv3x3(dtype=self.dtype, name="dw_conv")(y)
        y = conv(self.features, "dw_out")(y)
        x = y + (x if x.shape[-1] == self.features else conv(self.features, "dw_shortcut")(x))
        first, second = jnp.split(conv(4 * self.features, "ffn_in")(x), 2, axis=-1)
        y = nn.leaky_relu(first, 0.1) + nn.leaky_relu(second, 0.01)
        return x + conv(self.features, "ffn_out")(y)


class ResidualBlockUpsample(nn.Module):
    """[B, H, W, C] -> [B, 2H, 2W, features] by two pixel-shuffled branches."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        wide = lambda name: Conv(4 * self.features, dtype=self.dtype, name=name)
        y = nn.leaky_relu(pixel_shuffle(wide("subpel_conv")(x)), 0.01)
        y = nn.leaky_relu(Conv(self.features, 3, dtype=self.dtype, name="conv")(y), 0.1)
        return y + pixel_shuffle(wide("upsample")(x))
