"""Hyper-synthesis and prior in integers: the same numbers on every device, from tokens to y.

A tensor is int32 and stands for integer · 2^-grid. What blocks hand on and add up is on one grid,
`FRACTION`; inside a block each channel has a grid of its own, chosen when the network is quantised
(`quantization.py`) and by now part of the weights. So there are only products of small integers,
sums, clipping, and shifts that round half up.

No sum can overflow, whatever the input: inputs of products are clipped, and `check` proves of the
weights, before they are used, for every output channel

    sum |kernel| · LIMIT < 2^24           over each GROUP of inputs: float32 holds it exactly
    (sum |kernel| · LIMIT + |bias|) << left <= 2^29       over all of them: int32 holds it

(with WIDE for LIMIT in depthwise layers; left is by how much the sum is shifted left, mostly 0).
docs/exactness.md goes through all bounds.

An image may end before its array does: `there`, boolean [B, H, W, 1], says where it is, and 3×3
convolutions see zeros elsewhere, as beyond an array's edge.

The parameters are the "entropy" part of a model, a tree as that of the same network in float32. A
layer has `kernel` int16, of the same shape; `bias` int32; `shift` int32, from the grid of each sum
to the grid of the result; and, where it reads a residual stream, `input` int32, the shift from
there to the grids of its input channels. A model with a quality knob has `offset`, int32
[RATES, C], what each rate adds to the features that the prior reads; and its prior's values are
many times larger at the highest rate than at the lowest, so that all arrays of its prior have a
leading axis, a set of integers for each segment of the knob: see `segments`.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onedc_jax.errors import ModelError
from onedc_jax.models.layers import inside, pixel_shuffle
from onedc_jax.models.prior import gather
from onedc_jax.models.quantize import FSQ_CHANNELS, FSQ_LEVELS

Array = jax.Array
Params = Mapping[str, Any]

PARTS = {"hyper_synthesis", "prior", "knob"}
"""The parts of a codec that probabilities come from; "knob" where it has several rates."""
FRACTION = 12
"""Residual streams, means, scales and y_hat are multiples of 2^-12."""
STREAM = 1 << 27  # bound of residual streams, and so of means and scales
LIMIT = 1023  # bound of the inputs of products
WIDE = 32767  # bound of the inputs of depthwise convolutions
KERNEL = 16319  # bound of the weights of products: two int8 hold them
GROUP = 512  # so many inputs are summed in float32 before int32 takes over
RATES = 256
"""The places of a quality knob: as many as a byte of the header tells apart."""
EXTRA = 4  # by so many bits the sum of two branches is finer than the input that it becomes
READERS = ("dw_in", "dw_shortcut", "ffn_in", "subpel_conv", "upsample", "reduction")
"""The layers that read a residual stream, and so have an `input`."""

_ACTIVATION = 1 << 26  # bound of the input of a leaky ReLU
_HUNDREDTH, _TENTH = 41, 410  # slopes, of 4096


def rescale(x: Array, shift: Array) -> Array:
    """x · 2^-shift rounded half up; |x| · 2^-shift <= 2^29 where shift < 0. |shift| <= 30."""
    right = jnp.maximum(shift, 0)
    left = right - shift
    shape = (1,) * (x.ndim - 1) + (-1,)
    right, left = right.reshape(shape), left.reshape(shape)
    half = (jnp.int32(1) << right) >> 1
    return ((x << left) + half) >> right


def leaky_relu(x: Array, slope: int) -> Array:
    """x, or slope / 4096 of it below zero; up to 2^22 · 410 < 2^31 inside."""
    x = _clip(x, _ACTIVATION)
    return jnp.where(x < 0, (((x + 8) >> 4) * slope + 128) >> 8, x)


def product(x: Array, kernel: Array) -> Array:
    """x int32 [..., K] within ±LIMIT times kernel int16 [K, N], summed exactly: int32 [..., N].

    Integers carried in float32 are what CPUs are fastest at. Elsewhere products of float32 may be
    computed in fewer bits; int8 matrices with int32 sums are integers by definition.
    """
    return lax.platform_dependent(x, kernel, cpu=product_in_float32, default=product_in_int8)


def product_in_float32(x: Array, kernel: Array) -> Array:
    """`product` for what computes float32 as float32: each GROUP's sum is below 2^24."""
    total = jnp.int32(0)
    for start in range(0, kernel.shape[0], GROUP):
        group = slice(start, start + GROUP)
        factors = x[..., group].astype(jnp.float32), kernel[group].astype(jnp.float32)
        total += _dot(*factors, precision=lax.Precision.HIGHEST).astype(jnp.int32)
    return total


def product_in_int8(x: Array, kernel: Array) -> Array:
    """`product` for tensor cores: each factor as 128 · high + low, both int8."""
    dot = partial(_dot, preferred_element_type=jnp.int32)
    (x_high, x_low), (kernel_high, kernel_low) = _halves(x), _halves(kernel.astype(jnp.int32))
    middle = dot(x_high, kernel_low) + dot(x_low, kernel_high)
    return (dot(x_high, kernel_high) * 128 + middle) * 128 + dot(x_low, kernel_low)


def _dot(x: Array, kernel: Array, **options) -> Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **options)


def _halves(x: Array) -> tuple[Array, Array]:
    """Integers within ±16319 as int8 `high` and `low`: x = 128 · high + low."""
    high = (x + 64) >> 7
    return high.astype(jnp.int8), (x - (high << 7)).astype(jnp.int8)


def _clip(x: Array, bound: int) -> Array:
    return jnp.clip(x, -bound, bound)


def _conv(layer: Params, x: Array) -> Array:
    """A 1×1 or 3×3 convolution of inputs within ±LIMIT, on the grid of the layer's result.

    A 3×3 one is a 1×1 one to all nine places of the kernel at once, whose results are then shifted
    and added: no convolution algorithm with fractions inside can take its place.
    """
    kernel = layer["kernel"]
    size, outputs = kernel.shape[0], kernel.shape[-1]
    kernel = kernel.reshape(size * size, -1, outputs).transpose(1, 0, 2)
    sums = product(x, kernel.reshape(-1, size * size * outputs))
    if size == 3:
        places = jnp.split(sums, 9, axis=-1)
        sums = sum(_shifted(place)[i] for i, place in enumerate(places))
    return rescale(sums + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,)), layer["shift"])


def _depthwise(layer: Params, x: Array) -> Array:
    """A 3×3 convolution of each channel by itself, inputs within ±WIDE."""
    kernel = layer["kernel"].astype(jnp.int32).reshape(9, 1, 1, 1, -1)
    total = layer["bias"].reshape(1, 1, 1, -1)
    for shifted, weight in zip(_shifted(_clip(x, WIDE)), kernel, strict=True):
        total += shifted * weight
    return rescale(total, layer["shift"])


def _shifted(x: Array) -> list[Array]:
    """x [B, H, W, C] as each of the nine places of a 3×3 kernel sees it, zero beyond the edges."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [x[:, dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]


def _read(layer: Params, stream: Array) -> Array:
    """A residual stream as a layer's input."""
    return _clip(rescale(stream, layer["input"]), LIMIT)


def _depth_conv_block(block: Params, x: Array, there: Array) -> Array:
    """`layers.DepthConvBlock`, from residual stream to residual stream."""
    y = leaky_relu(_conv(block["dw_in"], _read(block["dw_in"], x)), _HUNDREDTH)
    y = _depthwise(block["dw_conv"], jnp.where(there, y, 0))
    y = _conv(block["dw_out"], _clip(y, LIMIT))
    if "dw_shortcut" in block:
        x = _conv(block["dw_shortcut"], _read(block["dw_shortcut"], x))
    x = _clip(x + y, STREAM)
    first, second = jnp.split(_conv(block["ffn_in"], _read(block["ffn_in"], x)), 2, axis=-1)
    y = leaky_relu(first, _TENTH) + leaky_relu(second, _HUNDREDTH)
    y = _clip(rescale(y, jnp.full(1, EXTRA)), LIMIT)
    return _clip(x + _conv(block["ffn_out"], y), STREAM)


def _upsample(block: Params, x: Array, there: Array) -> Array:
    """`layers.ResidualBlockUpsample`, from residual stream to residual stream."""
    y = leaky_relu(_conv(block["subpel_conv"], _read(block["subpel_conv"], x)), _HUNDREDTH)
    y = _clip(rescale(pixel_shuffle(y), jnp.full(1, EXTRA)), LIMIT)
    y = leaky_relu(_conv(block["conv"], jnp.where(there, y, 0)), _TENTH)
    shortcut = pixel_shuffle(_conv(block["upsample"], _read(block["upsample"], x)))
    return _clip(y + shortcut, STREAM)


def _stem(layer: Params, z_indices: Array) -> Array:
    """Tokens to a residual stream [B, H/64, W/64, C]."""
    shifts = (2 * jnp.arange(FSQ_CHANNELS)).reshape(1, 1, 1, -1)
    codes = (z_indices[..., None] >> shifts & FSQ_LEVELS - 1) - FSQ_LEVELS // 2  # in units of 1/2
    return _clip(leaky_relu(_conv(layer, codes), _HUNDREDTH), STREAM)


def segments(entropy: Params) -> list[Params]:
    """The integers of each segment of the knob, from the lowest rate on; without a knob only one.

    A stream is made with those of one. The hyper-synthesis is the same in all.
    """
    if "knob" not in entropy:
        return [entropy]
    prior = entropy["prior"]
    of = lambda i: entropy | {"prior": jax.tree.map(lambda x: x[i], prior)}
    return [of(i) for i in range(len(jax.tree.leaves(prior)[0]))]


def segment_of(rate: int | None, count: int) -> int:
    """Which of `count` segments a place of the knob in [0, RATES) is in; 0 without a knob."""
    return 0 if rate is None else rate * count // RATES


def begin(
    entropy: Params, z_indices: Array, sizes: Array, rate: Array | None = None
) -> tuple[Array, Array]:
    """Tokens int32 [B, H/64, W/64] -> step 0's parameters, and what the other steps know of them.

    Args:
      entropy: the parameters, of one of `segments` or `at_step`.
      z_indices: beyond an image's end anything.
      sizes: int32 [B, 2], each image's rows and columns of tokens.
      rate: of networks with a knob, int32 [B] in [0, RATES).

    Returns:
      scales and means, int32 [B, H/16, W/16, 2 C]; a context, int32 [B, H/16, W/16, C].
    """
    synthesis, prior = entropy["hyper_synthesis"], entropy["prior"]
    rows, columns = z_indices.shape[1:]
    coarse, middle, there = (
        inside(sizes, (rows, columns), scale * rows, scale * columns) for scale in (1, 2, 4)
    )
    x = _stem(synthesis["feat_in_0"], z_indices)
    x = _depth_conv_block(synthesis["to_entropy_0"], x, coarse)
    x = _upsample(synthesis["to_entropy_1"], x, middle)
    x = _depth_conv_block(synthesis["to_entropy_2"], x, middle)
    x = _upsample(synthesis["to_entropy_3"], x, there)
    x = _depth_conv_block(synthesis["to_entropy_4"], x, there)
    if "knob" in entropy:
        x = _clip(x + entropy["knob"]["offset"][rate][:, None, None], STREAM)
    for name in ("fusion_0", "fusion_1"):
        x = _depth_conv_block(prior[name], x, there)
    reduction = prior["reduction"]
    return x, _clip(_conv(reduction, _read(reduction, x)), STREAM)


def at_step(entropy: Params, k: int) -> Params:
    """What step k takes of one of `segments`, the same arrays for all, so that one program does.

    Of the blocks that steps 1 to 3 begin with that is the step's own. (Chosen in the program, it
    would be looked up again for every number.) Step 0 begins with none, and has any.
    """
    rest = {name: part for name, part in entropy["prior"].items() if not name.startswith("step_")}
    return entropy | {"prior": rest | {"step": entropy["prior"][f"step_{max(k, 1)}"]}}


def refine(entropy: Params, y_hat: Array, context: Array, sizes: Array) -> Array:
    """A step after the first: the y so far -> scales and means.

    `entropy` is of `at_step`; `y_hat`, int32 [B, H/16, W/16, C], is zero elsewhere. The others are
    as in `begin`.
    """
    prior = entropy["prior"]
    height, width = context.shape[1:3]
    there = inside(sizes, (height // 4, width // 4), height, width)
    x = jnp.concatenate([_clip(y_hat, STREAM), context], axis=-1)
    x = _depth_conv_block(prior["step"], x, there)
    for i in range(3):
        x = _depth_conv_block(prior[f"spatial_{i}"], x, there)
    return x


def mean_and_scale(k: int | Array, parameters: Array) -> tuple[Array, Array]:
    """Those of step k's values, both int32 [B, H/16, W/16, C/4], multiples of 2^-FRACTION."""
    scales, means = jnp.split(parameters, 2, axis=-1)
    return gather(means, k), gather(scales, k)


def check(entropy: Params, network: Params) -> None:
    """Proves that these integers fit a network and that nothing can overflow with them.

    `network` is the same in float: {"hyper_synthesis", "prior", ..}, with "knob" where it has one.
    Raises ModelError with the first layer for which the proof fails.
    """
    parts = PARTS & network.keys()
    if entropy.keys() != parts:
        held = ", ".join(sorted(entropy))
        raise ModelError(f"entropy: holds {held}, but the model needs {', '.join(sorted(parts))}")
    if "knob" in parts:
        _check_knob(entropy, *network["knob"]["bias"].shape)
    first, *others = segments(entropy)
    _check_layers(first, {part: network[part] for part in parts})
    for segment in others:
        _check_layers({"prior": segment["prior"]}, {"prior": network["prior"]})


def _check_layers(entropy: Params, network: Params) -> None:
    """The same for all layers of one segment, or of a part of it."""
    own, wanted = dict(layers(entropy)), dict(layers(network))
    for path in sorted(own.keys() ^ wanted.keys()):
        raise ModelError(f"entropy/{path}: only one of the model's float and integer parts has it")
    for path, layer in own.items():
        layer = {name: np.asarray(values) for name, values in layer.items()}
        shape = wanted[path]["kernel"].shape
        if _layout(layer) != _wanted_layout(path, shape):
            raise ModelError(f"entropy/{path}: not the arrays that a layer {list(shape)} has")
        if not _bounded(path, layer):
            raise ModelError(f"entropy/{path}: integers too large, sums could overflow")


def _check_knob(entropy: Params, points: int, channels: int) -> None:
    knob = {name: np.asarray(values) for name, values in entropy["knob"].items()}
    if _layout(knob) != {"offset": ("int32", (RATES, channels))}:
        raise ModelError(f"entropy/knob: not offsets int32 [{RATES}, {channels}]")
    if np.abs(knob["offset"].astype(np.int64)).max() > STREAM:
        raise ModelError("entropy/knob: integers too large, sums could overflow")
    if {np.shape(values)[:1] for values in jax.tree.leaves(entropy["prior"])} != {(points - 1,)}:
        raise ModelError(
            f"entropy/prior: not one set of integers for each of the knob's {points - 1} segments; "
            "onedc quantize makes them anew"
        )


def _layout(layer: Params) -> dict[str, tuple]:
    return {name: (values.dtype.name, values.shape) for name, values in layer.items()}


def _wanted_layout(path: str, shape: tuple[int, ...]) -> dict[str, tuple]:
    vector = ("int32", shape[-1:])
    layout = {"kernel": ("int16", shape), "bias": vector, "shift": vector}
    reads = path.rpartition("/")[2] in READERS
    return layout | ({"input": ("int32", shape[-2:-1])} if reads else {})


def _bounded(path: str, layer: Params) -> bool:
    """Whether a layer's sums and shifts keep to what `rescale` and the coders of a sum allow."""
    kernel = layer["kernel"]
    depthwise = path.endswith("/dw_conv")
    sums = kernel_sums(kernel) * (WIDE if depthwise else LIMIT)
    shift, read = layer["shift"].astype(np.int64), layer.get("input", np.zeros(1, np.int32))
    total = sums.sum(0) + np.abs(layer["bias"].astype(np.int64))
    room = (1 << 29) >> np.clip(-shift, 0, 30)  # of a sum that is shifted left; it would wrap
    return (
        (depthwise or (-KERNEL <= kernel.min() <= kernel.max() <= KERNEL and sums.max() < 1 << 24))
        and (total <= room).all()
        and np.abs(shift).max() <= 30
        and -2 <= read.min() <= read.max() <= 30
    )


def kernel_sums(kernel: np.ndarray) -> np.ndarray:
    """Integers [H, W, K, N] -> the magnitudes that one sum in float32 adds up, [sums, N]."""
    kernel = np.abs(kernel.astype(np.int64)).reshape(-1, *kernel.shape[-2:])
    sums = np.add.reduceat(kernel, np.arange(0, kernel.shape[1], GROUP), axis=1)
    return sums.reshape(-1, kernel.shape[-1])


def layers(tree: Params, path: str = "") -> Iterator[tuple[str, Params]]:
    """The layers of a tree, each with its path."""
    for name, child in tree.items():
        if isinstance(child, Mapping) and "kernel" in child:
            yield f"{path}{name}", child
        elif isinstance(child, Mapping):
            yield from layers(child, f"{path}{name}/")
