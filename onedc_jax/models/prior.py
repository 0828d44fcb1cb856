"""The four-step context prior: every y's mean and scale from the hyperprior and the y coded so far.

The channels form four groups and each 2×2 cell has four positions; step k codes group g at position
`_POSITION[k][g]`. A step's values therefore fill one [B, H, W, C/4] array, one group per position:
`gather` takes that array out of a full one, `scatter` puts it back.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc

from onedc_jax.models.layers import Conv, DepthConvBlock
from onedc_jax.models.quantize import lower_bound, ste_round

Array = jax.Array

STEPS = 4
SCALE_MIN = 0.11  # the narrowest Gaussian that training can express
_LIKELIHOOD_MIN = 1e-9

# A cell's positions: 0 = (even row, even column), 1 = (even, odd), 2 = (odd, even), 3 = (odd, odd).
_POSITION = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]])  # [step, group]


def step_mask(k: int | Array, height: int, width: int) -> np.ndarray | Array:
    """Where step k codes, boolean [H, W, 4 groups]: one group at each position."""
    cell = 2 * (np.arange(height) % 2)[:, None] + (np.arange(width) % 2)[None]
    position = _POSITION if isinstance(k, int) else jnp.asarray(_POSITION)
    return cell[:, :, None] == position[k][None, None]


def gather(x: Array, k: int | Array) -> Array:
    """The values of step k: [B, H, W, C] -> [B, H, W, C/4]."""
    b, h, w, c = x.shape
    here = jnp.where(step_mask(k, h, w)[..., None], x.reshape(b, h, w, 4, c // 4), 0)
    return here.sum(3, dtype=x.dtype)  # where jax has 64 bits too


def scatter(x: Array, k: int) -> Array:
    """Step k's values in their places, zero elsewhere: [B, H, W, C/4] -> [B, H, W, C]."""
    b, h, w, c = x.shape
    return jnp.where(step_mask(k, h, w)[..., None], x[:, :, :, None], 0).reshape(b, h, w, 4 * c)


class Prior(nn.Module):
    """Mean and scale of y [B, H/16, W/16, channels]."""

    channels: int = 128
    dtype: str = "float32"

    def setup(self):
        wide = lambda: DepthConvBlock(2 * self.channels, dtype=self.dtype)
        self.fusion_0, self.fusion_1 = wide(), wide()
        self.reduction = Conv(self.channels, dtype=self.dtype)
        self.step_1, self.step_2, self.step_3 = wide(), wide(), wide()
        self.spatial_0, self.spatial_1, self.spatial_2 = wide(), wide(), wide()

    def parameters(self, features: Array) -> Array:
        """Features [B, H/16, W/16, channels] -> step 0's scales and means, [.., 2 · channels]."""
        return self.fusion_1(self.fusion_0(features))

    def step(self, k: int, y_hat: Array, parameters: Array) -> tuple[Array, Array]:
        """Mean and scale of step k's values, both float32 [B, H/16, W/16, channels / 4].

        `y_hat` holds the values of the steps before, zero elsewhere. Training, encoder and decoder
        all obtain them here.
        """
        if k > 0:
            x = jnp.concatenate([y_hat, self.reduction(parameters)], axis=-1)
            x = (self.step_1, self.step_2, self.step_3)[k - 1](x)
            parameters = self.spatial_2(self.spatial_1(self.spatial_0(x)))
        scales, means = jnp.split(parameters.astype(jnp.float32), 2, axis=-1)
        return gather(means, k), gather(scales, k)

    def __call__(self, y: Array, features: Array, alone: Array | None = None) -> dict[str, Array]:
        """Quantises y step by step with straight-through gradients.

        Of images for which `alone`, boolean [B], is true no symbols are sent: every one is 0, and
        y_hat the prior's mean (the paper's lowest rate).

        Returns full-size arrays: `residual` (y − mean), `symbols` (its rounding), `scales` and
        `y_hat`, float32, and `parameters` in `dtype`.
        """
        parameters = self.parameters(features)
        y_hat = residual = symbols = scales = jnp.zeros_like(y, jnp.float32)
        for k in range(STEPS):
            mean, scale = self.step(k, y_hat, parameters)
            r = gather(y, k) - mean
            q = ste_round(r)
            if alone is not None:
                q = jnp.where(alone[:, None, None, None], 0.0, q)
            y_hat += scatter(q + mean, k)
            residual += scatter(r, k)
            symbols += scatter(q, k)
            scales += scatter(scale, k)
        return dict(
            y_hat=y_hat, residual=residual, symbols=symbols, scales=scales, parameters=parameters
        )


def _normal_cdf(x: Array) -> Array:
    return 0.5 * erfc(-x * np.float32(np.sqrt(0.5)))


def _bits(values: Array, scales: Array) -> Array:
    """Bits of values under Gaussians of these scales integrated over unit bins."""
    values = jnp.abs(values)
    upper = _normal_cdf((0.5 - values) / scales)
    lower = _normal_cdf((-0.5 - values) / scales)
    likelihood = lower_bound(upper - lower, _LIKELIHOOD_MIN)
    return lower_bound(-jnp.log2(likelihood + 1e-5), 0.0)


def training_bits(residual: Array, scales: Array, noise: Array) -> Array:
    """Bits of each value in training; noise, uniform in ±0.5, stands for rounding. All float32.

    Noise also charges for values that are rounded to 0 and cost nothing. What is sent is counted by
    symbols in place of the residual, and no noise: gradients then go straight through.
    """
    return _bits(residual + noise, lower_bound(scales, SCALE_MIN))


def estimated_bits(symbols: Array, scales: Array) -> Array:
    """Bits of each quantised value, with the network's raw scales clamped to [1e-5, 1e10]."""
    return _bits(symbols, jnp.clip(scales, 1e-5, 1e10))
