"""The noise schedule of Stable Diffusion, and what follows from it."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def alphas_cumprod(steps: int = 1000) -> np.ndarray:
    """ā of each timestep, float32 [steps]; √beta rises linearly, beta from 0.00085 to 0.012."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas).astype(np.float32)


def add_noise(x0: Array, noise: Array, t: int | Array, alphas: np.ndarray) -> Array:
    """√ā·x0 + √(1−ā)·noise, at one timestep or at one for each sample.

    Args:
      x0, noise: float32 [B, h, w, C].
      t: int, or int [B]; an index into `alphas`.
      alphas: ā of each timestep, see `alphas_cumprod`.
    """
    alphas = np.asarray(alphas, np.float64)
    return _at(np.sqrt(alphas), t) * x0 + _at(np.sqrt(1.0 - alphas), t) * noise


def x0_from_eps(sample: Array, eps: Array, t: int | Array, alphas: np.ndarray) -> Array:
    """The clean sample behind a noisy one, given its noise: (sample − √(1−ā)·eps) / √ā.

    Arguments as `add_noise`. The two factors are computed in float64 and rounded once, so that
    float32 is enough although 1/√ā is near 15 at the last timestep.
    """
    alphas = np.asarray(alphas, np.float64)
    return _at(1.0 / np.sqrt(alphas), t) * sample - _at(np.sqrt(1.0 / alphas - 1.0), t) * eps


def _at(table: np.ndarray, t: int | Array) -> Array:
    """Float32 values of a table at t, [1 or B, 1, 1, 1]."""
    return jnp.asarray(table, jnp.float32)[t].reshape(-1, 1, 1, 1)
