"""From the trained network in float32 to the same network in integers, `models/integer.py`.

Weights are rounded, and the grids of all channels chosen, so that the values seen on calibration
images make full use of the integers there are, in each segment of a quality knob by itself. All
grids are powers of two: a grid of e means that an integer stands for multiples of 2^-e.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.errors import ModelError
from onedc_jax.models import integer
from onedc_jax.models.codec import Codec
from onedc_jax.models.layers import Conv, DepthwiseConv3x3
from onedc_jax.models.quantize import indices_to_codes

Array = jax.Array
Ranges = dict[str, np.ndarray]

_FINEST = 24  # the grid of sums that are always zero


class Calibration:
    """What is seen of a network while it computes; see `calibrate` for the arguments.

    calibration = Calibration(codec, params)
    for z_indices, y in images:
        calibration.add(z_indices, y)
    entropy = calibration.integers()
    """

    def __init__(self, codec: Codec, params: Mapping[str, Any]):
        self._params = {name: params[name] for name in integer.PARTS & params.keys()}
        self._look = jax.jit(partial(input_ranges, codec))
        self._rates = [None] if codec.rates == 1 else np.linspace(0, 1, codec.rates, dtype="f4")
        self._ranges: list[Ranges] = [{} for _ in self._rates]

    def add(self, z_indices: Array, y: Array) -> None:
        """Takes a batch into account, at all rates; each size of y compiles a program."""
        for rate, ranges in zip(self._rates, self._ranges, strict=True):
            rate = None if rate is None else np.full(len(y), rate)
            for name, seen in self._look(self._params, z_indices, y, rate).items():
                ranges[name] = np.maximum(seen, ranges.get(name, 0.0))

    def integers(self) -> Any:
        """What `calibrate` returns, or raises, for all that was added."""
        for name, largest in itertools.chain(*(ranges.items() for ranges in self._ranges)):
            if not np.isfinite(largest).all():
                raise ModelError(f"{name}: its values are too large, or no numbers")
        return to_integers(self._params, self._ranges)


def calibrate(codec: Codec, params: Mapping[str, Any], z_indices: Array, y: Array) -> Any:
    """The integers of a codec's entropy path, from one batch.

    Args:
      codec: the network; its `params`: {"hyper_synthesis", "prior", ..}, float, with "knob" where
        it has several rates.
      z_indices: tokens int32 [B, H/64, W/64].
      y: float32 [B, H/16, W/16, channels], as the network makes it: without gain, not rounded.

    Returns:
      The tree that a model folder holds as "entropy".

    Raises:
      ModelError: weights so large that no integers hold them.
    """
    calibration = Calibration(codec, params)
    calibration.add(z_indices, y)
    return calibration.integers()


def input_ranges(
    codec: Codec, params: Any, z_indices: Array, y: Array, rate: Array | None = None
) -> dict[str, Array]:
    """How large each input channel of each layer gets: {"prior/fusion_0/dw_in": [C], ..}."""
    ranges = {}

    def watch(next_function, args, kwargs, context):
        if (
            isinstance(context.module, Conv | DepthwiseConv3x3)
            and context.method_name == "__call__"
        ):
            name = "/".join(context.module.path)
            largest = jnp.abs(args[0].astype(jnp.float32)).max((0, 1, 2))
            ranges[name] = jnp.maximum(largest, ranges.get(name, 0.0))
        return next_function(*args, **kwargs)

    def path(codec):
        features, _ = codec.hyper_synthesis(indices_to_codes(z_indices))
        gain, _, bias = codec.at_rate(rate)
        return codec.prior(y * gain, features + bias)

    with nn.intercept_methods(watch):
        codec.clone(dtype="float32").apply({"params": params}, method=path)
    return ranges


def to_integers(params: Mapping[str, Any], ranges: Sequence[Ranges]) -> Any:
    """The integers of a network, as `calibrate`.

    `ranges` are `input_ranges` at its one rate, or at each point of its knob.
    """
    params = {name: params[name] for name in integer.PARTS & params.keys()}
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tree = {"hyper_synthesis": _part(params, "hyper_synthesis", ranges[0])}  # it knows no rate
    if "knob" in params:
        tree["knob"] = {"offset": _offsets(params["knob"]["bias"])}
        wider = partial(jax.tree.map, np.maximum)
        priors = [_part(params, "prior", wider(*ends)) for ends in itertools.pairwise(ranges)]
        tree["prior"] = jax.tree.map(lambda *segments: np.stack(segments), *priors)
    else:
        tree["prior"] = _part(params, "prior", ranges[0])
    integer.check(tree, params)
    return tree


def _part(params: Mapping[str, Any], part: str, ranges: Ranges) -> dict[str, Any]:
    """The integers of the hyper-synthesis or of the prior."""
    tree = {}
    for name, child in params[part].items():
        inner = {
            key.rpartition("/")[2]: value
            for key, value in ranges.items()
            if key.startswith(f"{part}/{name}")
        }
        if "dw_in" in child:
            tree[name] = _depth_conv_block(child, inner)
        elif "subpel_conv" in child:
            tree[name] = _upsample(child, inner)
        elif name == "feat_in_0":  # its inputs, the codes, are multiples of 1/2
            tree[name] = _onto_stream(*_product(child, np.ones(child["kernel"].shape[2])))
        else:
            tree[name] = _onto_stream(*_reading(child, inner[name]))
    return tree


def _offsets(bias: np.ndarray) -> np.ndarray:
    """The knob's bias [points, C] at each of its places, on the residual stream's grid."""
    points = np.linspace(0, 1, len(bias))
    places = np.arange(integer.RATES) / (integer.RATES - 1)
    offsets = np.stack([np.interp(places, points, column) for column in bias.T], axis=1)
    return np.rint(offsets * 2.0**integer.FRACTION).astype(np.int32)


def _depth_conv_block(params: Mapping[str, Any], ranges: Ranges) -> dict[str, Any]:
    """`layers.DepthConvBlock`: each grid as fine as the values and the sums before them allow."""
    block = {}
    layer, sums = _reading(params["dw_in"], ranges["dw_in"])
    grid = np.minimum(_grid(integer.WIDE, ranges["dw_conv"]), sums)
    block["dw_in"] = layer | _shift(sums - grid)

    layer, sums = _depthwise(params["dw_conv"], grid)
    grid = np.minimum(_grid(integer.LIMIT, ranges["dw_out"]), sums)
    block["dw_conv"] = layer | _shift(sums - grid)
    block["dw_out"] = _onto_stream(*_product(params["dw_out"], grid))
    if "dw_shortcut" in params:
        shortcut = _reading(params["dw_shortcut"], ranges["dw_shortcut"])
        block["dw_shortcut"] = _onto_stream(*shortcut)

    layer, sums = _reading(params["ffn_in"], ranges["ffn_in"])
    coarser = np.minimum(*np.split(sums, 2))
    grid = np.minimum(_grid(integer.LIMIT, ranges["ffn_out"]), coarser - integer.EXTRA)
    block["ffn_in"] = layer | _shift(sums - np.tile(grid + integer.EXTRA, 2))
    block["ffn_out"] = _onto_stream(*_product(params["ffn_out"], grid))
    return block


def _upsample(params: Mapping[str, Any], ranges: Ranges) -> dict[str, Any]:
    """`layers.ResidualBlockUpsample`; four channels become one of four times the pixels."""
    layer, sums = _reading(params["subpel_conv"], ranges["subpel_conv"])
    coarsest = sums.reshape(-1, 4).min(1)
    grid = np.minimum(_grid(integer.LIMIT, ranges["conv"]), coarsest - integer.EXTRA)
    return {
        "subpel_conv": layer | _shift(sums - np.repeat(grid + integer.EXTRA, 4)),
        "conv": _onto_stream(*_product(params["conv"], grid)),
        "upsample": _onto_stream(*_reading(params["upsample"], ranges["upsample"])),
    }


def _grid(bound: int, largest: np.ndarray) -> np.ndarray:
    """The finest grid on which values up to `largest` are within ±bound."""
    largest = np.maximum(np.asarray(largest, np.float64), bound * 2.0**-_FINEST)
    return np.floor(np.log2(bound / largest)).astype(int)


def _reading(params: Mapping[str, Any], largest: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """A layer whose input is a residual stream, and the grids of its sums."""
    grid = np.clip(_grid(integer.LIMIT, largest), integer.FRACTION - 30, integer.FRACTION + 2)
    layer, sums = _product(params, grid)
    return layer | {"input": (integer.FRACTION - grid).astype(np.int32)}, sums


def _onto_stream(layer: dict[str, Any], sums: np.ndarray) -> dict[str, Any]:
    return layer | _shift(sums - integer.FRACTION)


def _shift(shift: np.ndarray) -> dict[str, np.ndarray]:
    return {"shift": shift.astype(np.int32)}


def _product(params: Mapping[str, Any], grid: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """A convolution for inputs on these grids within ±LIMIT, and the grids [N] of its sums.

    An output's weights get as many bits as `integer.check` allows.
    """
    fits = lambda kernel: (integer.kernel_sums(kernel) * integer.LIMIT < 2**24).all(0)
    return _round(params["kernel"] * 2.0 ** -grid[:, None], params["bias"], integer.KERNEL, fits)


def _depthwise(params: Mapping[str, Any], grid: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """`_product` for a depthwise convolution of inputs on these grids within ±WIDE."""
    fits = lambda kernel: integer.kernel_sums(kernel).sum(0) * integer.WIDE < 2**28
    return _round(params["kernel"] * 2.0**-grid, params["bias"], integer.WIDE, fits)


def _round(kernel, bias, bound, fits) -> tuple[dict[str, Any], np.ndarray]:
    """Weights [H, W, K, N] and biases [N] as integers on the finest grids [N] on which they fit."""
    sums = np.minimum(_grid(bound, np.abs(kernel).max((0, 1, 2))), _grid(2**24, np.abs(bias)))
    while True:
        rounded = np.rint(kernel * 2.0**sums).astype(np.int64)
        bad = ~fits(rounded)
        if not bad.any():
            break
        sums -= bad
    bias = np.rint(bias * 2.0**sums)
    return {"kernel": rounded.astype(np.int16), "bias": bias.astype(np.int32)}, sums
