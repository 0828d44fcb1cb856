"""Block transforms that a small model begins from, and learns from there.

From random kernels it takes a network days to find what a cosine transform does at once: with as
many coefficients a block as there are latent channels, it is nearer to the image by every metric
than a small autoencoder after hours. So where a model has `transform`, its latents and its y begin
as the coefficients of blocks of 8×8 and 16×16 pixels, each of about unit variance, and the networks
beside them as a tenth of what they would be, that for pixels a fiftieth; all of it is trained.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import ModelError
from onedc_jax.models.layers import Conv, parameter, pixel_shuffle, pixel_unshuffle

Array = jax.Array

# Colours as natural images have them, almost uncorrelated; and their deviations to the first's.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_CHROMA = np.array([1.0, 0.29, 0.15])
_BESIDE, _BESIDE_PIXELS = 0.1, 0.02


class BlockTransform(nn.Module):
    """Image [B, H, W, 3] -> coefficients of its blocks, float32 [B, H/size, W/size, features].

    Their scale is apart from the kernel (as a logarithm): a step of training then changes the
    functions of a block by the same angle whether they are strong in photographs or faint.
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        blocks = pixel_unshuffle(image.astype(jnp.float32), self.size)
        return Conv(self.features, bias=False, name="map")(blocks) * _scale(self, self.features)


class BlockInverse(nn.Module):
    """Coefficients [B, h, w, K] -> image float32 [B, h · size, w · size, 3].

    Each block fades into its neighbours up to half of its size beyond its ends, so that no grid
    shows where there are few coefficients. At the image's end blocks are as the last one.

    Where the image is only wanted for what `through` makes of it, a linear map of blocks of half
    the size or less (as `BlockTransform`), that is what comes out, and no pixel is computed.
    """

    size: int

    @nn.compact
    def __call__(self, x: Array, through: Callable[[Array], Array] | None = None) -> Array:
        _, h, w, c = x.shape
        size, shape = self.size, (2, 2, c, 3 * self.size**2)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape)
        if through is not None:
            parts = through(pixel_shuffle(kernel.reshape(4 * c, 1, 1, -1), size))
            size = parts.shape[1]  # what is between four blocks, [4 · K, size, size, K']
            kernel = pixel_unshuffle(parts, size).reshape(2, 2, c, -1)
        x = x.astype(jnp.float32) * _scale(self, c)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        around = [x[:, i : i + h + 1, j : j + w + 1] for i in range(2) for j in range(2)]
        squares = jnp.concatenate(around, axis=-1) @ kernel.reshape(4 * c, -1)
        half = size // 2
        return pixel_shuffle(squares, size)[:, half:-half, half:-half]


def _scale(module: nn.Module, features: int) -> Array:
    """exp of the parameter "log_scale" [features], to meet features [B, h, w, C]."""
    logarithm = parameter(module, "log_scale", nn.initializers.zeros, (features,))
    return jnp.exp(logarithm)[None, None, None]


def modes(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` strongest coefficients of blocks of `size` × `size` pixels.

    Returns:
      what they are, int [3, count]: vertical and horizontal frequency, and colour; and the
      deviations [count] that they have in photographs in [-1, 1], about: these fall with
      frequency, in colour faster.
    """
    u, v, colour = np.indices((size, size, 3)).reshape(3, -1)
    with np.errstate(divide="ignore"):
        falling = 0.0527 * size**1.32 / (u + v) ** np.where(colour, 1.4, 1.0)
    deviations = _CHROMA[colour] * np.where(u + v, falling, 0.88 * size)
    strongest = np.argsort(-deviations, kind="stable")[:count]
    return np.stack([u, v, colour])[:, strongest], deviations[strongest]


def basis(size: int, chosen: np.ndarray) -> np.ndarray:
    """Orthonormal functions of a block, [3, size, size, K], for coefficients of `modes`."""
    u, v, colour = chosen
    cosine = _cosines(size, np.arange(size))
    return np.einsum("kc,ky,kx->cyxk", _COLOURS[colour], cosine[u], cosine[v])


def faded(size: int, chosen: np.ndarray) -> np.ndarray:
    """The same, [3, 2 · size, 2 · size, K], going on beyond the block by a half on all sides.

    There they fade as those of the next block rise, over half of a block for what is constant and
    over less and less the higher the frequency: these are told apart from the neighbours' too.
    """
    u, v, colour = chosen
    x = np.arange(-size // 2, size + size // 2)
    reach = size / (2 + np.arange(size))[:, None]
    rise = lambda x: 0.5 + 0.5 * np.sin(np.pi / 2 * np.clip((x + 0.5)[None] / reach, -1, 1))
    cosine = _cosines(size, x) * rise(x) * rise(size - 1 - x)
    return np.einsum("kc,ky,kx->cyxk", _COLOURS[colour], cosine[u], cosine[v])


def _cosines(size: int, x: np.ndarray) -> np.ndarray:
    """[size frequencies, len(x)], orthonormal over a block."""
    k = np.arange(size)[:, None]
    scale = np.where(k, np.sqrt(2 / size), np.sqrt(1 / size))
    return scale * np.cos(np.pi * (2 * x[None] + 1) * k / (2 * size))


def begin_autoencoder(vae: dict[str, Any]) -> None:
    """Sets the parameters of a `VAE` with `transform`, in place."""
    _set_pair(vae["block_transform"], vae["block_inverse"], 8)
    vae["encoder"]["conv_out"]["kernel"] *= np.float32(_BESIDE)
    vae["decoder"]["conv_out"]["kernel"] *= np.float32(_BESIDE_PIXELS)


def begin_codec(codec: dict[str, Any], generator: dict[str, Any], gain: float) -> None:
    """Sets the parameters of a `Codec` with `transform` and of its generator, in place.

    y of the highest rate is `gain` times the coefficients: their rounding step is the inverse.
    Raises ModelError for a codec without a knob, which holds these steps.
    """
    if "knob" not in codec:
        raise ModelError("model.codec.transform needs a knob: set model.codec.rates to 2 or more")
    deviations = _set_pair(codec["analysis"]["block_transform"], codec["block_inverse"], 16)
    steps = np.float32(np.log(deviations * gain))
    codec["knob"]["gain"] += steps
    codec["knob"]["inverse"] -= steps
    _expect(codec["prior"], np.float32(deviations * gain))
    for last in (
        *codec["analysis"]["trans_coding_4"].values(),
        generator["unet"]["conv_out"],
        *(generator["vae_reduction"][name] for name in ("blocks_5", "short_cut")),
    ):
        last["kernel"] *= np.float32(_BESIDE)


def _set_pair(forward: dict[str, Any], inverse: dict[str, Any], size: int) -> np.ndarray:
    """Sets a `BlockTransform` and its `BlockInverse`; returns the coefficients' deviations."""
    kernel = forward["map"]["kernel"]
    chosen, deviations = modes(size, kernel.shape[-1])
    kernel[0, 0] = basis(size, chosen).reshape(-1, len(deviations))
    forward["log_scale"][...] = -np.log(deviations)
    inverse["log_scale"][...] = np.log(deviations)
    # [3, 2, size, 2, size, K]: what a block gives to the four squares between blocks.
    parts = faded(size, chosen).reshape(3, 2, size, 2, size, -1)
    parts = parts[:, ::-1, :, ::-1].transpose(1, 3, 5, 0, 2, 4)
    inverse["kernel"][...] = parts.reshape(inverse["kernel"].shape)
    return deviations


def _expect(prior: dict[str, Any], deviations: np.ndarray) -> None:
    """Lets the prior begin with scales near these, and see y in units of them."""
    channels = len(deviations)
    for name in ("fusion_1", "spatial_2"):
        prior[name]["ffn_out"]["bias"][:channels] += deviations / 3
    for k in (1, 2, 3):
        block = prior[f"step_{k}"]
        for name in ("dw_in", "ffn_in"):
            block[name]["kernel"][..., :channels, :] /= np.maximum(deviations, 1)[:, None]
        # The block hands on what it is given, and its first half becomes the scales: y would be
        # taken for them. Two units a channel take it off again, as leaky(x) - leaky(-x) = 1.1 x.
        into, out = block["ffn_in"]["kernel"][0, 0], block["ffn_out"]["kernel"][0, 0]
        unit, eye = np.arange(channels), np.eye(channels, dtype=np.float32)
        hidden = len(out)
        for units, sign in ((unit, 1), (unit + channels, -1)):
            into[:, units] = into[:, units + hidden] = out[units] = 0
            into[:channels, units] = sign * eye / 1.1
            out[units, :channels] = -sign * eye
