"""Where the network meets the bytes: an image to a stream, a stream to an image.

What chooses the probabilities of y is in `coding/path.py`; the two networks around it, analysis and
reconstruction, may run anywhere and in any precision.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import check_tree, is_sealed, load_model, resolve
from onedc_jax.coding import stream
from onedc_jax.coding.entropy import encode_steps
from onedc_jax.coding.path import FloatPath
from onedc_jax.errors import ImageError, ModelError, StreamError
from onedc_jax.models.onedc import BLOCK, OneDC, build, param_shapes

Array = jax.Array


@dataclass(frozen=True)
class Latents:
    """What a stream carries: tokens int32 [H/64, W/64] and y_hat float32 [H/16, W/16, C]."""

    z_indices: np.ndarray
    y_hat: np.ndarray


@dataclass(frozen=True)
class Codec:
    """A model ready to encode and decode; make one with `load`.

    Programs are compiled at the first image of each padded size.
    """

    name: str
    model: OneDC
    params: Any

    def encode(self, image: np.ndarray) -> bytes:
        """uint8 [H, W, 3] -> a stream. The same image gives the same bytes.

        Raises ImageError for another dtype or shape, or more pixels than a stream may declare.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"expected pixels uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
        header = stream.Header(image.shape[1], image.shape[0], self._entropy.fingerprint)
        stream.check_size(header.width, header.height)
        y, z_indices = self.analyse(image)
        symbols, _ = self._entropy.quantise(y, z_indices)
        return stream.pack(header, z_indices, encode_steps(symbols))

    def decode(self, data: bytes) -> np.ndarray:
        """A stream -> uint8 [H, W, 3]. Raises StreamError for any that this model did not write."""
        header, z_indices, coded = self._unpack(data)
        # The decoder's program is made ready while the entropy coder, on one core, is at work.
        with ThreadPoolExecutor(1) as beside:
            program = beside.submit(self._reconstruction, *z_indices.shape)
            y_hat = self._entropy.dequantise(coded, z_indices)
        image = program.result()(
            self.params, jnp.asarray(y_hat)[None], jnp.asarray(z_indices)[None]
        )
        return np.asarray(image[0])[: header.height, : header.width]

    def analyse(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] -> y float32 [H'/16, W'/16, C] and tokens int32 [H'/64, W'/64].

        H' and W' are H and W after padding to multiples of BLOCK.
        """
        height, width = image.shape[:2]
        pad = ((0, -height % BLOCK), (0, -width % BLOCK), (0, 0))
        padded = np.pad(image, pad, mode="edge")
        y, z_indices = self._analyse(self.params, jnp.asarray(padded)[None])
        return np.asarray(y[0]), np.asarray(z_indices[0])

    def encode_latents(self, image: np.ndarray) -> Latents:
        """What the encoder of `image` holds, and the decoder of its stream will."""
        y, z_indices = self.analyse(image)
        return Latents(z_indices, self._entropy.quantise(y, z_indices)[1])

    def decode_latents(self, data: bytes) -> tuple[stream.Header, Latents]:
        """A stream -> its header and latents, without making the image."""
        header, z_indices, coded = self._unpack(data)
        return header, Latents(z_indices, self._entropy.dequantise(coded, z_indices))

    def _unpack(self, data: bytes) -> tuple[stream.Header, np.ndarray, bytes]:
        header, z_indices, coded = stream.unpack(data)
        own = self._entropy.fingerprint
        if header.fingerprint != own:
            raise StreamError(
                f"the stream was made with another model (fingerprint {header.fingerprint:04x}, "
                f"{self.name} has {own:04x}); name that one with --model"
            )
        return header, z_indices, coded

    @cached_property
    def _entropy(self) -> FloatPath:
        return FloatPath.of(self.model, self.params)

    @cached_property
    def _analyse(self):
        def analyse(params, image):
            pixels = image.astype(jnp.float32) / 127.5 - 1
            out = self.model.apply({"params": params}, pixels, method=OneDC.analyse)
            return out["y"].astype(jnp.float32), out["z_indices"]

        return jax.jit(analyse)

    def _reconstruction(self, rows: int, columns: int) -> jax.stages.Compiled:
        """The decoder's program for an image of so many blocks."""
        if (rows, columns) not in self._reconstructions:
            z_indices = jax.ShapeDtypeStruct((1, rows, columns), jnp.int32)
            shape = (1, 4 * rows, 4 * columns, self.model.codec.channels)
            y_hat = jax.ShapeDtypeStruct(shape, jnp.float32)
            lowered = jax.jit(self._reconstruct).lower(self.params, y_hat, z_indices)
            self._reconstructions[rows, columns] = lowered.compile()
        return self._reconstructions[rows, columns]

    @cached_property
    def _reconstructions(self) -> dict[tuple[int, int], jax.stages.Compiled]:
        return {}

    def _reconstruct(self, params, y_hat: Array, z_indices: Array) -> Array:
        image = self.model.apply({"params": params}, y_hat, z_indices, method=OneDC.reconstruct)
        return jnp.round((image + 1) * 127.5).astype(jnp.uint8)


def load(name_or_path: str | Path = "tiny") -> Codec:
    """A codec from an embedded preset's name or the path of a model directory or training run.

    Raises ModelError, in one line, where there is no model or its weights do not fit its
    configuration.
    """
    path = resolve(name_or_path)
    config, params = load_model(path)
    try:
        model = build(config)
    except TypeError as error:
        raise ModelError(
            f"{path / 'model.json'}: not a configuration of this version ({error})"
        ) from error
    missing = {"vae", "codec", "generator"} - set(params)
    if missing:
        raise ModelError(f"{path}: not a whole codec, it lacks {', '.join(sorted(missing))}")
    if not is_sealed(path, params):
        check_tree(params, param_shapes(model))
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    return Codec(str(name_or_path), model, jax.device_put(params))
