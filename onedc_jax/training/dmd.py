"""Distribution matching with a classifier on diffused latents (DMD2: Yin et al., "Improved
Distribution Matching Distillation for Fast Image Synthesis", NeurIPS 2024).

Two diffusion models look at a generated latent: the real score, which knows natural images, and the
fake score, which follows the generator. Where they disagree is where the generator has to go. The
fake score's middle also feeds a classifier of real and generated latents.

Noises and timesteps are arguments, so that all here is a function of its inputs.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from onedc_jax.models.diffusion import add_noise, alphas_cumprod, x0_from_eps
from onedc_jax.models.heads import RealismHead
from onedc_jax.models.score import guided_eps
from onedc_jax.models.unet import UNet

Array = jax.Array
ALPHAS = alphas_cumprod()


class Draw(NamedTuple):
    """What chance decides of a diffused latent."""

    noise: Array  # float32 [B, h, w, C]
    t: Array  # int32 [B]

    def diffuse(self, latent: Array) -> Array:
        return add_noise(latent, self.noise, self.t, ALPHAS)


def draw(key: Array, shape: tuple[int, ...], low: int, high: int) -> Draw:
    """Unit Gaussian noise for latents of a shape, and timesteps uniform in low … high, both in."""
    noise_key, t_key = jax.random.split(key)
    t = jax.random.randint(t_key, shape[:1], low, high + 1)
    return Draw(jax.random.normal(noise_key, shape), t)


def matching_gradient(x0: Array, x0_real: Array, x0_fake: Array) -> Array:
    """Where a generated latent is to go, times -1: how much farther the real score moves it.

    All [B, h, w, C]; `x0_real` and `x0_fake` are what the two scores make of the diffused x0. Each
    sample is divided by how far the real score moves it on average; zero where that is no number.
    """
    to_real, to_fake = x0 - x0_real, x0 - x0_fake
    gradient = (to_real - to_fake) / jnp.abs(to_real).mean((1, 2, 3), keepdims=True)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def matching(x0: Array, x0_real: Array, x0_fake: Array) -> Array:
    """The loss whose gradient in x0 is `matching_gradient`, over the number of elements."""
    target = stop_gradient(x0 - matching_gradient(x0, x0_real, x0_fake))
    return 0.5 * jnp.square(x0 - target).mean()


def adversarial(fake_logits: Array) -> Array:
    """The generator's side of the classifier: its latents should look real."""
    return jax.nn.softplus(-fake_logits).mean()


def realism(fake_logits: Array, real_logits: Array) -> Array:
    """The classifier's own side."""
    return jax.nn.softplus(fake_logits).mean() + jax.nn.softplus(-real_logits).mean()


def denoising(eps: Array, noise: Array) -> Array:
    """The fake score's loss: it predicts the noise."""
    return jnp.square(eps - noise).mean()


@dataclass(frozen=True)
class Guidance:
    """The two scores and the classifier, and what they say.

    Latents are float32 [B, h, w, C], scaled as the real score wants them. Parameters come with each
    call: `real` those of the real score, `players` {"fake": .., "realism": ..} what is trained.
    """

    unet: UNet  # of both scores
    head: RealismHead
    scale: float = 1.75  # of the real score's classifier-free guidance

    def generator_terms(
        self,
        x0: Array,
        real: Any,
        players: Any,
        context: Array,
        empty: Array | None,
        draws: tuple[Draw, Draw],
    ) -> dict[str, Array]:
        """The terms `dm` and `adversarial` of the generator's loss for generated latents x0.

        Args:
          context: of each sample, [B, N, D].
          empty: [1 or B, N, D], the context of no caption; None: no classifier-free guidance.
          draws: for distribution matching and for the classifier, in this order.
        """
        first, second = draws
        still = stop_gradient(x0)
        sample = first.diffuse(still)
        eps = guided_eps(self.unet, real, sample, first.t, context, empty, self.scale)
        x0_real = x0_from_eps(sample, eps, first.t, ALPHAS)
        eps, _ = self._fake(players, sample, first.t, context)
        x0_fake = x0_from_eps(sample, eps, first.t, ALPHAS)
        logits = self.logits(players, x0, context, second)
        return dict(dm=matching(x0, x0_real, x0_fake), adversarial=adversarial(logits))

    def guidance_terms(
        self,
        x0: Array,
        latent: Array,
        players: Any,
        context: Array,
        draws: tuple[Draw, Draw, Draw],
    ) -> dict[str, Array]:
        """The terms `denoising` and `realism` of the guidance's loss.

        Args:
          x0: generated latents; no gradient reaches them.
          latent: those of real images.
          context: of each sample, [B, N, D].
          draws: for the fake score, for the classifier on `latent` and for it on x0, in this order.
        """
        first, second, third = draws
        x0 = stop_gradient(x0)
        eps, _ = self._fake(players, first.diffuse(x0), first.t, context)
        real_logits = self.logits(players, latent, context, second)
        fake_logits = self.logits(players, x0, context, third)
        return dict(
            denoising=denoising(eps, first.noise), realism=realism(fake_logits, real_logits)
        )

    def logits(self, players: Any, latent: Array, context: Array, draw: Draw) -> Array:
        """How real diffused latents look, float32 [B, n]: see `RealismHead`."""
        _, middle = self._fake(players, draw.diffuse(latent), draw.t, context)
        return self.head.apply({"params": players["realism"]}, middle)

    def _fake(self, players: Any, sample: Array, t: Array, context: Array) -> tuple[Array, Array]:
        return self.unet.apply({"params": players["fake"]}, sample, t, context)


def smallest_crop(levels: int) -> int:
    """The side, in pixels, of the least image whose latent fills a piece of the classifier's map.

    Latents have an eighth of an image's resolution, the middle of a U-Net with so many levels a
    2^(levels - 1)-th of that, and `RealismHead` takes pieces of 8 × 8.
    """
    return 8 * 8 * 2 ** (levels - 1)
