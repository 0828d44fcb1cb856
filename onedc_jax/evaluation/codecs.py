"""What is compared: a codec makes a file of an image, and an image of that file."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

import onedc_jax
from onedc_jax import checkpoint
from onedc_jax.coding.loading import load
from onedc_jax.errors import OneDCError

Quality = float | str | None

QUALITIES = (0, 20, 40, 60, 80, 100)
"""What is asked of a model with a knob."""


class Codec(Protocol):
    """An image codec with one or more operating points.

    `version` tells apart what has the same name but may give other files: weights, libraries,
    commands. `suffix` is that of its files. `qualities` are the operating points, in the order that
    they are coded in; a codec with a single one and no name for it has (None,).
    """

    name: str
    version: str
    suffix: str
    qualities: tuple[Quality, ...]

    def prepare(self, image: np.ndarray) -> None:
        """Does what is done once for an image's size, so that it is in no one's seconds."""

    def encode(self, image: np.ndarray, quality: Quality) -> bytes:
        """uint8 [H, W, 3] -> a whole file. Raises OneDCError or OSError where it cannot."""

    def decode(self, data: bytes) -> np.ndarray:
        """The file -> uint8 [H, W, 3]. Raises OneDCError or OSError where it cannot."""

    def parts(self, image: np.ndarray, data: bytes) -> dict[str, float]:
        """Seconds of parts of the work, by name, for codecs that can tell."""


@dataclass(frozen=True)
class Plain:
    """What codecs have in common that need no preparation and cannot tell parts of their work."""

    name: str
    version: str
    suffix: str
    qualities: tuple[Quality, ...]

    def prepare(self, image: np.ndarray) -> None:
        pass

    def parts(self, image: np.ndarray, data: bytes) -> dict[str, float]:
        return {}


class Model:
    """A OneDC model, compiled at the first image of each padded size."""

    suffix = ".onedc"

    def __init__(self, name_or_path: str | Path, effort: int = 0):
        """A preset or a folder, as `onedc_jax.load` takes it. Raises ModelError as it does.

        `effort` is that of `coding.Codec.with_effort`.
        """
        self._codec = load(name_or_path).with_effort(effort)
        # A folder's name need not be UTF-8, but what is written of it must.
        name = str(name_or_path).encode(errors="backslashreplace").decode()
        self.name = f"{name}+{effort}" if effort else name
        # The fingerprint in a file leaves out the decoder; here any other weight matters as well,
        # and what the weights do may differ from one release of this package to the next.
        config = checkpoint.read_config(checkpoint.resolve(name_or_path))
        of_path = self._codec.path.arithmetic.name, self._codec.path.fingerprint
        known = json.dumps([onedc_jax.__version__, config, *of_path], sort_keys=True)
        digest = hashlib.sha256(known.encode())
        for leaf in jax.tree.leaves(self._codec.params):
            digest.update(np.asarray(leaf).tobytes())
        self.version = digest.hexdigest()[:16] + (f"+{effort}" if effort else "")
        self.qualities: tuple[Quality, ...] = QUALITIES if self._codec.has_knob else (None,)
        self._compiled: set[tuple[int, ...]] = set()

    def prepare(self, image: np.ndarray) -> None:
        if image.shape not in self._compiled:
            self.parts(image, self._codec.encode(image))
            self._compiled.add(image.shape)

    def encode(self, image: np.ndarray, quality: Quality = None) -> bytes:
        return self._codec.encode(image, quality=quality)

    def decode(self, data: bytes) -> np.ndarray:
        return self._codec.decode(data)

    def parts(self, image: np.ndarray, data: bytes) -> dict[str, float]:
        """Seconds of the networks on either side, without the prior and the entropy coder."""
        start = time.perf_counter()
        self._codec.analyse(image)
        analysed = time.perf_counter()
        self._codec.decode_latents(data)
        latents = time.perf_counter()
        self._codec.decode(data)
        end = time.perf_counter()
        return {
            "encode_network_s": analysed - start,
            "decode_network_s": max(0.0, (end - latents) - (latents - analysed)),
        }


def check_decoded(codec: Codec, image: np.ndarray, decoded: np.ndarray) -> None:
    """Raises OneDCError unless a codec returned an image of the size that it was given."""
    if decoded.shape != image.shape or decoded.dtype != np.uint8:
        given, got = (f"{x.dtype} {list(x.shape)}" for x in (image, decoded))
        raise OneDCError(f"{codec.name}: returned {got} for an image {given}")
