"""Wide 3×3 convolutions on CPUs, with a quarter of the multiplications.

Sixteen outputs of a 4×4 tile come from 36 products instead of 144, between sums that cost little
where there are many channels: F(4×4, 3×3) of Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks" (2016). Float32 results differ by some 5e-6 of their size.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onedc_jax.models.layers import Conv, convolved

Array = jax.Array

# Below these the sums, and those of the kernel, cost more than the products that they save.
_CHANNELS = 256
_POSITIONS = 64 * 64

_TILE = 4
_BAND = 1 << 15  # tiles at a time: what they are made into is 36 times their number of vectors

# Of the points 0, ±1, ±2 and infinity: what is made of inputs, of weights and of their products.
_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_WEIGHTS = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OUTPUTS = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def on_cpu():
    """The context in which networks on a CPU convolve like this wherever it pays.

    Entered after `padding.within`, whose zeros belong to what is convolved.
    """

    def call(next_function, args, kwargs, context):
        layer = context.module
        called = context.method_name == "__call__" and isinstance(layer, Conv)
        if not called or not _pays(layer, *args):
            return next_function(*args, **kwargs)
        kernel = layer.get_variable("params", "kernel")
        plain = lambda x, kernel: convolved(x, kernel, 1, ((1, 1), (1, 1)))
        x = args[0].astype(jnp.float32)
        y = lax.platform_dependent(x, kernel, cpu=convolved_3x3, default=plain)
        return y + layer.get_variable("params", "bias")[None, None, None] if layer.bias else y

    return nn.intercept_methods(call)


def _pays(layer: Conv, x: Array) -> bool:
    same = layer.size == 3 and layer.stride == 1 and layer.padding in (None, 1) and not layer.rank
    wide = min(x.shape[-1], layer.features) >= _CHANNELS
    large = x.shape[1] * x.shape[2] >= _POSITIONS
    return same and wide and large and jnp.dtype(layer.dtype) == jnp.float32


def convolved_3x3(x: Array, kernel: Array) -> Array:
    """x float32 [B, H, W, C], kernel [3, 3, C, F] -> [B, H, W, F], with zeros around x."""
    b, h, w, _ = x.shape
    down, across = -(-h // _TILE), -(-w // _TILE)
    bands = min(down, -(-b * down * across // _BAND))
    rows = -(-down // bands)  # of tiles in a band
    below, right = bands * rows * _TILE - h + 1, across * _TILE - w + 1
    x = jnp.pad(x, ((0, 0), (1, below), (1, right), (0, 0)))
    weights = _flat(_both(_WEIGHTS, lambda i, j: kernel[i, j]))  # [36, C, F]

    def band(index: int) -> Array:
        start = index * rows * _TILE
        part = x[:, start : start + rows * _TILE + 2]
        every = lambda first, count: slice(first, first + (count - 1) * _TILE + 1, _TILE)
        inputs = _both(_INPUTS, lambda i, j: part[:, every(i, rows), every(j, across)])
        inputs = _flat(inputs).reshape(len(weights), -1, part.shape[-1])  # [36, tiles, C]
        products = jnp.einsum("ktc,kcf->ktf", inputs, weights)
        products = products.reshape(len(_INPUTS), len(_INPUTS), b, rows, across, -1)
        tiles = _both(_OUTPUTS, lambda i, j: products[i, j])
        tiles = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)
        return tiles.reshape(b, rows * _TILE, across * _TILE, -1)

    # Not by `lax.map`: of what is in a loop XLA:CPU computes the sums on one core.
    return jnp.concatenate([band(index) for index in range(bands)], axis=1)[:, :h, :w]


def _both(matrix: np.ndarray, part: Callable) -> list[list[Array]]:
    """M P Mᵀ of the square P of arrays `part(i, j)`, as sums: rows of arrays."""
    size = range(matrix.shape[1])
    half = zip(*(_sums(matrix, [part(i, j) for i in size]) for j in size), strict=True)
    return [_sums(matrix, row) for row in half]


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Matrix times vector of arrays, without what is multiplied by 0."""
    row = lambda weights: sum(np.float32(w) * x for w, x in zip(weights, parts, strict=True) if w)
    return [row(weights) for weights in matrix]


def _flat(rows: list[list[Array]]) -> Array:
    return jnp.stack([x for row in rows for x in row])
