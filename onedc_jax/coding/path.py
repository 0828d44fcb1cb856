"""From tokens to y: the part of the network that the entropy coder's probabilities come from.

Encoder and decoder must agree on every number that chooses a probability. `IntegerPath` computes
them in integers, the same on every device; a model has one once it is quantised. `FloatPath`
computes them on the CPU in float32 whatever the rest runs on, which agrees on one kind of machine.
Both go one step at a time, and only integers go on to the entropy coder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import fingerprint
from onedc_jax.coding import tables
from onedc_jax.coding.entropy import MAX_SYMBOL
from onedc_jax.coding.stream import Arithmetic
from onedc_jax.models import integer
from onedc_jax.models.integer import FRACTION
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.prior import STEPS, gather, scatter

Array = jax.Array


class Path:
    """Tokens and the y coded so far -> mean and table of what comes next."""

    def quantise(self, y: np.ndarray, z_indices: np.ndarray) -> tuple[list, np.ndarray]:
        """Rounds y around the means: the coder's (symbols, levels) of each step, and y_hat."""
        y = self._put(y)
        coded = []

        def symbols(k: int, levels: np.ndarray, mean: Array) -> np.ndarray:
            values = np.asarray(self._symbols(k, y, mean))
            coded.append((_coding_order(values), levels))
            return values

        return coded, self._run(z_indices, symbols)

    def dequantise(
        self, read: Callable[[np.ndarray], np.ndarray], z_indices: np.ndarray
    ) -> np.ndarray:
        """The coded y -> y_hat; `read` gives a step's symbols, int32 [N], for its levels."""

        def symbols(k: int, levels: np.ndarray, mean: Array) -> np.ndarray:
            _, h, w, c = mean.shape
            return read(levels).reshape(c, h, w).transpose(1, 2, 0)[None]

        return self._run(z_indices, symbols)

    def _put(self, y: np.ndarray) -> Array:
        """y [H/16, W/16, C] as `_symbols` takes it."""
        raise NotImplementedError

    def _symbols(self, k: int, y: Array, mean: Array) -> Array:
        """The symbols of step k, int32 [1, H/16, W/16, C/4] within ±MAX_SYMBOL."""
        raise NotImplementedError

    def _run(self, z_indices: np.ndarray, symbols) -> np.ndarray:
        """The four steps; `symbols(k, levels, mean)` gives int32 [1, H/16, W/16, C/4] of each."""
        raise NotImplementedError


@dataclass(frozen=True)
class IntegerPath(Path):
    """In integers, see `models/integer.py`, on whatever device the rest runs on."""

    arithmetic: ClassVar = Arithmetic.INTEGER

    entropy: Any  # the model's part of this name
    fingerprint: int

    @classmethod
    def of(cls, entropy: Any) -> "IntegerPath":
        return cls(jax.device_put(entropy), fingerprint({"entropy": entropy}))

    def _put(self, y: np.ndarray) -> Array:
        bound = 2.0 ** (30 - FRACTION)
        y = np.clip(np.nan_to_num(y, posinf=bound, neginf=-bound), -bound, bound)
        return jnp.asarray(np.rint(y * np.float32(1 << FRACTION)).astype(np.int32))[None]

    def _symbols(self, k: int, y: Array, mean: Array) -> Array:
        return _integer_symbols(k, y, mean)

    def _run(self, z_indices: np.ndarray, symbols) -> np.ndarray:
        def values(k: int, mean: Array, levels: Array) -> Array:
            return jnp.asarray(symbols(k, _coding_order(np.asarray(levels)), mean))

        y_hat = integer_steps(self.entropy, jnp.asarray(z_indices)[None], values)
        return np.asarray(y_hat[0], np.float32) / np.float32(1 << FRACTION)


def integer_steps(
    entropy: Any, z_indices: Array, symbols: Callable[[int, Array, Array], Array]
) -> Array:
    """All four steps in integers: tokens int32 [B, H/64, W/64] -> y_hat int32 [B, H/16, W/16, C].

    `symbols(k, mean, levels)` gives step k's, int32 [B, H/16, W/16, C/4] within ±MAX_SYMBOL, for
    its means (int32) and levels (uint8). Means and y_hat are multiples of 2^-FRACTION.
    """
    parameters = integer.prior_parameters(entropy, z_indices)
    context = integer.prior_context(entropy, parameters)
    y_hat = jnp.zeros_like(context)
    for k in range(STEPS):
        if k > 0:
            parameters = integer.prior_refine(k, entropy["prior"], y_hat, context)
        mean, levels = _predict(k, parameters)
        y_hat = _place(k, y_hat, mean, symbols(k, mean, levels))
    return y_hat


@partial(jax.jit, static_argnums=0)
def _predict(k: int, parameters: Array) -> tuple[Array, Array]:
    mean, scale = integer.mean_and_scale(k, parameters)
    return mean, integer_levels(scale)


@partial(jax.jit, static_argnums=0)
def _integer_symbols(k: int, y: Array, mean: Array) -> Array:
    residual = (gather(y, k) - mean + (1 << FRACTION - 1)) >> FRACTION
    return jnp.clip(residual, -MAX_SYMBOL, MAX_SYMBOL)


@partial(jax.jit, static_argnums=0)
def _place(k: int, y_hat: Array, mean: Array, values: Array) -> Array:
    return y_hat + scatter(mean + (values << FRACTION), k)


def integer_levels(scales: Array) -> Array:
    """The table of each scale, int32 multiples of 2^-FRACTION -> uint8, as `tables.scale_index`.

    A multiple is at or above a threshold if it is at or above the next multiple from there: those
    are the integers that scales are compared with. Products with powers of two are exact.
    """
    inner = np.ceil(np.ldexp(tables.load().thresholds[1:].astype(np.float64), FRACTION))
    return jnp.searchsorted(inner.astype(np.int32), scales, side="right").astype(jnp.uint8)


@dataclass(frozen=True)
class FloatPath(Path):
    """On the CPU in float32."""

    arithmetic: ClassVar = Arithmetic.FLOAT32_CPU

    model: OneDC
    params: Any  # of hyper-synthesis and prior alone
    fingerprint: int

    @classmethod
    def of(cls, model: OneDC, params: Any) -> "FloatPath":
        cpu = jax.devices("cpu")[0]
        parts = {name: params["codec"][name] for name in ("hyper_synthesis", "prior")}
        parts = jax.tree.map(lambda x: np.asarray(x, np.float32), parts)
        model = model.clone(codec=model.codec.clone(dtype="float32"))
        return cls(model, jax.device_put({"codec": parts}, cpu), fingerprint(params))

    def _put(self, y: np.ndarray) -> Array:
        return jnp.asarray(y, device=self._cpu)[None]

    def _symbols(self, k: int, y: Array, mean: Array) -> np.ndarray:
        values = np.nan_to_num(np.rint(self._residual(k, y, mean)), posinf=np.inf, neginf=-np.inf)
        return np.clip(values, -MAX_SYMBOL, MAX_SYMBOL).astype(np.int32)

    def _run(self, z_indices: np.ndarray, symbols) -> np.ndarray:
        parameters = self._parameters(self.params, jnp.asarray(z_indices, device=self._cpu)[None])
        y_hat = jnp.zeros((*parameters.shape[:3], parameters.shape[3] // 2), device=self._cpu)
        for k in range(STEPS):
            mean, levels = self._step(k, self.params, y_hat, parameters)
            values = symbols(k, _coding_order(np.asarray(levels)), mean)
            y_hat = self._place(k, y_hat, mean, jnp.asarray(values, device=self._cpu))
        return np.asarray(y_hat[0])

    @property
    def _cpu(self) -> jax.Device:
        return jax.devices("cpu")[0]

    @cached_property
    def _parameters(self):
        apply = partial(self.model.apply, method=OneDC.prior_parameters)
        return jax.jit(lambda params, z_indices: apply({"params": params}, z_indices))

    @cached_property
    def _step(self):
        def step(k, params, y_hat, parameters):
            args = (k, y_hat, parameters)
            mean, scale = self.model.apply({"params": params}, *args, method=OneDC.prior_step)
            return jnp.nan_to_num(mean), scale_levels(scale)

        return jax.jit(step, static_argnums=0)

    @cached_property
    def _residual(self):
        return jax.jit(lambda k, y, mean: gather(y, k) - mean, static_argnums=0)

    @cached_property
    def _place(self):
        add = lambda k, y_hat, mean, values: y_hat + scatter(mean + values.astype(jnp.float32), k)
        return jax.jit(add, static_argnums=0)


def scale_levels(scales: Array) -> Array:
    """The frequency table of each scale, float32 [...] -> uint8, as `tables.scale_index`."""
    inner = tables.load().thresholds[1:]  # without the first, a count is an index already
    scales = jnp.where(jnp.isnan(scales), 0.0, scales)
    return jnp.searchsorted(inner, scales, side="right").astype(jnp.uint8)


def _coding_order(x: np.ndarray) -> np.ndarray:
    """[1, H/16, W/16, C/4] -> [N]: channel by channel, row by row."""
    return np.ascontiguousarray(x[0].transpose(2, 0, 1)).reshape(-1)
