"""Codecs that cost nothing, to test what is done with codecs."""

import numpy as np

from onedc_jax.errors import OneDCError


class Green:
    """One byte a pixel: the green channel, in steps of the quality. `coded` counts the images."""

    suffix = ".green"

    def __init__(self, name: str = "green", qualities=(1, 16, 64), version: str = "1"):
        self.name, self.qualities, self.version = name, qualities, version
        self.coded = 0

    def prepare(self, image: np.ndarray) -> None:
        pass

    def encode(self, image: np.ndarray, quality) -> bytes:
        self.coded += 1
        step = quality or 1
        green = (image[..., 1] // step * step).astype(np.uint8)
        # What a coarser step needs less is left out at the end, as padding that is not there.
        return bytes(image.shape[:2]) + green.tobytes() + bytes(200 // step)

    def decode(self, data: bytes) -> np.ndarray:
        count = data[0] * data[1]
        green = np.frombuffer(data[2 : 2 + count], np.uint8).reshape(data[0], data[1], 1)
        return green.repeat(3, axis=2)

    def parts(self, image: np.ndarray, data: bytes) -> dict[str, float]:
        return {}


class Failing(Green):
    """Cannot encode what is wider than 20 pixels."""

    def encode(self, image: np.ndarray, quality) -> bytes:
        if image.shape[1] > 20:
            raise OneDCError("too wide")
        return super().encode(image, quality)


class Shrinking(Green):
    """Returns an image of another size."""

    def decode(self, data: bytes) -> np.ndarray:
        return super().decode(data)[1:]


def distance(a: np.ndarray, b: np.ndarray, names=None) -> dict[str, float | None]:
    """PSNR alone, and a metric that the pictures are too small for."""
    error = np.mean((a / 255 - b / 255) ** 2)
    return {"psnr": float(-10 * np.log10(error)) if error else float("inf"), "ms_ssim": None}


class Distances:
    """`distance` as `evaluation.distances.Distances` is used."""

    names = ("psnr", "ms_ssim")
    missing = ["without LPIPS: a test"]

    def __call__(self, a: np.ndarray, b: np.ndarray, names=None) -> dict[str, float | None]:
        return distance(a, b)
