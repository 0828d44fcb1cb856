"""How far a picture is from its original: PSNR, MS-SSIM and the rate paid for it.

Images are [B, H, W, 3], uint8 or floating point in [0, 1]; a metric is float32 [B]. (LPIPS, which
needs weights, is in `models/lpips.py`.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2

MS_SSIM_MIN_SIDE = (_WINDOW - 1) * 2 ** (len(_WEIGHTS) - 1) + 1


def bpp(data: bytes, height: int, width: int) -> float:
    """Bits per pixel of a file's bytes, everything in it counted."""
    return 8 * len(data) / (height * width)


@jax.jit
def psnr(a: Array, b: Array) -> Array:
    """Peak signal-to-noise ratio in dB over pixels and channels; infinite for equal images."""
    error = jnp.square(_unit(a) - _unit(b)).mean(axis=(1, 2, 3))
    return -10 * jnp.log10(error)


@jax.jit
def ms_ssim(a: Array, b: Array) -> Array:
    """Multi-scale structural similarity, at most 1 (Wang, Simoncelli and Bovik, 2003).

    Five scales; Gaussian windows of 11×11, σ = 1.5, wholly inside the image; each channel for
    itself, then the mean. Sides must exceed 160 pixels. As in most implementations (and so in most
    published numbers) scales follow by 2×2 means, an odd side being padded by a zero at each end,
    and negative terms count as zero.
    """
    if a.ndim != 4 or a.shape != b.shape or min(a.shape[1:3]) < MS_SSIM_MIN_SIDE:
        raise ValueError(
            f"MS-SSIM compares batches of one shape [B, H, W, 3], H and W at least "
            f"{MS_SSIM_MIN_SIDE}; got {a.shape} and {b.shape}"
        )
    a, b = _unit(a), _unit(b)
    product = jnp.ones((a.shape[0], a.shape[3]))
    for n, weight in enumerate(_WEIGHTS):
        if n:
            a, b = _halve(a), _halve(b)
        luminance, contrast = _ssim_terms(a, b)
        last = n == len(_WEIGHTS) - 1
        term = (luminance * contrast if last else contrast).mean(axis=(1, 2))
        product *= jnp.maximum(term, 0) ** weight
    return product.mean(axis=1)


def _unit(x: Array) -> Array:
    x = jnp.asarray(x)
    return x / jnp.float32(255) if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def _ssim_terms(a: Array, b: Array) -> tuple[Array, Array]:
    """Luminance and contrast-structure terms of SSIM, [B, H - 10, W - 10, C] each."""
    blurred = _blur(jnp.concatenate([a, b, a * a, b * b, a * b]))
    mean_a, mean_b, square_a, square_b, product = jnp.split(blurred, 5)
    var_a = square_a - mean_a**2
    var_b = square_b - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    contrast = (2 * covariance + _C2) / (var_a + var_b + _C2)
    return luminance, contrast


def _blur(x: Array) -> Array:
    """A Gaussian window at each place where it fits: shifted sums, rows then columns."""
    taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (1, 2):
        size = x.shape[axis] - _WINDOW + 1
        x = sum(t * lax.slice_in_dim(x, i, i + size, axis=axis) for i, t in enumerate(taps))
    return x


def _halve(x: Array) -> Array:
    """Means of 2×2 pixels; odd sides are padded by a zero at each end."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (height % 2,) * 2, (width % 2,) * 2, (0, 0)))
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    x = x.reshape(batch, x.shape[1] // 2, 2, x.shape[2] // 2, 2, channels)
    return x.mean(axis=(2, 4))
