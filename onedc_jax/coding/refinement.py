"""A search for a better y: what the encoder's network finds at once is a first guess.

The decoder is differentiable, so y can follow the gradient of what the reader will see, image by
image (Campos et al., "Content Adaptive Optimization for Neural Image Compression", CVPRW 2019). The
stream is an ordinary one. Every step rounds y, with the very numbers of the entropy coder, and
walks on by the gradient of the rounded one's distortion, LPIPS on AlexNet and a part of L1, less
what of it would spend bits.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.coding import tables
from onedc_jax.coding.entropy import ESCAPE_BITS
from onedc_jax.coding.networks import HALO, Networks, origin, padded
from onedc_jax.coding.path import FloatPath, IntegerPath, knob_place, placed
from onedc_jax.coding.windows import BLOCK, SHAPES, Y_SCALE, cover, cut, paste
from onedc_jax.models.layers import inside
from onedc_jax.models.lpips import LPIPS, load_lpips
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.padding import within
from onedc_jax.models.pixels import from_uint8, to_unit

Array = jax.Array

_SHAPES = SHAPES[:-1]  # the small ones: gradients hold all that a decoder computes
_PIXELS = 0.4  # weight of L1 beside LPIPS, which minds colours little
_STEP = 0.05  # how far a search of one step moves y, in units that y is rounded to
_SHORTER = 0.4  # the first of n steps goes n to this power less far
_MOMENTUM = 0.8  # how much of the gradients' mean is kept from a step to the next
_SLACK = 1.1  # a y of so many times the bits is still taken
_THRIFT = 0.3  # weight of bits beside the gradient once all of these are spent


@dataclass(frozen=True, eq=False)
class Refinement:
    """The search, for one model on one device."""

    networks: Networks
    path: IntegerPath | FloatPath
    steps: int
    watch: Callable[[Iterable], Iterable]
    weights: dict = field(repr=False)

    @classmethod
    def of(
        cls, networks: Networks, path: IntegerPath | FloatPath, steps: int, watch: Callable
    ) -> "Refinement":
        """With LPIPS's weights; raises ModelError where they are missing."""
        weights = jax.device_put(load_lpips("alex"), networks.device)
        return cls(networks, path, steps, watch, weights)

    def on(self, networks: Networks, path: IntegerPath | FloatPath) -> "Refinement":
        """The same on the device that these are on."""
        weights = jax.device_put(self.weights, networks.device)
        return replace(self, networks=networks, path=path, weights=weights)

    def __call__(
        self, image: np.ndarray, y: np.ndarray, z_indices: np.ndarray, rate: int | None
    ) -> np.ndarray:
        """A y [H/16, W/16, C] that is rounded to a better image, in nearly as many bits.

        `image` is uint8 [H, W, 3], y what `Networks.analyse` found of it, with the knob's gain. The
        same y comes back where no step helps.
        """
        best, lowest, first = y, np.inf, None
        mean = np.zeros_like(y)
        reach = _STEP / self.steps**_SHORTER
        for step in self.watch(range(self.steps + 1)):
            coded, y_hat = self.path.quantise(y, z_indices, rate)
            bits, slope = costs(*(placed(part, *y.shape[:2]) for part in zip(*coded, strict=True)))
            distortion, gradient = self.distortion(image, y_hat, z_indices, rate)
            first = first or max(bits, 1.0)
            spent = max(0.0, bits / first - 1) / (_SLACK - 1)
            if distortion < lowest and spent <= 1:
                best, lowest = y, distortion
            # The price of bits at which the step, to first order, spends none, and saves some where
            # others have spent.
            steepness = max(np.linalg.norm(slope), 1e-15)
            price = max(0.0, -np.vdot(gradient, slope) / steepness**2)
            price += _THRIFT * spent * np.linalg.norm(gradient) / steepness
            gradient += price * slope
            mean = _MOMENTUM * mean + (1 - _MOMENTUM) * gradient
            # Values go by the roots of their gradients, farther where more is to gain. By signs
            # alone, as in Adam's first steps, it takes twice as many for the same.
            size = np.abs(mean)
            length = reach * (0.5 + 0.5 * np.cos(np.pi * step / self.steps))
            y = y - length * np.sign(mean) * np.sqrt(size / (size.mean() + 1e-30))
            y = y.astype(np.float32)
        return best

    def distortion(
        self, image: np.ndarray, y_hat: np.ndarray, z_indices: np.ndarray, rate: int | None
    ) -> tuple[float, np.ndarray]:
        """LPIPS and a part of L1 of the image that is made of y_hat, and their gradient, as y_hat.

        Large images are looked at in windows, whose edges count twice.
        """
        image, gradient, total = padded(image), np.empty_like(y_hat), 0.0
        shape, windows = cover(*z_indices.shape, _SHAPES, HALO)
        for window in windows:
            args = (
                self.networks.params,
                self.weights,
                cut(y_hat, window, shape, Y_SCALE),
                cut(z_indices, window, shape, 1),
                knob_place(rate),
                origin(window),
                np.array([window.size], np.int32),
                cut(image, window, shape, BLOCK),
            )
            key, of = ("distortion", shape), repr(self.networks.model)
            program = self.networks.programs.get(key, self._gradient, of, *args)
            value, slope = program(*args)
            total += float(value)
            paste(gradient, np.asarray(slope)[0], window, Y_SCALE)
        share = 1 / z_indices.size
        return total * share, gradient * share

    def _gradient(self, params, weights, y_hat, z_indices, place, origin, sizes, target):
        """LPIPS and a part of L1, summed over a window's blocks, and their gradient."""
        blocks = z_indices.shape[1:]
        there = inside(sizes, blocks, *target.shape[1:3])
        target = from_uint8(target)

        def distortion(y_hat: Array) -> Array:
            with within(sizes, blocks):
                latents = y_hat, z_indices, place, origin
                image = self.networks.model.apply(
                    {"params": params}, *latents, method=OneDC.reconstruct
                )
            image = jnp.where(there, image, target)
            distance = LPIPS().apply({"params": weights}, to_unit(image), to_unit(target), there)[0]
            return (distance + _PIXELS * jnp.abs(image - target).mean()) * blocks[0] * blocks[1]

        return jax.value_and_grad(distortion)(y_hat)


def costs(symbols: np.ndarray, levels: np.ndarray) -> tuple[float, np.ndarray]:
    """What symbols of tables of these levels cost, in bits, and what one more would of each.

    int32 and uint8 [..] -> the sum, and float32 [..], the mean of a step up and a step down.
    """
    table = _bits()
    at = np.abs(symbols)
    of = lambda size: table[levels, np.minimum(size, table.shape[1] - 1)]
    slope = (of(at + 1) - of(np.abs(at - 1))) / 2
    return float(of(at).sum()), np.sign(symbols) * slope


@functools.lru_cache(maxsize=1)
def _bits() -> np.ndarray:
    """The bits of the sizes 0, 1, .. of symbols in each table, float32 [levels, sizes].

    Beyond the largest that a table has a code for it is that of the escape and what comes after.
    """
    bits = []
    for frequencies in tables.load().frequencies:
        ends = frequencies[0], *frequencies[1:-1:2], frequencies[-1]  # 0, -1, -2, .., the escape
        bits.append(tables.PRECISION - np.log2(ends))
        bits[-1][-1] += ESCAPE_BITS
    sizes = max(map(len, bits))
    pad = lambda row: np.pad(row, (0, sizes - len(row)), mode="edge")
    return np.stack([pad(row) for row in bits]).astype(np.float32)
