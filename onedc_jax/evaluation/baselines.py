"""The codecs that everybody has, each from its lowest rate to well above that of a neural one.

With 4:2:0 chroma where that is the default; docs/evaluation.md says with what effort.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version

import numpy as np
from PIL import Image, features

from onedc_jax.errors import ImageError, OneDCError
from onedc_jax.evaluation.codecs import Plain, Quality


@dataclass(frozen=True)
class Baseline(Plain):
    """A codec of `encode_(image, quality)` and `decode_(data)`, which raise what they like."""

    encode_: Callable[[np.ndarray, Quality], bytes]
    decode_: Callable[[bytes], np.ndarray]

    def encode(self, image: np.ndarray, quality: Quality) -> bytes:
        try:
            return self.encode_(image, quality)
        except MemoryError:
            raise
        except Exception as error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise ImageError(f"{self.name}: cannot hold this {size} image ({error})") from error

    def decode(self, data: bytes) -> np.ndarray:
        try:
            return self.decode_(data)
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError(f"{self.name}: cannot read its own file ({error})") from error


def available(names: Iterable[str]) -> tuple[list[Baseline], list[str]]:
    """The baselines of these names, and a line for each that is not installed here.

    Raises OneDCError for a name that is none of BASELINES.
    """
    found, missing = [], []
    for name in names:
        if name not in BASELINES:
            raise OneDCError(f"{name}: no such baseline; there are {', '.join(BASELINES)}")
        try:
            found.append(BASELINES[name]())
        except ImportError:
            missing.append(f"without {name}: pip install {_PACKAGES.get(name, 'pillow')}")
    return found, missing


def _pillow(name: str, suffix: str, kind: str, feature: str, qualities, options) -> Baseline:
    """A format of Pillow; `options(quality)` are those of its `save`."""
    if not features.check(feature):
        raise ImportError(feature)

    def encode(image: np.ndarray, quality: Quality) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options(quality))
        return file.getvalue()

    made_with = f"Pillow {version('pillow')}, {feature} {features.version(feature)}"
    return Baseline(name, made_with, suffix, qualities, encode, _pillow_decoder(kind))


def _pillow_decoder(kind: str) -> Callable[[bytes], np.ndarray]:
    def decode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            return np.array(image.convert("RGB"))

    return decode


def _jpeg() -> Baseline:
    qualities = (1, 5, 8, 12, 20, 35, 55, 75)
    options = lambda quality, scans: dict(quality=quality, optimize=True, progressive=scans)
    one, many = (
        _pillow("jpeg", ".jpg", "JPEG", "jpg", qualities, partial(options, scans=scans))
        for scans in (False, True)
    )

    def encode(image: np.ndarray, quality: Quality) -> bytes:
        """The shorter of two: at low rates several scans cost more than they save."""
        return min((codec.encode_(image, quality) for codec in (one, many)), key=len)

    made_with = f"{one.version}, sequential or progressive"
    return replace(one, version=made_with, encode_=encode)


def _webp() -> Baseline:
    qualities = (0, 2, 5, 10, 20, 40, 60, 75)
    options = lambda quality: dict(quality=quality, method=6)
    return _pillow("webp", ".webp", "WEBP", "webp", qualities, options)


def _avif() -> Baseline:
    qualities = (0, 6, 12, 20, 30, 40, 50, 60)
    return _pillow("avif", ".avif", "AVIF", "avif", qualities, lambda quality: {"quality": quality})


def _jpeg2000() -> Baseline:
    """Its quality is the rate that is asked for, in bits per pixel."""
    qualities = (0.03, 0.06, 0.12, 0.2, 0.35, 0.6, 1.0, 1.5)
    options = lambda bpp: dict(
        quality_mode="rates", quality_layers=[24 / bpp], irreversible=True, no_jp2=True
    )
    return _pillow("jpeg2000", ".j2k", "JPEG2000", "jpg_2000", qualities, options)


def _jpegxl() -> Baseline:
    """Its quality is Butteraugli's distance, 25 the coarsest."""
    imagecodecs = import_module("imagecodecs")
    if not imagecodecs.JPEGXL.available:
        raise ImportError("imagecodecs without JPEG XL")

    def encode(image: np.ndarray, distance: Quality) -> bytes:
        return bytes(imagecodecs.jpegxl_encode(image, distance=distance, usecontainer=False))

    made_with = f"imagecodecs {version('imagecodecs')}, {imagecodecs.jpegxl_version()}"
    distances = (25, 20, 15, 10, 7, 5, 3, 2)
    return Baseline("jpegxl", made_with, ".jxl", distances, encode, imagecodecs.jpegxl_decode)


def _hevc() -> Baseline:
    heif = import_module("pillow_heif")
    x265 = heif.libheif_info()["encoders"].get("x265")
    if not x265:
        raise ImportError("pillow-heif without x265")

    def encode(image: np.ndarray, quality: Quality) -> bytes:
        file = io.BytesIO()
        heif.from_pillow(Image.fromarray(image)).save(file, quality=quality)
        return file.getvalue()

    def decode(data: bytes) -> np.ndarray:
        return np.array(heif.open_heif(io.BytesIO(data)).to_pillow().convert("RGB"))

    made_with = f"pillow-heif {version('pillow-heif')}, {x265}"
    return Baseline("hevc", made_with, ".heic", (0, 5, 10, 15, 20, 27, 35, 42), encode, decode)


# Each raises ImportError where its library is not there.
BASELINES: dict[str, Callable[[], Baseline]] = {
    "jpeg": _jpeg,
    "webp": _webp,
    "avif": _avif,
    "jpeg2000": _jpeg2000,
    "jpegxl": _jpegxl,
    "hevc": _hevc,
}
_PACKAGES = {"jpegxl": "imagecodecs", "hevc": "pillow-heif", "avif": "'pillow>=11.3'"}
