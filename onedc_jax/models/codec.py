"""The latent codec: analysis, hyperprior, prior, semantic adaptor and synthesis."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import ModelError
from onedc_jax.models.hyperprior import HyperAnalysis, HyperSynthesis
from onedc_jax.models.layers import (
    AttnBlock,
    Conv,
    DepthConvBlock,
    GroupNorm,
    ResidualBlockUpsample,
    ResnetBlock,
    parameter,
    pixel_shuffle,
)
from onedc_jax.models.prior import Prior
from onedc_jax.models.quantize import codes_to_indices, fsq, indices_to_codes
from onedc_jax.models.transform import BlockInverse, BlockTransform
from onedc_jax.models.unet import AnalysisUNet

Array = jax.Array

# Of biases by rate. As Adam's steps are alike for all parameters, these learn so many times faster
# than others; without it they stay next to nothing.
_RATE_UNIT = 8.0


class Analysis(nn.Module):
    """Image and its latent -> (y [B, H/16, W/16, channels], semantics [B, H/64, W/64, S])."""

    channels: int
    internal: int
    pixel_features: int
    fused_features: int
    unet: Mapping[str, Any]
    attention: bool
    transform: bool
    norm: Any
    dtype: str

    @nn.compact
    def __call__(self, image: Array, latent: Array) -> tuple[Array, Array]:
        conv = partial(Conv, dtype=self.dtype)
        x = conv(self.pixel_features, 8, 8, 0, name="pix_emb")(
            image
        )  # [B, H/8, W/8, pixel_features]
        x = jnp.concatenate([x, latent.astype(x.dtype)], axis=-1)
        x = conv(self.fused_features, name="pix_fusion")(x)
        y, semantics = AnalysisUNet(
            features=self.internal, dtype=self.dtype, name="unet", **self.unet
        )(x)
        resnet = partial(ResnetBlock, self.internal, self.norm, self.dtype)
        y = resnet(name="trans_coding_0")(y)
        if self.attention:
            y = AttnBlock(self.norm, self.dtype, name="trans_coding_1")(y)
        y = resnet(name="trans_coding_2")(y)
        y = DepthConvBlock(self.internal, self.dtype, name="trans_coding_3")(y)
        y = DepthConvBlock(self.channels, self.dtype, name="trans_coding_4")(y)
        if self.transform:
            y += BlockTransform(self.channels, 16, name="block_transform")(image)
        return y, semantics


class SemanticAdaptor(nn.Module):
    """z_semantic [B, H/64, W/64, C] -> semantic tokens [B, H/64, W/64, features].

    The tokens are the U-Net's context.
    """

    features: int
    norm: Any
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = DepthConvBlock(self.features, self.dtype, name="to_semantic_0")(x)
        for i in (1, 4):
            x = ResnetBlock(self.features, self.norm, self.dtype, name=f"to_semantic_{i}")(x)
            x = AttnBlock(self.norm, self.dtype, name=f"to_semantic_{i + 1}")(x)
            x = AttnBlock(self.norm, self.dtype, name=f"to_semantic_{i + 2}")(x)
        return DepthConvBlock(self.features, self.dtype, name="to_semantic_7")(x)


class Synthesis(nn.Module):
    """y_hat [B, H/16, W/16, C] and tokens [B, H/64, W/64, S] -> x_hat [B, H/8, W/8, features].

    With several `rates`, a bias between as many points at its begin and one at its end, where the
    generator sees it, say how much of y is there and how much is to be invented.
    """

    internal: int
    features: int
    rates: int
    norm: Any
    dtype: str

    @nn.compact
    def __call__(self, y_hat: Array, tokens: Array, rate: Array | None = None) -> Array:
        block = lambda features, name: DepthConvBlock(features, self.dtype, name=name)
        resnet = lambda features, name: ResnetBlock(features, self.norm, self.dtype, name=name)
        up = lambda features, name: ResidualBlockUpsample(features, self.dtype, name=name)
        wide, half = self.internal, self.internal // 2

        def at_rate(name: str, x: Array) -> Array:
            if self.rates == 1:
                return x
            table = parameter(self, name, nn.initializers.zeros, (self.rates, x.shape[-1]))
            return x + (_RATE_UNIT * interpolated(table, rate)).astype(x.dtype)

        x = block(wide, "trans_coding_1")(block(wide, "trans_coding_0")(y_hat))
        x = at_rate("rate_in", x)
        for i in range(3):
            x = resnet(wide, f"blocks_{i}")(x)
        x = pixel_shuffle(
            Conv(4 * wide, dtype=self.dtype, name="blocks_3")(x)
        )  # [B, H/8, W/8, wide]
        x = Conv(half, 3, dtype=self.dtype, name="blocks_5")(x)
        for i in range(6, 9):
            x = resnet(half, f"blocks_{i}")(x)

        s = block(wide, "sem_up_1")(up(wide, "sem_up_0")(tokens))  # [B, H/32, W/32, wide]
        s = block(half, "sem_up_3")(up(half, "sem_up_2")(s))  # [B, H/16, W/16, half]
        s = up(half, "sem_up_4")(s)  # [B, H/8, W/8, half]
        x = block(self.features, "conv_out")(jnp.concatenate([x, s], axis=-1))
        return at_rate("rate_out", x)


def stretched(codec: dict, steps: float) -> dict:
    """A codec's parameters with the end of its knob as many steps between points farther on.

    What the knob and the synthesis have there goes on as it does from the last point but one; all
    rates that there were are there still. Raises ModelError for a codec without a knob, and for
    steps that are not above 0.
    """
    if not 0 < steps < np.inf:
        raise ModelError(f"steps={steps:g}: a knob is stretched by more than 0, e.g. 0.4")
    if "knob" not in codec:
        raise ModelError("this model has one rate, no knob: nothing to stretch")

    def longer(table):
        table = np.array(table, np.float32)
        table[-1] += steps * (table[-1] - table[-2])
        return table

    told = {name: longer(codec["synthesis"][name]) for name in ("rate_in", "rate_out")}
    knob = {name: longer(table) for name, table in codec["knob"].items()}
    return codec | dict(knob=knob, synthesis=codec["synthesis"] | told)


def interpolated(table: Array | np.ndarray, rate: Array | np.ndarray) -> Array | np.ndarray:
    """Rows [B, 1, 1, C] of a table [points, C] at places [B] in [0, 1], float32; NumPy of NumPy."""
    last = len(table) - 1
    place = rate.astype(np.float32)[:, None] * np.float32(last)  # [B, 1]
    nodes = np.arange(last + 1, dtype=np.float32)[None]
    weights = (1.0 - abs(place - nodes)).clip(0.0)  # [B, points]
    return (weights @ table.astype(np.float32))[:, None, None]


class RateKnob(nn.Module):
    """What the rate changes: how finely y is rounded, channel by channel, and what the prior knows.

    A rate in [0, 1] lies between two of the `points`, whose vectors are interpolated: gains of y
    before it is rounded and after (as logarithms), and a bias of the prior's features. After Cui et
    al., "Asymmetric Gained Deep Image Compression With Continuous Rate Adaptation" (2021).
    """

    points: int
    channels: int

    def setup(self):
        shape = (self.points, self.channels)
        self.gain, self.inverse, self.bias = (
            parameter(self, name, nn.initializers.zeros, shape)
            for name in ("gain", "inverse", "bias")
        )

    def __call__(self, rate: Array) -> tuple[Array, Array, Array]:
        """rate float [B] -> gain, inverse gain and bias, float32 [B, 1, 1, channels] each."""
        at = lambda table: interpolated(table, rate)
        return jnp.exp(at(self.gain)), jnp.exp(at(self.inverse)), at(self.bias)


class Codec(nn.Module):
    """The codec proper; defaults are the paper's sizes.

    Channels: of y (`channels`), of the tokens' semantic features (`semantic`), of what the
    generator is given of both (`features`), and inside: `internal` between the layers,
    `pixel_features` and `fused_features` of the analysis. `norm_groups` are those of
    `layers.GroupNorm`, `analysis_unet` holds fields of `AnalysisUNet`. `attention=False` leaves out
    the analysis' attention over all H/16 × W/16 positions, whose cost is quadratic in the number of
    pixels. With several `rates` there is a knob between as many points; methods then take a `rate`,
    float32 [B] in [0, 1], and y is meant as the network makes it, before the knob's gain. Without
    `guided` the semantic tokens are zero, and the codes are side information of the prior alone (an
    ablation).
    """

    channels: int = 128
    internal: int = 512
    semantic: int = 768
    features: int = 320
    pixel_features: int = 192
    fused_features: int = 320
    analysis_unet: Mapping[str, Any] = None
    attention: bool = True
    rates: int = 1
    transform: bool = False  # whether y begins as a block transform, see `transform.py`
    guided: bool = True
    norm_groups: int = 32
    remat: str = ""  # what training recomputes of the analysis U-Net, see `layers.recomputed`
    dtype: str = "float32"

    def setup(self):
        if self.rates > 1:
            self.knob = RateKnob(self.rates, self.channels)
        norm = partial(GroupNorm, self.norm_groups, 1e-6)
        unet = dict(norm_groups=self.norm_groups, remat=self.remat)
        self.analysis = Analysis(
            self.channels,
            self.internal,
            self.pixel_features,
            self.fused_features,
            unet | dict(self.analysis_unet or {}),
            self.attention,
            self.transform,
            norm,
            self.dtype,
        )
        self.hyper_analysis = HyperAnalysis(self.internal, norm, self.dtype)
        self.hyper_synthesis = HyperSynthesis(self.channels, self.dtype)
        self.prior = Prior(self.channels, self.dtype)
        self.adaptor = SemanticAdaptor(self.semantic, norm, self.dtype)
        self.synthesis = Synthesis(self.internal, self.features, self.rates, norm, self.dtype)
        if self.transform:
            self.block_inverse = BlockInverse(16)

    def analyse(self, image: Array, latent: Array) -> dict[str, Array]:
        """Image [B, H, W, 3], scaled latent [B, H/8, W/8, L] -> y, sem, z, z_hat, z_indices."""
        y, semantics = self.analysis(image, latent)
        z = self.hyper_analysis(y, semantics)
        z_hat = fsq(z)
        return dict(y=y, sem=semantics, z=z, z_hat=z_hat, z_indices=codes_to_indices(z_hat))

    def prior_parameters(self, z_indices: Array, rate: Array | None = None) -> Array:
        """Tokens int32 [B, H/64, W/64] -> the prior's parameters [B, H/16, W/16, 2 · channels]."""
        features, _ = self.hyper_synthesis(indices_to_codes(z_indices))
        return self.prior.parameters(features + self.at_rate(rate)[2])

    def prior_step(self, k: int, y_hat: Array, parameters: Array) -> tuple[Array, Array]:
        """As `Prior.step`."""
        return self.prior.step(k, y_hat, parameters)

    def synthesise(
        self, y_hat: Array, z_indices: Array, rate: Array | None = None
    ) -> dict[str, Array]:
        """y_hat [B, H/16, W/16, C], tokens' indices -> tokens, x_hat [B, H/8, W/8, features].

        And `scaled`, y_hat after the knob.
        """
        _, z_semantic = self.hyper_synthesis(indices_to_codes(z_indices))
        tokens = self.semantic_tokens(z_semantic)
        scaled = y_hat * self.at_rate(rate)[1]
        return dict(tokens=tokens, x_hat=self.synthesis(scaled, tokens, rate), scaled=scaled)

    def semantic_tokens(self, z_semantic: Array) -> Array:
        """What the codes say to the generator, [B, H/64, W/64, semantic]."""
        tokens = self.adaptor(z_semantic)
        return tokens if self.guided else jnp.zeros_like(tokens)

    def __call__(
        self,
        image: Array,
        latent: Array,
        rate: Array | None = None,
        alone: Array | None = None,
    ) -> dict[str, Array]:
        """Everything from the image to x_hat, with straight-through gradients, by name.

        `alone` is as in `Prior.__call__`.
        """
        gain, inverse, bias = self.at_rate(rate)
        out = self.analyse(image, latent)
        features, z_semantic = self.hyper_synthesis(out["z_hat"])
        out |= self.prior(out["y"] * gain, features + bias, alone)
        tokens = self.semantic_tokens(z_semantic)
        scaled = out["y_hat"] * inverse
        out |= dict(x_hat=self.synthesis(scaled, tokens, rate), scaled=scaled)
        return out | dict(features=features, z_semantic=z_semantic, tokens=tokens)

    def at_rate(self, rate: Array | None) -> tuple:
        """As `RateKnob`; a codec of one rate has a knob that does nothing."""
        return (1.0, 1.0, 0.0) if self.rates == 1 else self.knob(rate)
