"""From tokens to y: the part of the network that the entropy coder's probabilities come from.

Encoder and decoder must agree on every number that chooses a probability. `IntegerPath` computes
them in integers, the same on every device; a model has one once it is quantised. `FloatPath`
computes them on the CPU in float32 whatever the rest runs on, which agrees on one kind of machine.
Both go one step at a time, in windows over the image, and only integers go on to the entropy coder.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import fingerprint
from onedc_jax.coding import tables
from onedc_jax.coding.entropy import MAX_SYMBOL
from onedc_jax.coding.programs import Programs
from onedc_jax.coding.stream import MAX_RATE, Arithmetic
from onedc_jax.coding.windows import Y_SCALE, Window, cover, cut, paste
from onedc_jax.models import integer
from onedc_jax.models.integer import FRACTION
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.padding import within
from onedc_jax.models.prior import STEPS, step_mask

Array = jax.Array

_SHAPES = ((8, 12), (12, 8), (16, 16), (32, 32))
# Nothing in step 0, or in a step after it, reaches farther than so many tokens: windows that see
# these beyond what they answer for give what the whole image would.
_REACH = (3, 1, 1, 1)


class EntropyPath:
    """Tokens and the y coded so far -> mean and table of what comes next.

    Attributes:
      channels: of y.
      number: the type of means.
    """

    channels: int
    number: ClassVar[Any]

    def quantise(
        self, y: np.ndarray, z_indices: np.ndarray, rate: int | None = None
    ) -> tuple[list, np.ndarray]:
        """Rounds y around the means: the coder's (symbols, levels) of each step, and y_hat.

        Where the model has a quality knob, y has its gain and `rate` is its place.
        """
        coded = []
        y = self._fixed(y)

        def symbols(k: int, levels: np.ndarray, mean: np.ndarray) -> np.ndarray:
            values = self._rounded(_cells(y)[step_mask(k, *y.shape[:2])] - mean)
            coded.append((_channel_major(values), levels))
            return values

        return coded, self._run(z_indices, rate, symbols)

    def dequantise(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        z_indices: np.ndarray,
        rate: int | None = None,
    ) -> np.ndarray:
        """The coded y -> y_hat; `read` gives a step's symbols, int32 [N], for its levels."""

        def symbols(k: int, levels: np.ndarray, mean: np.ndarray) -> np.ndarray:
            return read(levels).reshape(mean.shape[::-1]).T

        return self._run(z_indices, rate, symbols)

    def _run(self, z_indices: np.ndarray, rate: int | None, symbols) -> np.ndarray:
        """The four steps; `symbols(k, levels, mean)` gives int32 [N, C/4] of each, N positions.

        Means are [N, C/4], row by row, levels [N · C/4] in the order of coding.
        """
        height, width = (Y_SCALE * side for side in z_indices.shape)
        context = y_hat = np.zeros((height, width, self.channels), self.number)
        for k in range(STEPS):
            means, levels, *begun = self._maps(k, z_indices, y_hat, context, rate)
            context = begun[0] if begun else context
            mean, level = (x.reshape(-1, x.shape[-1]) for x in (means, levels))
            values = self._fixed(symbols(k, _channel_major(level), mean))
            _cells(y_hat)[step_mask(k, height, width)] = mean + values
        return self._free(y_hat)

    def _maps(self, k: int, z_indices: np.ndarray, y_hat, context, rate) -> list[np.ndarray]:
        """Means, levels and, of step 0, the context: `_step` over an image of any size."""
        shape, windows = self._cover(*z_indices.shape, _REACH[k])
        maps = []
        for window in windows:
            inputs = ((z_indices, 1), (y_hat, Y_SCALE), (context, Y_SCALE))
            tiles = [cut(x, window, shape, scale) for x, scale in inputs]
            found = self._step(k, *tiles, np.array([window.size], np.int32), rate)
            found = [np.asarray(x)[0] for x in found[: 2 if k else 3]]
            maps = maps or [np.empty((*y_hat.shape[:2], x.shape[-1]), x.dtype) for x in found]
            for x, part in zip(maps, found, strict=True):
                paste(x, part, window, Y_SCALE)
        return maps

    def _cover(self, rows: int, columns: int, halo: int) -> tuple[tuple[int, int], list[Window]]:
        """As `windows.cover`, of arrays of _SHAPES."""
        return cover(rows, columns, _SHAPES, halo)

    def _fixed(self, y: np.ndarray) -> np.ndarray:
        """Numbers [..] as means are, in type and unit."""
        raise NotImplementedError

    def _free(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `_fixed`, float32."""
        raise NotImplementedError

    def _rounded(self, residual: np.ndarray) -> np.ndarray:
        """The symbols, int32 within ±MAX_SYMBOL, of differences between y and its mean."""
        raise NotImplementedError

    def _step(
        self,
        k: int,
        z_indices: np.ndarray,
        y_hat: np.ndarray,
        context: Any,
        sizes: np.ndarray,
        rate: int | None,
    ) -> tuple:
        """(mean, levels, context) of tokens [1, rows, columns], of which there are `sizes` [1, 2].

        Mean and levels are [1, H/16, W/16, C/4]. The context is what step 0 found of the tokens; it
        is given zeros, as large as y_hat.
        """
        raise NotImplementedError


def _cells(y: np.ndarray) -> np.ndarray:
    """y [H/16, W/16, C] as `step_mask` takes values from it, [H/16, W/16, 4, C/4]."""
    return y.reshape(*y.shape[:2], 4, -1)


def _channel_major(x: np.ndarray) -> np.ndarray:
    """[N, C/4] -> [N · C/4]: channel by channel."""
    return np.ascontiguousarray(x.T).reshape(-1)


def placed(steps: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Steps of `EntropyPath.quantise`, [N · C/4], in their places: [height, width, C]."""
    groups = steps[0].size // (height * width)
    y = np.empty((height, width, 4 * groups), steps[0].dtype)
    for k, values in enumerate(steps):
        _cells(y)[step_mask(k, height, width)] = values.reshape(groups, -1).T
    return y


@dataclass(frozen=True, eq=False)
class IntegerPath(EntropyPath):
    """In integers, see `models/integer.py`, on whatever device the rest runs on."""

    arithmetic: ClassVar = Arithmetic.INTEGER
    number: ClassVar = np.int32

    segments: Sequence[Any] = field(repr=False)  # as `integer.segments`
    fingerprint: int
    programs: Programs = field(default_factory=Programs, repr=False)

    @classmethod
    def of(cls, entropy: Any) -> "IntegerPath":
        """Of a model's part of this name."""
        segments = jax.device_put(integer.segments(entropy))
        return cls(segments, fingerprint({"entropy": entropy}))

    def on(self, device: jax.Device) -> "IntegerPath":
        """The same on another device."""
        return IntegerPath(jax.device_put(self.segments, device), self.fingerprint)

    @property
    def channels(self) -> int:
        return self.segments[0]["prior"]["reduction"]["kernel"].shape[-1]

    def _cover(self, rows, columns, halo):
        # All give the same integers: the one with the fewest tokens in all its windows.
        covers = [cover(rows, columns, (shape,), halo) for shape in _SHAPES]
        return min(covers, key=lambda found: math.prod(found[0]) * len(found[1]))

    def _fixed(self, y: np.ndarray) -> np.ndarray:
        if y.dtype == np.int32:  # symbols
            return y << FRACTION
        bound = 2.0 ** (30 - FRACTION)
        y = np.clip(np.nan_to_num(y, posinf=bound, neginf=-bound), -bound, bound)
        return np.rint(y * np.float32(1 << FRACTION)).astype(np.int32)

    def _free(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float32) / np.float32(1 << FRACTION)

    def _rounded(self, residual: np.ndarray) -> np.ndarray:
        return np.clip((residual + (1 << FRACTION - 1)) >> FRACTION, -MAX_SYMBOL, MAX_SYMBOL)

    def _step(self, k, z_indices, y_hat, context, sizes, rate):
        segment = self.segments[integer.segment_of(rate, len(self.segments))]
        rate = None if rate is None else np.full(1, rate, np.int32)
        entropy = integer.at_step(segment, k)
        args = np.int32(k), entropy, z_indices, y_hat, context, sizes, rate
        key = "integer", z_indices.shape
        return self.programs.get(key, integer_step, "", *args)(*args)


def integer_step(
    k: Array,
    entropy: Any,
    z_indices: Array,
    y_hat: Array,
    context: Array,
    sizes: Array,
    rate: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Step k of a batch: (mean int32, levels uint8, context), as `EntropyPath._step`.

    One program for all steps. `entropy` is of `integer.at_step`. Means and y_hat are multiples of
    2^-FRACTION.
    """
    parameters, context = jax.lax.cond(
        k == 0,
        lambda: integer.begin(entropy, z_indices, sizes, rate),
        lambda: (integer.refine(entropy, y_hat, context, sizes), context),
    )
    mean, scale = integer.mean_and_scale(k, parameters)
    return mean, integer_levels(scale), context


def integer_levels(scales: Array) -> Array:
    """The table of each scale, int32 multiples of 2^-FRACTION -> uint8, as `tables.scale_index`."""
    levels = _levels()
    return jnp.asarray(levels)[jnp.clip(scales, 0, len(levels) - 1)]


@cache
def _levels() -> np.ndarray:
    """Those of all multiples from 0 to where the last level begins: a look is all it takes."""
    last = int(tables.SCALE_MAX) << FRACTION
    return tables.scale_index(np.ldexp(np.arange(last + 1, dtype=np.float32), -FRACTION))


@dataclass(frozen=True, eq=False)
class FloatPath(EntropyPath):
    """On the CPU in float32."""

    arithmetic: ClassVar = Arithmetic.FLOAT32_CPU
    number: ClassVar = np.float32

    model: OneDC
    params: Any = field(repr=False)  # of integer.PARTS alone
    fingerprint: int
    programs: Programs = field(default_factory=Programs, repr=False)

    @property
    def channels(self) -> int:
        return self.model.codec.channels

    def on(self, device: jax.Device) -> "FloatPath":
        """The same: it is computed on the CPU in any case."""
        return self

    @classmethod
    def of(cls, model: OneDC, params: Any) -> "FloatPath":
        parts = {name: params["codec"][name] for name in integer.PARTS & params["codec"].keys()}
        parts = jax.tree.map(lambda x: np.asarray(x, np.float32), parts)
        model = model.clone(codec=model.codec.clone(dtype="float32"))
        return cls(model, jax.device_put({"codec": parts}, _cpu()), fingerprint(params))

    def __setstate__(self, state: dict) -> None:
        # A pickle knows no device.
        self.__dict__.update(state, params=jax.device_put(state["params"], _cpu()))

    def _fixed(self, y: np.ndarray) -> np.ndarray:
        return y.astype(np.float32)

    def _free(self, y: np.ndarray) -> np.ndarray:
        return y

    def _rounded(self, residual: np.ndarray) -> np.ndarray:
        values = np.nan_to_num(np.rint(residual), posinf=np.inf, neginf=-np.inf)
        return np.clip(values, -MAX_SYMBOL, MAX_SYMBOL).astype(np.int32)

    def _step(self, k, z_indices, y_hat, context, sizes, rate):
        inputs = jax.device_put((z_indices, y_hat, context, sizes, knob_place(rate)), _cpu())
        args = self.params, *inputs

        def float_step(params, z_indices, y_hat, context, sizes, rate):
            apply = partial(self.model.apply, {"params": params})
            with within(sizes, z_indices.shape[1:]):
                if k == 0:
                    context = apply(z_indices, rate, method=OneDC.prior_parameters)
                mean, scale = apply(k, y_hat, context, method=OneDC.prior_step)
            return jnp.nan_to_num(mean), scale, context

        key, of = ("float", k, z_indices.shape), repr((self.model, k))
        mean, scale, context = self.programs.get(key, float_step, of, *args)(*args)
        return mean, tables.scale_index(np.asarray(scale)), context


def _cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


def knob_place(rate: int | None) -> np.ndarray | None:
    """A rate of a header as the network takes it, float32 [1] in [0, 1]; None where it has none."""
    return None if rate is None else np.full(1, rate / MAX_RATE, np.float32)
