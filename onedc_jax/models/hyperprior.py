"""Hyper-analysis and hyper-synthesis: y and semantics <-> one 14-bit token per 64×64 pixels."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.layers import (
    AttnBlock,
    Conv,
    DepthConvBlock,
    GroupNorm,
    ResidualBlockUpsample,
)
from onedc_jax.models.quantize import FSQ_CHANNELS

Array = jax.Array


class HyperAnalysis(nn.Module):
    """y [B, H/16, W/16, C] and semantics [B, H/64, W/64, S] -> z [B, H/64, W/64, 7], before FSQ."""

    internal: int
    norm: type = GroupNorm
    dtype: str = "float32"

    @nn.compact
    def __call__(self, y: Array, semantics: Array) -> Array:
        block = lambda features, name: DepthConvBlock(features, dtype=self.dtype, name=name)
        attend = lambda name: AttnBlock(self.norm, self.dtype, name=name)
        channels, width = y.shape[-1], semantics.shape[-1]
        y = block(channels, "y_trans_coding_0")(y)
        y = Conv(channels, 3, 2, dtype=self.dtype, name="y_trans_coding_1")(y)  # [B, H/32, W/32, C]
        y = block(channels, "y_trans_coding_2")(y)
        y = Conv(channels, 3, 2, dtype=self.dtype, name="y_trans_coding_3")(y)  # [B, H/64, W/64, C]
        x = jnp.concatenate([y, semantics.astype(y.dtype)], axis=-1)
        x = attend("fusion_1")(block(width, "fusion_0")(x))
        x = attend("fusion_3")(block(self.internal, "fusion_2")(x))
        x = block(self.internal, "fusion_4")(x)
        return Conv(FSQ_CHANNELS, dtype=self.dtype, name="fusion_5")(x)


class HyperSynthesis(nn.Module):
    """Codes [B, H/64, W/64, 7] -> (features [B, H/16, W/16, C], z_semantic [B, H/64, W/64, C]).

    Only 1×1, depthwise and 3×3 convolutions: with the prior, this is all that the entropy coder's
    probabilities depend on.
    """

    channels: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, codes: Array) -> tuple[Array, Array]:
        block = lambda name: DepthConvBlock(self.channels, dtype=self.dtype, name=name)
        up = lambda name: ResidualBlockUpsample(self.channels, self.dtype, name=name)
        x = Conv(self.channels, dtype=self.dtype, name="feat_in_0")(codes)
        semantic = nn.leaky_relu(x, 0.01)
        x = up("to_entropy_1")(block("to_entropy_0")(semantic))
        x = up("to_entropy_3")(block("to_entropy_2")(x))
        return block("to_entropy_4")(x), semantic
