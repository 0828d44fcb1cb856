"""3×3 convolutions on CPUs with fewer multiplications.

Along one axis four outputs come from six products instead of twelve, between sums that cost little
where there are many channels: F(4, 3) of Winograd, see Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2016). Along both there would be a quarter of the products, but so
many sums that little is gained, and with four times the error: float32 results differ by some 1e-6
of their size. Of arrays made twice as large before, which say everything four times, simpler sums
do along both.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onedc_jax.models.layers import Conv, convolved, upsample_nearest

Array = jax.Array

# Below these the sums, and those of the kernel, cost about as much as the products that they save,
# and programs that are larger by them take longer to compile.
_CHANNELS, _UPSAMPLED_CHANNELS = 128, 40
_POSITIONS = 32 * 32

# Positions at a time: what is made of them takes the memory of three and thirteen times as many.
_BAND, _UPSAMPLED_BAND = 1 << 18, 1 << 16

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
_TILE = len(_OUTPUTS)


def on_cpu():
    """The context in which networks on a CPU convolve like this wherever it pays.

    Entered after `padding.within`, whose zeros belong to what is convolved.
    """

    def call(next_function, args, kwargs, context):
        layer = context.module
        method = context.method_name if isinstance(layer, Conv) else ""
        if method == "__call__" and _pays(layer, *args):
            fast, plain = convolved_3x3, _convolved
        elif method == "of_upsampled" and _pays_upsampled(layer, *args):
            fast, plain = convolved_upsampled_3x3, _convolved_upsampled
        else:
            return next_function(*args, **kwargs)
        x, kernel = args[0].astype(jnp.float32), layer.get_variable("params", "kernel")
        y = lax.platform_dependent(x, kernel, cpu=fast, default=plain)
        return y + layer.get_variable("params", "bias")[None, None, None] if layer.bias else y

    return nn.intercept_methods(call)


def _pays(layer: Conv, x: Array) -> bool:
    return _fits(layer, x, _CHANNELS) and x.shape[1] * x.shape[2] >= _POSITIONS


def _pays_upsampled(layer: Conv, x: Array, height: int, width: int) -> bool:
    twice = (height, width) == (2 * x.shape[1], 2 * x.shape[2])
    return _fits(layer, x, _UPSAMPLED_CHANNELS) and twice


def _fits(layer: Conv, x: Array, channels: int) -> bool:
    same = layer.size == 3 and layer.stride == 1 and layer.padding in (None, 1) and not layer.rank
    wide = min(x.shape[-1], layer.features) >= channels
    return same and wide and jnp.dtype(layer.dtype) == jnp.float32 and layer.precision is None


def _convolved(x: Array, kernel: Array) -> Array:
    return convolved(x, kernel, 1, ((1, 1), (1, 1)))


def _convolved_upsampled(x: Array, kernel: Array) -> Array:
    return _convolved(upsample_nearest(x, 2 * x.shape[1], 2 * x.shape[2]), kernel)


def convolved_3x3(x: Array, kernel: Array) -> Array:
    """x float32 [B, H, W, C], kernel [3, 3, C, F] -> [B, H, W, F], with zeros around x."""
    weights = _sums(_WEIGHTS, kernel)  # of [3, C, F], along columns

    def band(x: Array) -> Array:
        rows = x.shape[1] // _TILE * _TILE
        inputs = _sums(_INPUTS, [x[:, i : i + rows : _TILE] for i in range(len(_INPUTS))])
        pairs = zip(inputs, weights, strict=True)
        products = [convolved(y, w[None], 1, ((0, 0), (1, 1))) for y, w in pairs]
        y = jnp.stack(_sums(_OUTPUTS, products), axis=2)  # [B, rows / 4, 4, W, F]
        return y.reshape(len(y), rows, *y.shape[3:])

    return _in_bands(band, x, _TILE, _BAND)[:, : x.shape[1]]


def convolved_upsampled_3x3(x: Array, kernel: Array) -> Array:
    """`convolved_3x3` of each position four times: x [B, H, W, C] -> [B, 2H, 2W, F].

    Along one axis, with weights a, b and c and s = a + b + c, the outputs 2i and 2i + 1 are

        a·x[i - 1] + (b + c)·x[i] = s·x[i] - a·d[i]
        (a + b)·x[i] + c·x[i + 1] = s·x[i] + c·d[i + 1]    where d[i] = x[i] - x[i - 1]:

    three products for two outputs, and along both axes nine for four.
    """
    rows = [sum(kernel), -kernel[0], kernel[2]]
    weights = [[sum(row), -row[0], row[2]] for row in rows]  # each [C, F]
    places = slice(None), slice(None, -1), slice(1, None)  # of products with x[i], d[i], d[i + 1]

    def band(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
        below, right = jnp.diff(x, axis=1), jnp.diff(x, axis=2)
        factors = (x[:, 1:-1, 1:-1], right[:, 1:-1]), (below[:, :, 1:-1], jnp.diff(below, axis=2))

        def part(i: int, j: int) -> Array:
            return (factors[i > 0][j > 0] @ weights[i][j])[:, places[i], places[j]]

        parts = [[part(i, j) for j in range(3)] for i in range(3)]
        output = lambda i, j: parts[0][0] + parts[i][0] + parts[0][j] + parts[i][j]
        pairs = [jnp.stack([output(i, 1), output(i, 2)], axis=3) for i in (1, 2)]
        y = jnp.stack(pairs, axis=2)  # [B, H, 2, W, 2, F]
        return y.reshape(len(y), 2 * y.shape[1], 2 * y.shape[3], -1)

    return _in_bands(band, x, 1, _UPSAMPLED_BAND)[:, : 2 * x.shape[1]]


def _in_bands(convolve: Callable, x: Array, tile: int, most: int) -> Array:
    """What `convolve` makes of x, a band of at most so many positions after the other.

    Each has a multiple of `tile` rows; `convolve` is given the rows above and below them too.
    """
    b, h, w, _ = x.shape
    tiles = -(-h // tile)
    bands = min(tiles, -(-b * h * w // most))
    rows = -(-tiles // bands) * tile
    starts = range(0, h, rows)
    x = jnp.pad(x, ((0, 0), (1, len(starts) * rows - h + 1), (0, 0), (0, 0)))
    # Not by `lax.map`: of what is in a loop XLA:CPU computes the sums on one core.
    return jnp.concatenate([convolve(x[:, i : i + rows + 2]) for i in starts], axis=1)


def _sums(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """Matrix times vector of arrays, without what is multiplied by 0."""
    row = lambda weights: sum(np.float32(w) * x for w, x in zip(weights, parts, strict=True) if w)
    return [row(weights) for weights in matrix]
