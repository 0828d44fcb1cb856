"""Where the network meets the bytes: an image to a stream, a stream to an image.

Encoder and decoder must agree on every number that chooses a probability. All of them come out of
`_EntropyPath`, which runs on the CPU in float32 whatever the rest runs on, one step at a time and
with the same shapes on both sides; only integers go on to the entropy coder.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.checkpoint import check_tree, fingerprint, is_sealed, load_model, resolve
from onedc_jax.coding import stream, tables
from onedc_jax.coding.entropy import MAX_SYMBOL, SymbolDecoder, encode_steps
from onedc_jax.errors import ImageError, ModelError, StreamError
from onedc_jax.models.onedc import BLOCK, OneDC, build, param_shapes
from onedc_jax.models.prior import STEPS, gather, scatter

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
    def _entropy(self) -> "_EntropyPath":
        return _EntropyPath.of(self.model, self.params)

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


@dataclass(frozen=True)
class _EntropyPath:
    """Tokens and the y coded so far -> mean and table of what comes next, on the CPU in float32."""

    model: OneDC
    params: Any  # of hyper-synthesis and prior alone
    fingerprint: int

    @classmethod
    def of(cls, model: OneDC, params: Any) -> "_EntropyPath":
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
