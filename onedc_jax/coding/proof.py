"""That this device computes the integer path as all others do: fixed cases and their digests.

A case is a network of made-up integers that fill all ranges, tokens, and symbols for every step.
Its digest is of all means and levels that follow. `exact.json` holds those that every device has to
find; docs/exactness.md says how to ask one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.coding.entropy import MAX_SYMBOL
from onedc_jax.coding.path import integer_step
from onedc_jax.models import integer
from onedc_jax.models.codec import Codec
from onedc_jax.models.prior import STEPS, scatter
from onedc_jax.models.quantize import CODEBOOK_SIZE, FSQ_CHANNELS

Array = jax.Array

CASES = {"narrow": (16, 3, 2, 3), "paper": (128, 1, 2, 3)}
"""Channels of y, images, and rows and columns of tokens."""

_step = jax.jit(integer_step)
_KERNEL = 31  # 512 inputs of ±1023 times ±31 stay just below 2^24
_DEPTHWISE = 900


class Case(NamedTuple):
    """What the integer path takes: parameters, tokens int32 [B, h, w], symbols of each step."""

    entropy: Any
    z_indices: np.ndarray
    symbols: tuple[np.ndarray, ...]


def case(name: str) -> Case:
    """One of CASES, the same on every machine."""
    channels, count, rows, columns = CASES[name]
    entropy = made_up_integers(channels)
    z_indices, symbols = inputs(channels, count, rows, columns)
    return Case(entropy, z_indices, symbols)


def inputs(channels: int, count: int, rows: int, columns: int) -> tuple[np.ndarray, tuple]:
    """Tokens int32 [count, rows, columns], and each step's symbols, now and then a huge one."""
    z_indices = _draw("tokens", (count, rows, columns), 0, CODEBOOK_SIZE - 1)
    shape = (count, 4 * rows, 4 * columns, channels // 4)
    symbols = []
    for k in range(STEPS):
        small, rare = _draw(f"symbols {k}", shape, -2, 2), _draw(f"rare {k}", shape, 0, 999)
        huge = _draw(f"huge {k}", shape, -MAX_SYMBOL, MAX_SYMBOL)
        symbols.append(np.where(rare == 0, huge, small).astype(np.int32))
    return z_indices.astype(np.int32), tuple(symbols)


def predictions(
    entropy: Any,
    z_indices: Array,
    symbols: tuple,
    blocks: tuple[int, int] | None = None,
    rate: int = 128,
) -> list[tuple[Array, Array]]:
    """(mean int32, level uint8) of each step, [B, H/16, W/16, C/4], when y has these symbols.

    `entropy` is one of `integer.segments`, `rate` a place of the knob where there is one. `blocks`
    are the rows and columns of tokens that images have, where not all of the arrays.
    """
    count, *arrays = z_indices.shape
    sizes = jnp.tile(jnp.array(blocks or arrays), (count, 1))
    rates = jnp.full(count, rate) if "knob" in entropy else None
    found = []
    y_hat = context = jnp.zeros((*symbols[0].shape[:3], 4 * symbols[0].shape[3]), jnp.int32)
    for k in range(STEPS):
        args = integer.at_step(entropy, k), z_indices, y_hat, context, sizes, rates
        mean, levels, context = _step(jnp.int32(k), *args)
        found.append((mean, levels))
        y_hat += scatter(mean + (jnp.asarray(symbols[k]) << integer.FRACTION), k)
    return found


def digest(found: list[tuple[Array, Array]], image: int | slice = slice(None)) -> str:
    """SHA-256 of `predictions`: each step's means, little-endian, then its levels."""
    sha = hashlib.sha256()
    for mean, levels in found:
        sha.update(np.asarray(mean)[image].astype("<i4").tobytes())
        sha.update(np.asarray(levels)[image].astype("u1").tobytes())
    return sha.hexdigest()


def stored() -> dict[str, str]:
    """The digests that every device has to find, by case."""
    return json.loads((Path(__file__).parent / "exact.json").read_text())


def made_up_integers(channels: int) -> Any:
    """An "entropy" part with kernels at their bounds, and shifts that keep all ranges in use."""
    codec = Codec(channels=channels)
    z = jax.ShapeDtypeStruct((1, 1, 1, FSQ_CHANNELS), jnp.float32)
    y = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
    run = lambda codec, z, y: codec.prior(y, codec.hyper_synthesis(z)[0])
    init = lambda z, y: codec.init(jax.random.key(0), z, y, method=run)
    shapes = jax.eval_shape(init, z, y)["params"]
    entropy = {}
    for path, layer in integer.layers(shapes):
        *parents, name = path.split("/")
        place = entropy
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _layer(path, layer["kernel"].shape)
    integer.check(entropy, shapes)
    return entropy


def _layer(path: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    name = path.rpartition("/")[2]
    bound = _DEPTHWISE if name == "dw_conv" else _KERNEL
    # By how many bits sums exceed inputs, about, and the results that blocks need from them.
    terms = int(np.prod(shape[:-1]))
    grown = bound.bit_length() - 1 + (terms.bit_length() - 1) // 2
    wanted = {"dw_in": 14, "dw_conv": 9, "ffn_in": 13, "subpel_conv": 13, "conv": 13}.get(name, 12)
    source = 1 if name == "feat_in_0" else 14 if name == "dw_conv" else 9
    outputs = shape[-1:]
    layer = {
        "kernel": _draw(f"{path} kernel", shape, -bound, bound).astype(np.int16),
        "bias": _draw(f"{path} bias", outputs, -(1 << 14), 1 << 14).astype(np.int32),
        "shift": source + grown - wanted + _draw(f"{path} shift", outputs, -1, 1).astype(np.int32),
    }
    if name in integer.READERS:
        layer["input"] = _draw(f"{path} input", shape[-2:-1], 3, 5).astype(np.int32)
    return layer


def _draw(name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Integers low..high, from the name alone: SHAKE-256, 4 bytes each, little-endian, modulo."""
    count = int(np.prod(shape))
    raw = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * count), "<u4")
    return low + (raw.astype(np.int64) % (high - low + 1)).reshape(shape)
