"""Losses: arrays in, a scalar out. Images are float32 [B, H, W, 3] in [-1, 1] unless said."""

import jax
import jax.numpy as jnp

from onedc_jax.models.lpips import lpips
from onedc_jax.models.pixels import to_unit

Array = jax.Array


def l1(a: Array, b: Array) -> Array:
    """Mean absolute difference on the [0, 1] scale."""
    return jnp.abs(to_unit(a) - to_unit(b)).mean()


def chroma(a: Array, b: Array) -> Array:
    """`l1` of what is left of the difference without its luminance (BT.601)."""
    difference = to_unit(a) - to_unit(b)
    luminance = difference @ jnp.array([0.299, 0.587, 0.114])
    return jnp.abs(difference - luminance[..., None]).mean()


def pooled(image: Array, size: int) -> Array:
    """Means over `size` x `size` pixels; H and W are multiples of it."""
    b, h, w, c = image.shape
    return image.reshape(b, h // size, size, w // size, size, c).mean((2, 4))


def psnr(a: Array, b: Array) -> Array:
    """Peak signal to noise ratio in dB, the mean over images of what each has after clipping."""
    mse = jnp.square(to_unit(jnp.clip(a, -1, 1)) - to_unit(b)).mean((1, 2, 3))
    return (-10 * jnp.log10(jnp.maximum(mse, 1e-10))).mean()


def kl(mean: Array, logvar: Array) -> Array:
    """KL divergence from the unit Gaussian, summed over an image's latent, mean over images."""
    terms = jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar
    return 0.5 * terms.sum((1, 2, 3)).mean()


def motif(a: Array, b: Array, size: int) -> Array:
    """How much of the difference is one pattern in all cells of `size` x `size` pixels: [0, 1].

    What is equal in all cells of an image, as a share of what varies within them. Of N cells whose
    differences have nothing in common it is 1 / N. A change of all differences does not count.
    """
    batch, height, width, channels = a.shape
    cells = (a - b).reshape(batch, height // size, size, width // size, size, channels)
    cells -= cells.mean((2, 4), keepdims=True)
    shared = jnp.square(cells.mean((1, 3))).mean((1, 2, 3))  # [B]
    return (shared / jax.lax.stop_gradient(jnp.square(cells).mean((1, 2, 3, 4, 5)) + 1e-6)).mean()


def spread(key: Array, count: int) -> Array:
    """`count` random numbers in [0, 1], one in each of as many equal parts, in order."""
    return (jnp.arange(count) + jax.random.uniform(key, (count,))) / count


def origins(key: Array, count: int) -> Array:
    """Random places in pictures without end, int32 [count, 2]: crops see noise from anywhere."""
    return jax.random.randint(key, (count, 2), 0, 1 << 30)


def shifted(key: Array, *images: Array, reach: int) -> list[Array]:
    """The images less `reach` pixels a side, all cut at one random offset.

    A perceptual network with strides does not see every pattern at every position: without this, a
    decoder whose own grid is aligned with those strides leaves the patterns that it does not see.
    """
    y, x = jax.random.randint(key, (2,), 0, reach + 1)
    b, h, w, c = images[0].shape
    cut = lambda image: jax.lax.dynamic_slice(image, (0, y, x, 0), (b, h - reach, w - reach, c))
    return [cut(image) for image in images]


def perceptual(key: Array, params: dict, a: Array, b: Array, *, shift: int = 0, **options) -> Array:
    """Mean LPIPS of images less `shift` pixels a side, see `shifted`.

    `params` and `options` are those of `models.lpips.lpips`.
    """
    return lpips(params, *map(to_unit, shifted(key, a, b, reach=shift)), **options).mean()


def sampled(key: Array, count: int, size: int, *images: Array) -> list[Array]:
    """Squares of `size` pixels, at one random place, of `count` images evenly from the batch.

    The images are squares too. Of smaller ones and of smaller batches, all that there is.
    """
    first_key, place_key = jax.random.split(key)
    every = max(len(images[0]) // count, 1)
    chosen = jax.random.randint(first_key, (), 0, every) + every * jnp.arange(count)
    few = [image[chosen[: len(image)]] for image in images]
    return shifted(place_key, *few, reach=max(images[0].shape[1] - size, 0))


def whiteness(z: Array) -> Array:
    """How far the channels of z, float [..., C], are from zero mean, unit variance, no correlation.

    0 is best. FSQ's tanh gives no gradient back once z has drifted into its tails; this always
    does, and channels that are all like this use all the codes.
    """
    z = z.reshape(-1, z.shape[-1])
    mean = z.mean(0, keepdims=True)
    std = jnp.sqrt(jnp.square(z - mean).mean(0, keepdims=True) + 1e-4)
    unit = (z - mean) / std
    correlation = unit.T @ unit / z.shape[0] - jnp.eye(z.shape[1])
    return jnp.square(mean).mean() + jnp.square(std - 1).mean() + jnp.square(correlation).mean()


def entropy(p: Array) -> Array:
    """Entropy in nats over the last axis of probabilities, float [..., K] -> [...]."""
    return -(p * jnp.log(jnp.maximum(p, 1e-20))).sum(-1)


def disuse(hidden: Array, codebook: Array, temperature: float) -> Array:
    """How far a batch is from using all codes alike, each position surely; 0 is best, log K worst.

    hidden [N, D] takes each of the codes [K, D] with probability softmax(−distance / temperature):
    their mean entropy less the entropy of their mean, from the latter's maximum. A code that
    nothing is near is drawn to where others are crowded, which the distance to the nearest code
    alone never does. Distances are squared and divided by √D, to differ alike whatever D is.
    """
    norms = jnp.square(codebook).sum(-1)[None]
    products = jnp.einsum("nd,kd->nk", hidden, codebook)
    scale = temperature * hidden.shape[-1] ** 0.5
    p = jax.nn.softmax((2 * products - norms) / scale)
    return jnp.log(codebook.shape[0]) + entropy(p).mean() - entropy(p.mean(0))


def ramp(step: Array, value: float, steps: int, start: float = 1e-4) -> Array:
    """The rate's weight: quadratic from `start` to `value` over the first `steps` steps (paper)."""
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return start + (value - start) * jnp.square(progress)
