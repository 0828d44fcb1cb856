"""Block transforms that a small model begins from, and learns from there.

From random kernels it takes a network days to find what a cosine transform does at once: with as
many coefficients a block as there are latent channels, it is nearer to the image by every metric
than a small autoencoder after hours. So where a model has `transform`, its latents and its y begin
as the coefficients of blocks of 8×8 and 16×16 pixels, each of about unit variance, and the networks
beside them as a tenth of what they would be; all of it is trained.
"""

from typing import Any

import numpy as np

# Colours as natural images have them, almost uncorrelated; and their deviations to the first's.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
_CHROMA = np.array([1.0, 0.29, 0.15])
_BESIDE = 0.1


def modes(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` strongest coefficients of blocks of `size` × `size` pixels.

    Returns:
      an orthonormal basis, float64 [size · size · 3, count], whose rows are ordered as
      `layers.pixel_unshuffle` orders channels; and the deviations [count] that these coefficients
      have in photographs in [-1, 1], about: they fall with frequency, in colour faster.
    """
    k = np.arange(size)
    cosine = np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / (2 * size)) * np.sqrt(2 / size)
    cosine[0] /= np.sqrt(2)
    basis = np.einsum("uy,vx,pc->cyxuvp", cosine, cosine, _COLOURS).reshape(3 * size**2, -1)
    frequency = (k[:, None] + k[None, :])[..., None]  # [size, size, 1]
    with np.errstate(divide="ignore"):
        falling = 0.0527 * size**1.32 / frequency ** np.array([1.0, 1.4, 1.4])
    deviations = (_CHROMA * np.where(frequency, falling, 0.88 * size)).reshape(-1)
    strongest = np.argsort(-deviations, kind="stable")[:count]
    return basis[:, strongest], deviations[strongest]


def begin_autoencoder(vae: dict[str, Any]) -> None:
    """Sets the parameters of a `VAE` with `transform`, in place."""
    basis, deviations = modes(8, vae["block_transform"]["kernel"].shape[-1])
    _set(vae["block_transform"], basis / deviations)
    _set(vae["block_inverse"], (basis * deviations).T)
    for part in ("encoder", "decoder"):
        vae[part]["conv_out"]["kernel"] *= np.float32(_BESIDE)


def begin_codec(codec: dict[str, Any], generator: dict[str, Any], gain: float) -> None:
    """Sets the parameters of a `Codec` with `transform` and of its generator, in place.

    y of the highest rate is `gain` times the coefficients: their rounding step is the inverse.
    """
    y_basis, y_deviations = modes(16, codec["analysis"]["block_transform"]["kernel"].shape[-1])
    basis, deviations = modes(8, codec["block_inverse"]["kernel"].shape[-1] // 4)
    _set(codec["analysis"]["block_transform"], y_basis / y_deviations)
    # From a block to the latents of the four blocks in it, ordered as `pixel_shuffle` wants them.
    parts = (y_basis * y_deviations).T.reshape(-1, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5)
    latents = parts.reshape(-1, 2, 2, 192) @ (basis / deviations)  # [C, 2, 2, L]
    _set(codec["block_inverse"], latents.transpose(0, 3, 1, 2).reshape(len(latents), -1))
    steps = np.float32(np.log(y_deviations * gain))
    codec["knob"]["gain"] += steps
    codec["knob"]["inverse"] -= steps
    _expect(codec["prior"], np.float32(y_deviations * gain))
    for last in (
        *codec["analysis"]["trans_coding_4"].values(),
        generator["unet"]["conv_out"],
        *(generator["vae_reduction"][name] for name in ("blocks_5", "short_cut")),
    ):
        last["kernel"] *= np.float32(_BESIDE)


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


def _set(layer: dict[str, Any], kernel: np.ndarray) -> None:
    layer["kernel"] = np.float32(kernel).reshape(layer["kernel"].shape)
