"""The teacher of the semantic distillation: a VQGAN tokenizer, by default at H/16 × W/16.

The layout is that of MaskGIT's tokenizer (Chang et al., "MaskGIT: Masked Generative Image
Transformer", CVPR 2022): convolutions and no attention, average pools on the way down,
nearest-neighbour upsampling on the way up, a codebook in between. Names of submodules are those of
the released tensors.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from onedc_jax.models.layers import Conv, GroupNorm, ResnetBlock

Array = jax.Array


class Tokens(NamedTuple):
    """What an image becomes: the encoder's output, and the code nearest to it at each position."""

    hidden: Array  # float32 [B, h, w, features]
    quantized: Array  # float32, as hidden: rows of the codebook
    indices: Array  # int32 [B, h, w]


class Level(nn.Module):
    """Residual blocks, then, on the way up, twice the size and a convolution (`upsample`)."""

    features: int
    layers: int
    norm: Any
    dtype: Any
    upsample: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = ResnetBlock(self.features, self.norm, self.dtype, name=f"block_{i}")(x)
        if self.upsample:
            conv = Conv(self.features, 3, dtype=self.dtype, name="upsample_conv")
            x = conv.of_upsampled(x, 2 * x.shape[1], 2 * x.shape[2])
        return x


class Encoder(nn.Module):
    """Image [B, H, W, 3] -> [B, h, w, features], every level but the first at half the size."""

    features: int
    widths: Sequence[int]
    layers: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[0], 3, bias=False, dtype=self.dtype, name="conv_in")(x)
        for i, width in enumerate(self.widths):
            x = nn.avg_pool(x, (2, 2), (2, 2)) if i else x
            x = Level(width, self.layers, self.norm, self.dtype, name=f"down_{i}")(x)
        for i in range(self.layers):
            x = ResnetBlock(self.widths[-1], self.norm, self.dtype, name=f"mid_{i}")(x)
        x = nn.silu(self.norm(name="norm_out")(x))
        return Conv(self.features, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Codes [B, h, w, D] -> image [B, H, W, 3]."""

    widths: Sequence[int]
    layers: int
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[-1], 3, dtype=self.dtype, name="conv_in")(x)
        for i in range(self.layers):
            x = ResnetBlock(self.widths[-1], self.norm, self.dtype, name=f"mid_{i}")(x)
        for i, width in reversed(list(enumerate(self.widths))):
            x = Level(width, self.layers, self.norm, self.dtype, i > 0, name=f"up_{i}")(x)
        x = nn.silu(self.norm(name="norm_out")(x))
        return Conv(3, 3, dtype=self.dtype, name="conv_out")(x)


class Codebook(nn.Module):
    """`codes` vectors of `features` numbers, in float32."""

    codes: int
    features: int

    def setup(self):
        self.embedding = nn.Embed(self.codes, self.features)

    def nearest(self, x: Array) -> Array:
        """The index, int32 [...], of the code with the least squared distance to x [..., D]."""
        table = self.embedding.embedding  # [codes, D]
        # ‖x - c‖² without ‖x‖², which all codes share. In full precision: near codes are many.
        products = jnp.einsum("...d,cd->...c", x, table, precision=lax.Precision.HIGHEST)
        norms = jnp.square(table).sum(-1).reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.argmin(norms - 2 * products, axis=-1).astype(jnp.int32)

    def __call__(self, indices: Array) -> Array:
        """Indices, int [...] -> codes, float32 [..., D]."""
        return self.embedding(indices)


class VQGAN(nn.Module):
    """Images in [0, 1] <-> tokens. Defaults are those of the released tokenizer.

    Fields:
      widths: channels of each level; a level has half the resolution of the one before.
      layers: residual blocks a level, and in the middle.
      codes, features: how many codes there are, and of how many numbers.
      norm_groups: see `layers.GroupNorm`.
      dtype: in which convolutions are computed; codes are looked up in float32.
    """

    widths: Sequence[int] = (128, 128, 256, 256, 512)
    layers: int = 2
    codes: int = 1024
    features: int = 256
    norm_groups: int = 32
    dtype: Any = jnp.float32

    def setup(self):
        norm = partial(GroupNorm, self.norm_groups, 1e-6)
        shared = (self.widths, self.layers, norm, self.dtype)
        self.encoder = Encoder(self.features, *shared)
        self.decoder = Decoder(*shared)
        self.quantize = Codebook(self.codes, self.features)

    @property
    def stride(self) -> int:
        """How many pixels a token has along a side."""
        return 2 ** (len(self.widths) - 1)

    def encode(self, image: Array) -> Tokens:
        """Image float [B, H, W, 3] in [0, 1] -> its tokens, h = H / stride.

        Raises ValueError unless H and W are multiples of the stride.
        """
        if image.shape[1] % self.stride or image.shape[2] % self.stride:
            raise ValueError(
                f"the tokenizer takes images with sides that are multiples of {self.stride}; "
                f"got {image.shape[1]}×{image.shape[2]}"
            )
        hidden = self.encoder(image).astype(jnp.float32)
        indices = self.quantize.nearest(hidden)
        return Tokens(hidden, self.quantize(indices), indices)

    def decode(self, quantized: Array) -> Array:
        """Codes [B, h, w, features] -> image float32 [B, H, W, 3], not clipped."""
        return self.decoder(quantized).astype(jnp.float32)

    def lookup(self, indices: Array) -> Array:
        """Indices, int [...] -> their codes, float32 [..., features]."""
        return self.quantize(indices)

    def __call__(self, image: Array) -> tuple[Array, Tokens]:
        """Encodes and decodes; the gradient passes the codebook as if it were not there."""
        tokens = self.encode(image)
        straight = tokens.hidden + lax.stop_gradient(tokens.quantized - tokens.hidden)
        return self.decode(straight), tokens
