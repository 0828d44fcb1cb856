"""The heads that only training has: the student of the semantic distillation and the critic of
textures (stage 1), and the realism classifier (stage 2). Names of submodules of the first and the
last are those of the released tensors.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.models.attention import attention
from onedc_jax.models.layers import (
    Conv,
    Dense,
    DepthConvBlock,
    GroupNorm,
    pixel_shuffle,
)
from onedc_jax.models.lpips import unit_length

Array = jax.Array


def _to_windows(x: Array | np.ndarray, size: int) -> Array | np.ndarray:
    """[B, H, W, C] -> [B · windows, size², C], the windows of an image row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def _from_windows(x: Array, shape: tuple[int, ...], size: int) -> Array:
    """The inverse of `_to_windows`, for an image of the given shape."""
    b, h, w, c = shape
    x = x.reshape(b, h // size, w // size, size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def _seams(height: int, width: int, size: int, shift: int) -> Array:
    """0 or -inf, [windows, size², size²]: what met only because the map was rolled stays apart.

    Rolled up and left by `shift`, a map has its first rows below its last ones, and likewise
    columns: positions of one window on two sides of such a seam are no neighbours.
    """
    below = np.arange(height) >= height - shift
    right = np.arange(width) >= width - shift
    side = 2 * below[None, :, None, None] + right[None, None, :, None]
    side = _to_windows(side, size)  # [windows, size², 1]
    return jnp.where(side == side.transpose(0, 2, 1), 0.0, -jnp.inf)


class WindowAttention(nn.Module):
    """Attention within windows of `window` × `window` positions, x [B, H, W, C] -> the same.

    The windows start `shift` rows and columns further than the map does, and there is no way
    around its edges. `positional` adds a learned bias to the logits of each pair of positions.
    """

    heads: int
    window: int
    shift: int
    positional: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        area = self.window**2
        bias = None
        if self.positional:
            bias = self.param("pos_embedding", nn.initializers.zeros, (area, area))[None]
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
            seams = jnp.tile(_seams(h, w, self.window, self.shift), (b, 1, 1))
            bias = seams if bias is None else bias + seams
        y = Dense(3 * c, bias=False, dtype=self.dtype, name="to_qkv")(_to_windows(x, self.window))
        q, k, v = (
            part.reshape(-1, area, self.heads, c // self.heads) for part in jnp.split(y, 3, axis=-1)
        )
        y = attention(q, k, v, bias=bias).reshape(-1, area, c)
        y = _from_windows(Dense(c, dtype=self.dtype, name="to_out")(y), x.shape, self.window)
        return jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class Perceptron(nn.Module):
    """The last axis through a hidden layer of four times its width, with GELU."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(4 * x.shape[-1], dtype=self.dtype, name="net_0")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(nn.gelu(y, approximate=False))


class WindowBlock(nn.Module):
    """Attention in windows and perceptron, each normalised before, residual."""

    heads: int
    window: int
    shift: int
    positional: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=x.dtype)
        attend = WindowAttention(
            self.heads,
            self.window,
            self.shift,
            self.positional,
            self.dtype,
            name="attention_block",
        )
        x += attend(norm(name="norm_attn")(x))
        return x + Perceptron(self.dtype, name="mlp_block")(norm(name="norm_mlp")(x))


class SemanticHead(nn.Module):
    """The student: predicts the tokens of the teacher, at H/32, from the semantic map, at H/64.

    Fields (defaults as released):
      codes: tokens of the teacher.
      width: channels inside.
      pairs: of a block of attention in windows and one in windows shifted by half their size.
      heads: of the attention.
      window: side of a window, in positions at H/32; even.
      norm_groups: see `layers.GroupNorm`.
      dtype: in which products and convolutions are computed.
    """

    codes: int = 1024
    width: int = 768
    pairs: int = 3
    heads: int = 12
    window: int = 16
    norm_groups: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Semantic map [B, h, w, C] -> logits of the teacher's tokens, float32 [B, 2h, 2w, codes].

        Raises ValueError unless 2h and 2w are multiples of the window.
        """
        if 2 * tokens.shape[1] % self.window or 2 * tokens.shape[2] % self.window:
            raise ValueError(
                f"the semantic head takes maps of multiples of {self.window / 2:g} positions a "
                f"side; got {tokens.shape[1]}×{tokens.shape[2]}"
            )
        conv = partial(Conv, dtype=self.dtype)
        x = DepthConvBlock(self.width, self.dtype, name="up_sample_0")(tokens)
        x = pixel_shuffle(conv(4 * self.width, name="up_sample_1")(x))  # [B, 2h, 2w, width]
        x = DepthConvBlock(self.width, self.dtype, name="up_sample_3")(x)
        for i in range(self.pairs):
            block = partial(WindowBlock, self.heads, self.window, dtype=self.dtype)
            x = block(shift=0, positional=i == 0, name=f"blocks_{i}_block_w")(x)
            x = block(shift=self.window // 2, positional=False, name=f"blocks_{i}_block_sw")(x)
        for i, width in ((0, 4 * self.width), (3, self.width)):
            x = conv(width, name=f"mlp_head_{i}")(x)
            x = GroupNorm(self.norm_groups, 1e-5, name=f"mlp_head_{i + 1}")(x)
            x = nn.gelu(x, approximate=False)
        return conv(self.codes, name="mlp_head_6")(x).astype(jnp.float32)


class RealismHead(nn.Module):
    """Tells the U-Net's middle maps of real latents from those of generated ones.

    Fields:
      width: channels inside; None: as many as the map has.
      norm_groups: see `layers.GroupNorm`.
      dtype: in which convolutions are computed.
    """

    width: int | None = None
    norm_groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, middle: Array) -> Array:
        """Map [B, h, w, C] -> a logit of "real" for each of its n pieces of 8 × 8, float32 [B, n].

        Positions at the right and bottom that fill no such piece are hardly seen. Raises ValueError
        if h or w is less than 8.
        """
        if min(middle.shape[1:3]) < 8:
            raise ValueError(
                "the realism head takes maps of at least 8×8 positions; "
                f"got {middle.shape[1]}×{middle.shape[2]}"
            )
        width = self.width or middle.shape[-1]
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(GroupNorm, self.norm_groups, 1e-5)
        x = conv(width, 4, stride=2, padding=1, name="cls_pred_branch_0")(middle)
        x = nn.silu(norm(name="cls_pred_branch_1")(x))
        x = conv(width, 4, stride=4, padding=0, name="cls_pred_branch_3")(x)
        x = nn.silu(norm(name="cls_pred_branch_4")(x))
        x = conv(1, name="cls_pred_branch_6")(x)
        return x.reshape(x.shape[0], -1).astype(jnp.float32)


class Critic(nn.Module):
    """Tells originals from decoded images, place by place, by pixels and by a frozen network.

    What the network sees in them makes a small critic learn in few steps (after Sauer et al.,
    "Projected GANs Converge Faster", 2021); regular patterns of few pixels, which it hardly sees,
    are left to convolutions of the pixels.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array, features: Sequence[Array]) -> list[Array]:
        """Logits of "original", float32 [B, h, w] each, at the pixels' quarter and at each map.

        Args:
          image: [B, H, W, 3] in [0, 1].
          features: maps [B, h, w, C], each of its own size.
        """
        act = partial(nn.leaky_relu, negative_slope=0.2)
        conv = partial(Conv, dtype=self.dtype)
        logit = lambda x, name: conv(1, name=name)(x)[..., 0].astype(jnp.float32)

        x = 2 * image - 1
        for i in range(2):
            x = act(conv(self.width, 5, stride=2, name=f"pixels_{i}")(x))
        x = act(conv(self.width, 3, name="pixels_2")(x))
        logits = [logit(x, "pixels_3")]
        for i, x in enumerate(features):
            x = unit_length(x) * x.shape[-1] ** 0.5  # each of about 1
            x = act(conv(self.width, name=f"stage_{i}_0")(x))
            x = act(conv(self.width, 3, name=f"stage_{i}_1")(x))
            logits.append(logit(x, f"stage_{i}_2"))
        return logits
