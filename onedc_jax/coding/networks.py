"""The two networks around the entropy coder, for images of any size: pixels -> y, y_hat -> pixels.

They are compiled for a few sizes of arrays. An image is put in the smallest that holds it; a larger
one is covered by windows, see `windows.py`. Of what a window cannot see, attention is left with
what it can; norms over the whole image are given one set of statistics for all windows, the mean of
those that the windows have by themselves, so that none is brighter than its neighbour.

CPUs compute everything in float32, other devices most of the decoder in bfloat16. The encoder stays
in float32 on all: of an image all are to make the same y.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.coding.programs import Programs
from onedc_jax.coding.windows import (
    BLOCK,
    SHAPES,
    Y_SCALE,
    Window,
    cover,
    cut,
    joined,
    paste,
)
from onedc_jax.models.codec import interpolated
from onedc_jax.models.onedc import PARTS, OneDC
from onedc_jax.models.padding import within
from onedc_jax.models.pixels import from_uint8, to_uint8
from onedc_jax.models.winograd import on_cpu
from onedc_jax.trees import map_named

Array = jax.Array

_LATENTS = 8  # positions of a latent along a block's side
HALO = 1  # blocks at a window's edge that it does not answer for: it sees too little around them

# Nearly all of the decoder's weights. In what they compute, FSQ, softmax, the statistics of norms,
# and the step to x0 are float32 nevertheless.
_HALVED = ("codec/adaptor/", "codec/synthesis/", "generator/unet/", "vae/decoder/")


@dataclass(frozen=True, eq=False)
class Networks:
    """A model's networks on one device; programs are compiled when they are first needed."""

    model: OneDC
    params: Any = field(repr=False)
    dtype: str = "float32"  # of the decoder
    programs: Programs = field(default_factory=Programs, repr=False)

    @classmethod
    def of(cls, model: OneDC, params: Any, device: jax.Device, dtype: str = "") -> "Networks":
        """Of float32 parameters, which go to a device. `dtype` is the decoder's.

        By default that is float32 on a CPU and bfloat16 elsewhere.
        """
        dtype = dtype or ("float32" if device.platform == "cpu" else "bfloat16")
        # For good: programs are compiled for the device that their arrays are on.
        params = jax.device_put(halved(params, dtype), device)
        return cls(model, params, dtype)

    @cached_property
    def decoder(self) -> OneDC:
        """The model as the decoder computes it."""
        parts = {part: getattr(self.model, part).clone(dtype=self.dtype) for part in PARTS}
        return self.model.clone(**parts)

    @property
    def device(self) -> jax.Device:
        """Where the parameters are, and all is computed."""
        return jax.tree.leaves(self.params)[0].device

    @property
    def has_knob(self) -> bool:
        """Whether the model has several rates, and so a knob."""
        return self.model.codec.rates > 1

    def on(self, device: jax.Device) -> "Networks":
        """The same on another device."""
        params = jax.device_put(self.params, device)
        return replace(self, params=params, programs=Programs())

    def analyse(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] -> y float32 [H'/16, W'/16, C] and tokens int32 [H'/64, W'/64].

        H' and W' are H and W after padding to multiples of BLOCK. The knob's gain is not in y yet.
        """
        image = padded(image)
        rows, columns = (side // BLOCK for side in image.shape[:2])
        shape, windows = self.cover(rows, columns)
        inputs = lambda window: (cut(image, window, shape, BLOCK),)
        y = np.empty((Y_SCALE * rows, Y_SCALE * columns, self.model.codec.channels), np.float32)
        z_indices = np.empty((rows, columns), np.int32)
        tiles = self._tiles(partial(self.analysis, shape), windows, inputs)
        for window, (y_tile, tokens) in zip(windows, tiles, strict=True):
            paste(y, y_tile[0], window, Y_SCALE)
            paste(z_indices, tokens[0], window, 1)
        return y, z_indices

    def gained(self, y: np.ndarray, place: np.ndarray) -> np.ndarray:
        """y [H/16, W/16, C] as it is rounded with the knob at `place`, float32 [1] in [0, 1]."""
        table = np.asarray(self.params["codec"]["knob"]["gain"])
        return y * np.exp(interpolated(table, place))[0]

    def reconstruct(
        self,
        y_hat: np.ndarray,
        z_indices: np.ndarray,
        place: np.ndarray | None,
        start: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """y_hat float32 [H/16, W/16, C] and tokens int32 [H/64, W/64] -> uint8 [H, W, 3].

        `place` is as in `gained`, and None where there is no knob. `start` is the row and column of
        the first block, where these are a part of a picture's.
        """
        shape, windows = self.cover(*z_indices.shape)

        def inputs(window: Window) -> tuple:
            latents = cut(y_hat, window, shape, Y_SCALE), cut(z_indices, window, shape, 1)
            return *latents, place, origin(window, start)

        tiles = self._tiles(partial(self.reconstruction, shape), windows, inputs)
        return joined(windows, lambda window: next(tiles)[0])

    def cover(self, rows: int, columns: int) -> tuple[tuple[int, int], list[Window]]:
        """The arrays' shape and the windows over an image of so many blocks."""
        return cover(rows, columns, SHAPES, HALO)

    def _tiles(
        self, program: Callable, windows: list[Window], inputs: Callable[[Window], tuple]
    ) -> Iterator[Any]:
        """What a program makes of the inputs of each window, in turn, as NumPy arrays.

        `program(statistics)` is that of `analysis` or `reconstruction`.
        """

        def run(window: Window, statistics: list | None) -> tuple:
            sizes = np.array([window.size], np.int32)
            return program(statistics)(self.params, *inputs(window), sizes, statistics)

        statistics = None
        if len(windows) > 1:
            first, own = run(windows[0], None)
            if not own:  # no norm looks farther than its window
                yield jax.device_get(first)
                windows = windows[1:]
            else:
                all_of_them = [own, *(run(window, None)[1] for window in windows[1:])]
                statistics = _mean(jax.device_get(all_of_them), [w.size for w in windows])
        for window in windows:
            yield jax.device_get(run(window, statistics)[0])

    def analysis(
        self, shape: tuple[int, int], statistics: list | None = None
    ) -> jax.stages.Compiled:
        """The encoder's program for arrays of so many blocks, and such statistics.

        The program: (params, pixels, sizes, statistics) -> ((y, tokens), its own statistics).
        """
        image = jax.ShapeDtypeStruct((1, *(BLOCK * side for side in shape), 3), jnp.uint8)
        return self._program(self._analyse, shape, statistics, image)

    def reconstruction(
        self, shape: tuple[int, int], statistics: list | None = None
    ) -> jax.stages.Compiled:
        """The decoder's, likewise.

        The program: (params, y_hat, tokens, place, origin, sizes, statistics) -> (pixels,
        statistics).
        """
        origin = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        return self._program(self._reconstruct, shape, statistics, *self.latents(shape), origin)

    def latents(self, shape: tuple[int, int]) -> tuple:
        """What the decoder takes of an image of so many blocks: y_hat, tokens, place, as shapes."""
        y_shape = (1, *(Y_SCALE * side for side in shape), self.model.codec.channels)
        y_hat = jax.ShapeDtypeStruct(y_shape, jnp.float32)
        z_indices = jax.ShapeDtypeStruct((1, *shape), jnp.int32)
        place = jax.ShapeDtypeStruct((1,), jnp.float32) if self.has_knob else None
        return y_hat, z_indices, place

    def _program(self, function: Callable, shape, statistics, *inputs) -> jax.stages.Compiled:
        """A network's program for such inputs; without statistics it takes its own."""
        key = function.__name__, shape, statistics is None
        sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        arguments = self.params, *inputs, sizes, statistics
        return self.programs.get(key, function, repr((self.model, self.dtype)), *arguments)

    def _analyse(self, params, image: Array, sizes: Array, statistics: list | None):
        pixels, seen = from_uint8(image), []
        blocks = tuple(side // BLOCK for side in image.shape[1:3])
        with within(sizes, blocks, seen, statistics), on_cpu():
            out = self.model.apply({"params": params}, pixels, method=OneDC.analyse)
        return (out["y"].astype(jnp.float32), out["z_indices"]), seen

    def _reconstruct(self, params, y_hat, z_indices, place, origin, sizes, statistics):
        latents, seen = (y_hat, z_indices, place, origin), []
        with within(sizes, z_indices.shape[1:], seen, statistics), on_cpu():
            image = self.decoder.apply({"params": params}, *latents, method=OneDC.reconstruct)
        return to_uint8(image), seen


def halved(params: Any, dtype: str) -> Any:
    """The parameters with kernels of the decoder in this type."""

    def leaf(name: str, x):
        kernel = name.startswith(_HALVED) and name.endswith("kernel")
        return x.astype(dtype, copy=False) if kernel else x

    return map_named(leaf, params)


def padded(image: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] whose sides are multiples of BLOCK: its last row and column repeated."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0)), mode="edge")


def origin(window: Window, start: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Where a window is in a picture, as `Generator` takes it, int32 [1, 2].

    `start` is the row and column of the block that windows are counted from.
    """
    first = window.rows.start + start[0], window.columns.start + start[1]
    return np.array([first], np.int32) * _LATENTS


def _mean(statistics: list[list[tuple]], sizes: list[tuple[int, int]]) -> list[tuple]:
    """(mean, variance) of each norm over all windows, from those of each window and its size."""
    weights = np.array([rows * columns for rows, columns in sizes], np.float32)
    weights /= weights.sum()

    def joint(*moments: tuple) -> tuple[np.ndarray, np.ndarray]:
        average = lambda values: sum(w * x for w, x in zip(weights, values, strict=True))
        mean = average([m for m, _ in moments])
        return mean, average([v + (m - mean) ** 2 for m, v in moments])

    return [joint(*moments) for moments in zip(*statistics, strict=True)]
