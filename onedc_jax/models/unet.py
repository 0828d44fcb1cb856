"""Two U-Nets: the diffusion U-Net of the generator and the one inside the analysis transform.

Both have the same shape, level by level: pairs of [residual block, attention] with a stride-2
convolution between levels, a middle, and the way back with one more pair a level, each fed with
what the way down left. They differ in the attention: a transformer block that also looks at the
context, or plain self-attention. Names of submodules are those of the released tensors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.attention import attention
from onedc_jax.models.layers import (
    PRECISE,
    Conv,
    Dense,
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    recomputed,
)

Array = jax.Array

ANALYSIS_TIMESTEP = 999
"""Where the analysis' U-Net is asked: it knows no time, and the reference gives it this one."""


class Resnet(nn.Module):
    """The residual block of U-Nets and VAE, x [B, h, w, C], time [B, T] -> [B, h, w, features].

    [norm, SiLU, 3×3 conv], plus a projection of SiLU(time) where a time is given, [norm, SiLU, 3×3
    conv], plus the input (through a 1×1 convolution when the widths differ).
    """

    features: int
    norm: Callable = GroupNorm
    rank: int = 0
    alpha: float = 8.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None) -> Array:
        parts = {"rank": self.rank, "alpha": self.alpha, "dtype": self.dtype}
        y = nn.silu(self.norm(name="norm1")(x))
        y = Conv(self.features, 3, name="conv1", **parts)(y)
        if time is not None:
            y += Dense(self.features, name="time_emb_proj", **parts)(nn.silu(time))[:, None, None]
        y = nn.silu(self.norm(name="norm2")(y))
        y = Conv(self.features, 3, name="conv2", **parts)(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, name="conv_shortcut", **parts)(x)
        return x + y


class SelfAttention(nn.Module):
    """x + to_out(attention(norm(x))) over all positions, with heads of `head_dim` channels.

    Here and below, `conv` and `dense` make the layers, with their dtype and adaptation set.
    """

    head_dim: int = 8
    norm: Callable = GroupNorm
    dense: Callable = Dense

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        b, h, w, c = x.shape
        mask = None if mask is None else mask.reshape(b, h * w)
        y = self.norm(name="group_norm")(x).reshape(b, h * w, c)
        split = (b, h * w, c // self.head_dim, self.head_dim)
        q, k, v = (self.dense(c, name=name)(y).reshape(split) for name in ("to_q", "to_k", "to_v"))
        y = attention(q, k, v, mask).reshape(b, h * w, c)
        return x + self.dense(c, name="to_out_0")(y).reshape(x.shape)


class Attention(nn.Module):
    """Attention from x [B, N, C] to context [B, M, D] -> [B, N, C].

    `mask`, boolean [B, M], says which of the context there are.
    """

    heads: int
    dense: Callable = Dense

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        channels = x.shape[-1]
        q, k, v = (
            self.dense(channels, bias=False, name=name)(y).reshape(*y.shape[:2], self.heads, -1)
            for name, y in (("to_q", x), ("to_k", context), ("to_v", context))
        )
        y = attention(q, k, v, mask).reshape(x.shape)
        return self.dense(channels, name="to_out_0")(y)


class FeedForward(nn.Module):
    """The last axis through a GELU-gated hidden layer of four times its width."""

    dense: Callable = Dense

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        value, gate = jnp.split(self.dense(8 * channels, name="net_0_proj")(x), 2, axis=-1)
        return self.dense(channels, name="net_2")(value * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; each normalised before, residual."""

    heads: int
    dense: Callable = Dense

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        # The one-pass variance loses digits where the mean is large: not here.
        norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=x.dtype)
        y = norm(name="norm1")(x)
        x += Attention(self.heads, self.dense, name="attn1")(y, y)
        x += Attention(self.heads, self.dense, name="attn2")(norm(name="norm2")(x), context)
        return x + FeedForward(self.dense, name="ff")(norm(name="norm3")(x))


class Transformer(nn.Module):
    """A transformer block over the positions of x [B, h, w, C], with context [B, N, D]."""

    heads: int
    norm: Callable = GroupNorm
    conv: Callable = Conv
    dense: Callable = Dense

    @nn.compact
    def __call__(self, x: Array, context: Array) -> Array:
        b, h, w, c = x.shape
        y = self.conv(c, name="proj_in")(self.norm(name="norm")(x)).reshape(b, h * w, c)
        y = TransformerBlock(self.heads, self.dense, name="transformer_blocks_0")(y, context)
        return x + self.conv(c, name="proj_out")(y.reshape(x.shape))


class DownBlock(nn.Module):
    """One level on the way down; returns the map and all maps that the way up takes back.

    `attend` makes the attention after each residual block (None: there is none); it gets the map
    and whatever follows the time among the arguments. So in `MidBlock` and `UpBlock`.
    """

    features: int
    layers: int
    downsample: bool
    resnet: Callable
    attend: Callable | None
    conv: Callable

    @nn.compact
    def __call__(self, x: Array, time: Array | None, *context: Array) -> tuple[Array, list[Array]]:
        skips = []
        for i in range(self.layers):
            x = self.resnet(self.features, name=f"resnets_{i}")(x, time)
            if self.attend:
                x = self.attend(name=f"attentions_{i}")(x, *context)
            skips.append(x)
        if self.downsample:
            x = self.conv(self.features, 3, stride=2, name="downsamplers_0_conv")(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """Residual block, attention (`attend`; None: there is none), residual block."""

    resnet: Callable
    attend: Callable | None

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None, *context: Array) -> Array:
        x = self.resnet(x.shape[-1], name="resnets_0")(x, time)
        if self.attend:
            x = self.attend(name="attentions_0")(x, *context)
        return self.resnet(x.shape[-1], name="resnets_1")(x, time)


class UpBlock(nn.Module):
    """One level on the way up: takes back `skips`, last first, then goes to `size`, if given."""

    features: int
    size: tuple[int, int] | None
    resnet: Callable
    attend: Callable | None
    conv: Callable

    @nn.compact
    def __call__(self, x: Array, skips: list[Array], time: Array, *context: Array) -> Array:
        for i, skip in enumerate(reversed(skips)):
            x = jnp.concatenate([x, skip], axis=-1)
            x = self.resnet(self.features, name=f"resnets_{i}")(x, time)
            if self.attend:
                x = self.attend(name=f"attentions_{i}")(x, *context)
        if self.size:
            conv = self.conv(self.features, 3, name="upsamplers_0_conv")
            x = conv.of_upsampled(x, *self.size)
        return x


def _levels(
    x: Array,
    time: Array,
    *context: Array,
    widths: Sequence[int],
    layers: int,
    resnet: Callable,
    conv: Callable,
    down: Sequence[Callable | None],
    mid: Callable | None,
    up: Sequence[Callable | None],
) -> tuple[Array, Array]:
    """Down, middle and up; returns the last map and that of the middle.

    `down`, `mid` and `up` make the attention of each block, in the order in which they run.
    """
    last = len(widths) - 1
    skips = [x]
    for i, width in enumerate(widths):
        block = DownBlock(width, layers, i < last, resnet, down[i], conv, name=f"down_blocks_{i}")
        x, more = block(x, time, *context)
        skips += more
    middle = x = MidBlock(resnet, mid, name="mid_block")(x, time, *context)
    for i, width in enumerate(reversed(widths)):
        skips, mine = skips[: -layers - 1], skips[-layers - 1 :]
        # Not always twice the size: an odd size was rounded up on the way down.
        size = skips[-1].shape[1:3] if skips else None
        block = UpBlock(width, size, resnet, up[i], conv, name=f"up_blocks_{i}")
        x = block(x, mine, time, *context)
    return x, middle


class UNet(nn.Module):
    """The diffusion U-Net of Stable Diffusion 1.5, of any size, with optional LoRA.

    Fields:
      widths: channels of each level; a level has half the resolution of the one before.
      layers: residual blocks a level on the way down (one more on the way up).
      attention: which levels have transformer blocks; the middle always has one.
      heads: attention heads, everywhere.
      out_channels: channels of the prediction.
      rank, alpha: of the LoRA on every convolution and product of the blocks, but for conv_in,
        conv_out and the time embedding; 0 leaves it out.
      norm_groups: see `layers.GroupNorm`.
      timed: False where the time is in the biases already, see `folding.py`.
      remat: what training recomputes of each block, see `layers.recomputed`.
      dtype: in which products and convolutions are computed.
    """

    widths: Sequence[int] = (320, 640, 1280, 1280)
    layers: int = 2
    attention: Sequence[bool] = (True, True, True, False)
    heads: int = 8
    out_channels: int = 4
    rank: int = 0
    alpha: float = 8.0
    norm_groups: int = 32
    timed: bool = True
    remat: str = ""
    dtype: Any = jnp.float32

    @property
    def middle_width(self) -> int:
        """Channels of the map in the middle: a level gets its own from its first block, if any."""
        return self.widths[-1] if self.layers else self.widths[-2:][0]

    @nn.compact
    def __call__(self, x: Array, t: Array, context: Array) -> tuple[Array, Array]:
        """Predicts the noise of x [B, h, w, C] at timesteps t [B] (or [1], for all), int.

        Args:
          x: any number of channels, any h and w.
          t: timesteps in 0 … 999.
          context: what the transformer blocks look at, [B, N, D].

        Returns:
          the prediction [B, h, w, out_channels], float32, and the map that leaves the middle,
          [B, h', w', middle_width], `dtype`, where h' = h halved and rounded up at each new level.
        """
        norm = partial(GroupNorm, self.norm_groups)
        parts = {"rank": self.rank, "alpha": self.alpha, "dtype": self.dtype}
        conv, dense = partial(Conv, **parts), partial(Dense, **parts)
        block = recomputed(Transformer, self.remat)
        transformer = partial(block, self.heads, partial(norm, eps=1e-6), conv, dense)
        resnet = recomputed(Resnet, self.remat)
        attend = [transformer if there else None for there in self.attention]

        time = TimeEmbedding(self.widths[0], name="time_embedding")(t) if self.timed else None
        x = Conv(self.widths[0], 3, dtype=self.dtype, name="conv_in")(x)
        x, middle = _levels(
            x,
            time,
            context,
            widths=self.widths,
            layers=self.layers,
            resnet=partial(resnet, norm=partial(norm, eps=1e-5), **parts),
            conv=conv,
            down=attend,
            mid=transformer,
            up=attend[::-1],
        )
        x = nn.silu(norm(eps=1e-5, name="conv_norm_out")(x))
        # One step from the last timestep multiplies an error made here by nearly 15.
        return Conv(self.out_channels, 3, name="conv_out", **PRECISE)(x), middle


class AnalysisUNet(nn.Module):
    """The U-Net of the analysis transform, from features at H/8 to features at H/16 and H/64.

    Fields:
      widths: channels at H/16, H/32, …; the last level's is the width of the semantic map.
      layers: residual blocks a level on the way down (one more on the way up).
      attention: which blocks have self-attention, in the order in which they run, of the way down
        and again of the way up. Not mirrored: by default the lowest level has attention on the way
        up alone and the highest on the way down alone.
      mid_attention: whether the middle has it.
      head_dim: channels of an attention head.
      features: channels of the output.
      norm_groups: see `layers.GroupNorm`.
      timed: False where the time is in the biases already, see `folding.py`.
      remat: what training recomputes of each block, see `layers.recomputed`.
      dtype: in which products and convolutions are computed.
    """

    widths: Sequence[int] = (512, 768, 768)
    layers: int = 2
    attention: Sequence[bool] = (True, True, False)
    mid_attention: bool = True
    head_dim: int = 8
    features: int = 512
    norm_groups: int = 32
    timed: bool = True
    remat: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """x [B, H/8, W/8, C] -> out [B, H/16, W/16, features], middle [B, H/64, W/64, widths[-1]].

        H and W are those of the image, multiples of 64 with three levels.
        """
        norm = partial(GroupNorm, self.norm_groups)
        conv, dense = partial(Conv, dtype=self.dtype), partial(Dense, dtype=self.dtype)
        block = recomputed(SelfAttention, self.remat)
        attend = partial(block, self.head_dim, partial(norm, eps=1e-5), dense)
        resnet = recomputed(Resnet, self.remat)
        attention_of = [attend if there else None for there in self.attention]

        for i in range(3):
            block = recomputed(ResnetBlock, self.remat)
            x = block(self.widths[0], norm, self.dtype, name=f"conv_in_{i}")(x)
        x = conv(self.widths[0], 3, stride=2, name="conv_in_3")(x)  # [B, H/16, W/16, widths[0]]
        embed = TimeEmbedding(self.widths[0], name="time_embedding")
        time = embed(jnp.array([ANALYSIS_TIMESTEP])) if self.timed else None
        x, middle = _levels(
            x,
            time,
            widths=self.widths,
            layers=self.layers,
            resnet=partial(resnet, norm=partial(norm, eps=1e-5), dtype=self.dtype),
            conv=conv,
            down=attention_of,
            mid=attend if self.mid_attention else None,
            up=attention_of,
        )
        x = nn.silu(norm(eps=1e-5, name="conv_norm_out")(x))
        return conv(self.features, 3, name="conv_out")(x), middle
