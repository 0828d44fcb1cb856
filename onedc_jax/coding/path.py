"""From tokens to y: the part of the network that the entropy coder's probabilities come from.

Encoder and decoder must agree on every number that chooses a probability. `FloatPath` computes
them on the CPU in float32 whatever the rest runs on, one step at a time and with the same shapes
on both sides; only integers go on to the entropy coder.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import fingerprint
from onedc_jax.coding import tables
from onedc_jax.coding.entropy import MAX_SYMBOL, SymbolDecoder
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.prior import STEPS, gather, scatter

Array = jax.Array


@dataclass(frozen=True)
class FloatPath:
    """Tokens and the y coded so far -> mean and table of what comes next, on the CPU in float32."""

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

    def quantise(self, y: np.ndarray, z_indices: np.ndarray) -> tuple[list, np.ndarray]:
        """Rounds y around the means: the coder's (symbols, levels) of each step, and y_hat."""
        y = jnp.asarray(y, device=self._cpu)[None]
        coded = []

        def symbols(k: int, levels: np.ndarray, mean: Array) -> np.ndarray:
            values = np.nan_to_num(
                np.rint(self._residual(k, y, mean)), posinf=np.inf, neginf=-np.inf
            )
            values = np.clip(values, -MAX_SYMBOL, MAX_SYMBOL).astype(np.int32)
            coded.append((_coding_order(values), levels))
            return values

        return coded, self._run(z_indices, symbols)

    def dequantise(self, data: bytes, z_indices: np.ndarray) -> np.ndarray:
        """The entropy-coded y -> y_hat. Raises StreamError where it is not what was encoded."""
        decoder = SymbolDecoder(data)

        def symbols(k: int, levels: np.ndarray, mean: Array) -> np.ndarray:
            _, h, w, c = mean.shape
            return decoder.decode(levels).reshape(c, h, w).transpose(1, 2, 0)[None]

        y_hat = self._run(z_indices, symbols)
        decoder.finish()
        return y_hat

    def _run(self, z_indices: np.ndarray, symbols) -> np.ndarray:
        """The four steps; `symbols(k, levels, mean)` gives int32 [1, H/16, W/16, C/4] of each."""
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
