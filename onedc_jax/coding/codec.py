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
from onedc_jax.coding.entropy import SymbolDecoder, encode_steps
from onedc_jax.coding.path import FloatPath, IntegerPath
from onedc_jax.errors import ImageError, ModelError, StreamError
from onedc_jax.models import integer
from onedc_jax.models.onedc import BLOCK, OneDC, build, param_shapes

Array = jax.Array

_EMPTY = np.zeros(0, np.int32), np.zeros(0, np.uint8)  # a step that is not coded


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
    entropy: Any = None  # integers, see `models/integer.py`; None: probabilities in float32

    @property
    def exact(self) -> bool:
        """Whether its streams decode on every device, or on one kind of machine."""
        return self.entropy is not None

    def encode(self, image: np.ndarray, steps: int = stream.STEPS) -> bytes:
        """uint8 [H, W, 3] -> a stream. The same image gives the same bytes.

        With fewer than 4 `steps` only that many of y are coded, with 0 none: z alone, the smallest
        file. The decoder puts the prior's means in place of the others.

        Raises ImageError for another dtype or shape, or more pixels than a stream may declare.
        """
        if steps not in range(stream.STEPS + 1):
            raise ValueError(f"steps must be 0 to {stream.STEPS}, not {steps}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"expected pixels uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
        header = stream.Header(
            image.shape[1], image.shape[0], self._entropy.fingerprint, self._entropy.arithmetic
        )
        stream.check_size(header.width, header.height)
        y, z_indices = self.analyse(image)
        coded = self._entropy.quantise(y, z_indices)[0][:steps] if steps else []
        coded += [_EMPTY] * (stream.STEPS - len(coded))
        return stream.pack(header, z_indices, *encode_steps(coded))

    def decode(self, data: bytes, allow_truncated: bool = False) -> np.ndarray:
        """A stream -> uint8 [H, W, 3].

        With `allow_truncated` a stream whose end is missing gives the image that its whole steps
        make, as if no more had been coded; all of z must be there.

        Raises StreamError for any stream that this model did not write, and for a cut one if not
        allowed.
        """
        content = self._unpack(data, allow_truncated)
        # The decoder's program is made ready while the entropy coder, on one core, is at work.
        with ThreadPoolExecutor(1) as beside:
            program = beside.submit(self._reconstruction, *content.z.shape)
            latents = self._latents(content)
            program.result()
        return self.reconstruct(latents)[: content.header.height, : content.header.width]

    def reconstruct(self, latents: Latents) -> np.ndarray:
        """Latents -> the image of whole blocks that `decode` crops, uint8 [H', W', 3]."""
        program = self._reconstruction(*latents.z_indices.shape)
        y_hat, z_indices = (jnp.asarray(x)[None] for x in (latents.y_hat, latents.z_indices))
        return np.asarray(program(self.params, y_hat, z_indices)[0])

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

    def decode_latents(
        self, data: bytes, allow_truncated: bool = False
    ) -> tuple[stream.Header, Latents]:
        """A stream -> its header and latents, without making the image; otherwise as `decode`."""
        content = self._unpack(data, allow_truncated)
        return content.header, self._latents(content)

    def _unpack(self, data: bytes, allow_truncated: bool) -> stream.Content:
        """What a stream holds, if it was made with this model and this arithmetic."""
        content = stream.unpack(data, allow_truncated)
        header, own = content.header, self._entropy
        if header.arithmetic != own.arithmetic:
            raise StreamError(
                f"the stream was made with arithmetic {header.arithmetic.name.lower()}, "
                f"{self.name} has {own.arithmetic.name.lower()}"
            )
        if header.fingerprint != own.fingerprint:
            doubt = ", or it is damaged" if allow_truncated else ""
            raise StreamError(
                f"the stream was made with another model (fingerprint {header.fingerprint:04x}, "
                f"{self.name} has {own.fingerprint:04x}): name that one with --model{doubt}"
            )
        if header.rate is not None:
            raise StreamError(
                f"the stream has a rate ({header.rate}), {self.name} is a model of one rate"
            )
        return content

    def _latents(self, content: stream.Content) -> Latents:
        decoder = SymbolDecoder(content.y, content.words)
        y_hat = self._entropy.dequantise(decoder.decode, content.z)
        decoder.finish(cut=len(content.words) < stream.STEPS)
        return Latents(content.z, y_hat)

    @cached_property
    def _entropy(self) -> IntegerPath | FloatPath:
        if self.entropy is not None:
            return IntegerPath.of(self.entropy)
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


def load(name_or_path: str | Path = "tiny", arithmetic: str = "integer") -> Codec:
    """A codec from an embedded preset's name or the path of a model directory or training run.

    Its streams are exact on every device if the model has integers (`onedc quantize` makes them).
    A model without, or any with `arithmetic` "float", takes float32 on the CPU instead: its streams
    are for one kind of machine, and for research.

    Raises ModelError, in one line, where there is no model or its weights do not fit its
    configuration.
    """
    if arithmetic not in ("integer", "float"):
        raise ValueError(f'arithmetic must be "integer" or "float", not {arithmetic!r}')
    path = resolve(name_or_path)
    config, params = load_model(path)
    try:
        model = build(config)
    except TypeError as error:
        raise ModelError(
            f"{path / 'model.json'}: not a configuration of this version ({error})"
        ) from error
    if model.codec.rates > 1:
        raise ModelError(f"{path}: has a knob for its rate, which streams do not carry yet")
    missing = {"vae", "codec", "generator"} - set(params)
    if missing:
        raise ModelError(f"{path}: not a whole codec, it lacks {', '.join(sorted(missing))}")
    sealed = is_sealed(path, params)
    entropy = params.pop("entropy", None)
    if not sealed:
        check_tree(params, param_shapes(model))
    if entropy is not None:
        integer.check(entropy, params["codec"])
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    entropy = entropy if arithmetic == "integer" else None
    return Codec(str(name_or_path), model, jax.device_put(params), entropy)
