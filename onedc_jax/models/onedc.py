"""OneDC: latent codec, semantic hyperprior and one-step generator, and the data flow between them.

Images are float32 [B, H, W, 3] in [-1, 1] with H and W multiples of 64. Latents in here are scaled
(times `latent_scale`). A `rate`, float32 [B] in [0, 1], is for models with a knob (`Codec.rates`),
an `origin`, as in `Generator`, for those with noise.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.codec import Codec
from onedc_jax.models.generator import Generator
from onedc_jax.models.init import shapes_of
from onedc_jax.models.vae import VAE

Array = jax.Array

BLOCK = 64  # sides of a coded image are multiples of it: one token per block
PARTS = ("vae", "codec", "generator")


class OneDC(nn.Module):
    """The whole model; params = {"vae", "codec", "generator"}. See `build`."""

    vae: VAE
    codec: Codec
    generator: Generator
    latent_scale: float = 0.18215

    def analyse(self, image: Array) -> dict[str, Array]:
        """The encoder's network: image -> latent, y, sem, z, z_hat, z_indices."""
        latent = self.vae.encode(image).mean * self.latent_scale
        return self.codec.analyse(image, latent) | dict(latent=latent)

    def prior_parameters(self, z_indices: Array, rate: Array | None = None) -> Array:
        """As `Codec.prior_parameters`."""
        return self.codec.prior_parameters(z_indices, rate)

    def prior_step(self, k: int, y_hat: Array, parameters: Array) -> tuple[Array, Array]:
        """As `Prior.step`."""
        return self.codec.prior_step(k, y_hat, parameters)

    def reconstruct(
        self,
        y_hat: Array,
        z_indices: Array,
        rate: Array | None = None,
        origin: Array | None = None,
    ) -> Array:
        """The decoder's network: y_hat and tokens -> image, clipped to [-1, 1]."""
        out = self.codec.synthesise(y_hat, z_indices, rate)
        return self.generate(out["x_hat"], out["tokens"], out["scaled"], origin)["image"]

    def generate(
        self,
        x_hat: Array,
        tokens: Array,
        scaled: Array | None = None,
        origin: Array | None = None,
    ) -> dict[str, Array]:
        """One step of the generator and the VAE's decoder: eps, reduced, x0, decoded and image.

        With `Codec.transform`, the latent of the image that `scaled` holds is added to x0.
        """
        b, h, w, c = tokens.shape
        out = self.generator(x_hat, tokens.reshape(b, h * w, c), origin)
        if self.codec.transform:
            base = self.codec.block_inverse(scaled, self.vae.block_transform)
            out["x0"] += base * self.latent_scale
        decoded = self.vae.decode(out["x0"] / self.latent_scale)
        return out | dict(decoded=decoded, image=jnp.clip(decoded, -1.0, 1.0))

    def __call__(
        self,
        image: Array,
        rate: Array | None = None,
        alone: Array | None = None,
        origin: Array | None = None,
        key: Array | None = None,
    ) -> dict[str, Array]:
        """The training pass: every intermediate by name, with straight-through gradients.

        Images for which `alone`, boolean [B], is true are made from their tokens alone. With a
        `key` the VAE's latent is a sample of its posterior, without it the mean, as in `analyse`.
        """
        posterior = self.vae.encode(image)
        latent = (posterior.mean if key is None else posterior.sample(key)) * self.latent_scale
        out = self.codec(image, latent, rate, alone)
        made = self.generate(out["x_hat"], out["tokens"], out["scaled"], origin)
        return out | made | dict(latent=latent)


def build(config: Mapping[str, Any], **computed: Any) -> OneDC:
    """The model of a plain nested configuration {"vae": .., "codec": .., "generator": ..}.

    `computed` are fields of all three parts that are no matter of the model, as `dtype`.

    What is left out has the paper's sizes; {"generator": {"unet": {"rank": 64}}} is the released
    model, `build({})` the same with its LoRA merged. An unknown key raises a TypeError, as does a
    timestep that there is not.
    """
    fields = {key: hashable(value) for key, value in config.items()}
    modules = zip(PARTS, (VAE, Codec, Generator), strict=True)
    parts = {name: module(**fields.pop(name, {}) | computed) for name, module in modules}
    model = OneDC(**parts, **fields)
    if model.generator.timestep not in range(1000):
        raise TypeError(f"timestep {model.generator.timestep!r}: must be 0 to 999")
    return model


def hashable(value: Any) -> Any:
    """Tuples for the lists of JSON: fields of modules must be hashable."""
    if isinstance(value, Mapping):
        return {k: hashable(v) for k, v in value.items()}
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value


def param_shapes(model: OneDC) -> dict[str, Any]:
    """Shapes and dtypes of the parameters {"vae", "codec", "generator"}; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, BLOCK, BLOCK, 3), jnp.float32)
    rate = jax.ShapeDtypeStruct((1,), jnp.float32)
    return shapes_of(model, image, rate)
