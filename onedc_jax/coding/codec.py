"""Where the network meets the bytes: an image to a stream, a stream to an image.

What chooses the probabilities of y is in `coding/path.py`; the two networks around it, analysis and
reconstruction, may run anywhere and in any precision.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import numpy as np

from onedc_jax.coding import search, stream
from onedc_jax.coding.entropy import SymbolDecoder, encode_steps
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.path import FloatPath, IntegerPath, knob_place
from onedc_jax.coding.refinement import Refinement
from onedc_jax.errors import ImageError, ModelError, OneDCError, StreamError
from onedc_jax.models.onedc import OneDC

QUALITY = 75.0
"""The default quality, of 0 to 100, of models with a knob."""
_EMPTY = np.zeros(0, np.int32), np.zeros(0, np.uint8)  # a step that is not coded


@dataclass(frozen=True, eq=False)
class Latents:
    """What a stream carries.

    Attributes:
      z_indices: the tokens, int32 [H/64, W/64].
      y_hat: float32 [H/16, W/16, C].
      rate: the place of the model's quality knob, 0 to 255; None for a model without one.
    """

    z_indices: np.ndarray
    y_hat: np.ndarray
    rate: int | None = None


@dataclass(frozen=True, eq=False)
class Codec:
    """A model ready to encode and decode; `coding/loading.py` makes one.

    An image is put in one of a few sizes of arrays, or covered by windows, see `networks.py`;
    programs are compiled at the first image of each.
    """

    name: str
    networks: Networks
    path: IntegerPath | FloatPath
    refinement: Refinement | None = None

    def __repr__(self) -> str:
        arithmetic = self.path.arithmetic.name.lower()
        return f"Codec({self.name!r}, fingerprint {self.path.fingerprint:04x}, {arithmetic})"

    def with_effort(self, steps: int, watch: Callable[[Iterable], Iterable] = iter) -> "Codec":
        """The same, whose encoder takes so many steps of a search for each stream; 0 for none.

        See `refinement.py`. `watch` is given the steps before they are taken, for a progress bar.
        Raises OneDCError for steps that are no number from 0 on; ModelError where LPIPS's weights
        are missing.
        """
        if _whole("effort", steps) < 0:
            raise OneDCError(f"effort must be 0 or more steps, not {steps}")
        if not steps:
            return replace(self, refinement=None)
        return replace(self, refinement=Refinement.of(self.networks, self.path, steps, watch))

    @property
    def model(self) -> OneDC:
        """The networks, without what was folded into their parameters (`models/folding.py`)."""
        return self.networks.model

    @property
    def params(self) -> dict:
        """The parameters of `model`, on its device."""
        return self.networks.params

    @property
    def exact(self) -> bool:
        """Whether its streams decode on every device, or on one kind of machine."""
        return self.path.arithmetic is stream.Arithmetic.INTEGER

    @property
    def has_knob(self) -> bool:
        """Whether it codes at any quality, or at the one rate that it was trained for."""
        return self.networks.has_knob

    def encode(
        self, image: np.ndarray, steps: int = stream.STEPS, quality: float | None = None
    ) -> bytes:
        """uint8 [H, W, 3] -> a stream. The same image gives the same bytes.

        `quality`, 0 to 100, is for models with a knob: by default QUALITY. With fewer than 4
        `steps` only that many of y are coded, with 0 none: z alone, the smallest file. The decoder
        puts the prior's means in place of the others; such streams take no effort.

        Raises ImageError for another dtype or shape, or more pixels than a stream may declare;
        ModelError for a quality where the model has no knob; OneDCError for steps or a quality
        that there are not.
        """
        if _whole("steps", steps) not in range(stream.STEPS + 1):
            raise OneDCError(f"steps must be 0 to {stream.STEPS}, not {steps}")
        rate = self._rate(quality)
        return self._coder(image)(rate, steps, self.refinement)

    def encode_within(self, image: np.ndarray, size: int) -> bytes:
        """The best stream of at most `size` bytes, a whole number; raises as `encode`.

        Or one next to it: now and then a higher quality has a few bytes less. Where the lowest
        quality has more, steps of y are left out. Raises ImageError where even z alone has more.
        """
        _whole("size", size)
        data = search.within(*self._coders(image), size)
        if len(data) > size:
            raise ImageError(f"{size} bytes are too few: the smallest file has {len(data)}")
        return data

    def encode_near(self, image: np.ndarray, size: int) -> bytes:
        """The stream whose size is nearest to `size` bytes, or nearly; else as `encode_within`.

        With effort it is less near.
        """
        _whole("size", size)
        return search.nearest(*self._coders(image), size)

    def _coders(self, image: np.ndarray) -> tuple[Callable, Callable, int]:
        """The streams of an image, by size, made at once and with effort, and how many there are.

        All (rate, steps) to choose from: the lowest rate's with steps left out, then each whole.
        """
        rates = range(stream.MAX_RATE + 1) if self.has_knob else [None]
        points = [(rates[0], k) for k in range(stream.STEPS)] + [(r, stream.STEPS) for r in rates]
        code = self._coder(image)
        quick = functools.cache(lambda i: code(*points[i], None))
        final = functools.cache(lambda i: code(*points[i], self.refinement))
        return quick, final if self.refinement else quick, len(points)

    def _rate(self, quality: float | None) -> int | None:
        """The place of the knob for a quality."""
        if not self.has_knob:
            if quality is not None:
                raise ModelError(f"{self.name}: a model of one rate, it has no quality to choose")
            return None
        return stream.rate_of(QUALITY if quality is None else quality)

    def _coder(self, image: np.ndarray) -> Callable[[int | None, int, Refinement | None], bytes]:
        """The streams of an image: (rate, steps, refinement) -> bytes."""
        try:
            image = np.asarray(image)
        except ValueError:
            kind = type(image).__name__
            raise ImageError(f"expected pixels uint8 [H, W, 3], got a ragged {kind}") from None
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(
                f"expected pixels uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
        height, width = image.shape[:2]
        stream.check_size(width, height)
        header = stream.Header(width, height, self.path.fingerprint, self.path.arithmetic)
        y, z_indices = self.analyse(image)

        def code(rate: int | None, steps: int, refinement: Refinement | None) -> bytes:
            if steps < stream.STEPS:
                refinement = None
            held = image, y, z_indices, rate, refinement
            coded = self._rounded(*held)[0][:steps] if steps else []
            coded += [_EMPTY] * (stream.STEPS - len(coded))
            return stream.pack(replace(header, rate=rate), z_indices, *encode_steps(coded))

        return code

    def decode(self, data: bytes, allow_truncated: bool = False) -> np.ndarray:
        """A stream -> uint8 [H, W, 3], an array of its own: C-contiguous, and to be written to.

        With `allow_truncated` a stream whose end is missing gives the image that its whole steps
        make, as if no more had been coded; all of z must be there.

        Raises StreamError for any stream that this model did not write, and for a cut one if not
        allowed.
        """
        content = self._unpack(data, allow_truncated)
        shape, _ = self.networks.cover(*content.z.shape)
        # The decoder's program is made ready while the entropy coder, on one core, is at work.
        with ThreadPoolExecutor(1) as beside:
            program = beside.submit(self.networks.reconstruction, shape)
            latents = self._latents(content)
            program.result()
        image = self.reconstruct(latents)[: content.header.height, : content.header.width]
        return np.require(image, requirements=["C", "W"])  # copies what is not

    def reconstruct(self, latents: Latents) -> np.ndarray:
        """Latents -> the image of whole blocks that `decode` crops, uint8 [H', W', 3]."""
        place = knob_place(latents.rate)
        return self.networks.reconstruct(latents.y_hat, latents.z_indices, place)

    def analyse(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Networks.analyse`."""
        return self.networks.analyse(image)

    def quantise(
        self, y: np.ndarray, z_indices: np.ndarray, rate: int | None
    ) -> tuple[list, np.ndarray]:
        """What `analyse` found, rounded as by `EntropyPath.quantise`.

        y is without the knob's gain, which is applied here first.
        """
        return self._rounded(None, y, z_indices, rate, None)

    def _rounded(self, image, y, z_indices, rate, refinement) -> tuple[list, np.ndarray]:
        """(symbols, levels) of each step, and y_hat, of y or what a search for `image` finds."""
        if rate is not None:
            y = self.networks.gained(y, knob_place(rate))
        if refinement:
            y = refinement(image, y, z_indices, rate)
        return self.path.quantise(y, z_indices, rate)

    def decode_latents(
        self, data: bytes, allow_truncated: bool = False
    ) -> tuple[stream.Header, Latents]:
        """A stream -> its header and latents, without making the image; otherwise as `decode`."""
        content = self._unpack(data, allow_truncated)
        return content.header, self._latents(content)

    def _unpack(self, data: bytes, allow_truncated: bool) -> stream.Content:
        """What a stream holds, if it was made with this model and this arithmetic."""
        try:
            data = memoryview(data).tobytes()
        except TypeError:
            raise StreamError(f"a stream is bytes, not {type(data).__name__}") from None
        content = stream.unpack(data, allow_truncated)
        header, own = content.header, self.path
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
        if self.has_knob != (header.rate is not None):
            found = "no rate" if header.rate is None else f"a rate ({header.rate})"
            kind = "with a quality knob" if self.has_knob else "of one rate"
            raise StreamError(f"the stream has {found}, {self.name} is a model {kind}")
        return content

    def _latents(self, content: stream.Content) -> Latents:
        decoder = SymbolDecoder(content.y, content.words)
        y_hat = self.path.dequantise(decoder.decode, content.z, content.header.rate)
        decoder.finish(cut=len(content.words) < stream.STEPS)
        return Latents(content.z, y_hat, content.header.rate)

    def replicas(self) -> list["Codec"]:
        """The codec once for each device of this process; all make the same streams."""
        others = jax.local_devices()[1:]
        return [self, *map(self._on, others)]

    def _on(self, device: jax.Device) -> "Codec":
        networks, path = self.networks.on(device), self.path.on(device)
        found = self.refinement and self.refinement.on(networks, path)
        return replace(self, networks=networks, path=path, refinement=found)


def _whole(what: str, value: int) -> int:
    """The value; OneDCError where it is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise OneDCError(f"{what} must be a whole number, not a {kind}") from None
