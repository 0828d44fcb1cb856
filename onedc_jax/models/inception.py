"""The Inception v3 network of FID and KID (Szegedy et al., "Rethinking the Inception Architecture
for Computer Vision", CVPR 2016), as Heusel et al. (2017) took it from TensorFlow.

It differs from the usual one of ImageNet: means over 3×3 pixels count only those inside, and the
last block takes maxima. Batch norms are folded into the convolutions; there is no classifier.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

SIDE = 299  # pixels; images are resized to it


class Inception(nn.Module):
    """Images, [B, H, W, 3] of 0 to 255 (uint8 or floating point) -> features [B, 2048], float32."""

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = (_resized(images.astype(jnp.float32)) - 128) / 128
        x = _conv(x, "Conv2d_1a_3x3", 32, 3, 3, 2, "VALID")
        x = _conv(x, "Conv2d_2a_3x3", 32, 3, 3, 1, "VALID")
        x = _halved(_conv(x, "Conv2d_2b_3x3", 64, 3, 3))
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _halved(_conv(x, "Conv2d_4a_3x3", 192, 3, 3, 1, "VALID"))
        x = MixedA(32, name="Mixed_5b")(x)
        x = MixedA(64, name="Mixed_5c")(x)
        x = MixedA(64, name="Mixed_5d")(x)
        x = ReductionA(name="Mixed_6a")(x)
        x = MixedB(128, name="Mixed_6b")(x)
        x = MixedB(160, name="Mixed_6c")(x)
        x = MixedB(160, name="Mixed_6d")(x)
        x = MixedB(192, name="Mixed_6e")(x)
        x = ReductionB(name="Mixed_7a")(x)
        x = MixedC(_means, name="Mixed_7b")(x)
        x = MixedC(_maxima, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))


class MixedA(nn.Module):
    """[B, 35, 35, C] -> [B, 35, 35, 224 + pooled]."""

    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = _conv(x, "branch1x1", 64)
        five = _conv(_conv(x, "branch5x5_1", 48), "branch5x5_2", 64, 5, 5)
        three = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3)
        three = _conv(three, "branch3x3dbl_3", 96, 3, 3)
        pool = _conv(_means(x), "branch_pool", self.pooled)
        return jnp.concatenate([one, five, three, pool], axis=-1)


class ReductionA(nn.Module):
    """[B, 35, 35, C] -> [B, 17, 17, 480 + C]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _conv(x, "branch3x3", 384, 3, 3, 2, "VALID")
        double = _conv(_conv(x, "branch3x3dbl_1", 64), "branch3x3dbl_2", 96, 3, 3)
        double = _conv(double, "branch3x3dbl_3", 96, 3, 3, 2, "VALID")
        return jnp.concatenate([three, double, _halved(x)], axis=-1)


class MixedB(nn.Module):
    """[B, 17, 17, 768] -> the same; 7×7 windows as rows and columns, `width` channels inside."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one = _conv(x, "branch1x1", 192)
        seven = _conv(_conv(x, "branch7x7_1", self.width), "branch7x7_2", self.width, 1, 7)
        seven = _conv(seven, "branch7x7_3", 192, 7, 1)
        double = _conv(x, "branch7x7dbl_1", self.width)
        for n, (height, width) in enumerate(((7, 1), (1, 7), (7, 1)), start=2):
            double = _conv(double, f"branch7x7dbl_{n}", self.width, height, width)
        double = _conv(double, "branch7x7dbl_5", 192, 1, 7)
        pool = _conv(_means(x), "branch_pool", 192)
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class ReductionB(nn.Module):
    """[B, 17, 17, 768] -> [B, 8, 8, 1280]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        three = _conv(_conv(x, "branch3x3_1", 192), "branch3x3_2", 320, 3, 3, 2, "VALID")
        seven = _conv(_conv(x, "branch7x7x3_1", 192), "branch7x7x3_2", 192, 1, 7)
        seven = _conv(seven, "branch7x7x3_3", 192, 7, 1)
        seven = _conv(seven, "branch7x7x3_4", 192, 3, 3, 2, "VALID")
        return jnp.concatenate([three, seven, _halved(x)], axis=-1)


class MixedC(nn.Module):
    """[B, 8, 8, C] -> [B, 8, 8, 2048]; `pool` keeps the size."""

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def crossed(x: Array, name: str) -> list[Array]:
            return [_conv(x, f"{name}a", 384, 1, 3), _conv(x, f"{name}b", 384, 3, 1)]

        one = _conv(x, "branch1x1", 320)
        three = crossed(_conv(x, "branch3x3_1", 384), "branch3x3_2")
        double = _conv(_conv(x, "branch3x3dbl_1", 448), "branch3x3dbl_2", 384, 3, 3)
        pool = _conv(self.pool(x), "branch_pool", 192)
        return jnp.concatenate([one, *three, *crossed(double, "branch3x3dbl_3"), pool], axis=-1)


def _conv(
    x: Array,
    name: str,
    features: int,
    height: int = 1,
    width: int = 1,
    stride: int = 1,
    padding: str = "SAME",
) -> Array:
    conv = nn.Conv(features, (height, width), stride, padding, name=name)
    return nn.relu(conv(x))


def _of_three(x: Array, axis: int, reduce: Callable, outside: float) -> Array:
    """Each number and its two neighbours on an axis, reduced to one; `outside` lies at the ends."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (1, 1)
    padded = jnp.pad(x, pads, constant_values=outside)
    size = x.shape[axis]
    before, at, after = (lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
    return reduce(reduce(before, at), after)


# Pools as shifted operations, of rows and then of columns: faster on CPUs than reduced windows.
def _means(x: Array) -> Array:
    """Means over 3×3 pixels, of those inside the image."""
    for axis in (1, 2):
        inside = jnp.ones([n if i == axis else 1 for i, n in enumerate(x.shape)])
        x = _of_three(x, axis, jnp.add, 0) / _of_three(inside, axis, jnp.add, 0)
    return x


def _maxima(x: Array) -> Array:
    """Maxima over 3×3 pixels, of those inside the image."""
    for axis in (1, 2):
        x = _of_three(x, axis, jnp.maximum, -jnp.inf)
    return x


def _halved(x: Array) -> Array:
    """Maxima over 3×3 pixels, at every other pixel whose window lies inside the image."""
    return _maxima(x)[:, 1:-1:2, 1:-1:2]


def _resized(x: Array) -> Array:
    """Bilinear to 299×299 as TensorFlow 1 did it: no antialiasing, and top left corners meet."""
    rows, columns = (jnp.asarray(_interpolation(size)) for size in x.shape[1:3])
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x, precision="highest")


def _interpolation(size: int) -> np.ndarray:
    """A line of `size` numbers to one of 299, as a matrix [299, size]."""
    place = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    before = np.minimum(place.astype(int), size - 1)
    after = np.minimum(before + 1, size - 1)
    matrix = np.zeros((SIDE, size), np.float32)
    np.add.at(matrix, (np.arange(SIDE), before), 1 - (place - before))
    np.add.at(matrix, (np.arange(SIDE), after), place - before)
    return matrix
