"""One image file to one compressed file, and back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onedc_jax import images
from onedc_jax.coding import stream
from onedc_jax.errors import ImageError, OneDCError, StreamError

STREAM_SUFFIX = ".onedc"

# No stream comes near this; a file that is larger was named by mistake and is not read.
_MAX_STREAM_BYTES = 1 << 30


@dataclass(frozen=True)
class Done:
    """One file encoded or decoded: the image's size, the compressed file's bytes."""

    width: int
    height: int
    size: int
    seconds: float
    notes: tuple[str, ...] = ()
    quality: float | None = None  # 0 to 100, of models with a knob
    alone: bool = False  # whether there is no y

    @property
    def bpp(self) -> float:
        """Bits of the whole compressed file a pixel."""
        return 8 * self.size / (self.width * self.height)

    def __str__(self) -> str:
        size = f"{self.width}x{self.height}  {self.size:,} bytes"
        quality = "" if self.quality is None else f"  quality {self.quality:.0f}"
        quality = "  tokens alone" if self.alone else quality
        return f"{size}  {self.bpp:.3f} bpp{quality}  {self.seconds:.2f} s"


@dataclass(frozen=True)
class Direction:
    """What tells encoding from decoding: the names of files, and the work."""

    verb: str
    suffixes: tuple[str, ...]
    target_suffix: str
    work: Callable[..., Done]  # (load, file, target, overwrite), as encode and decode below


def _encoded(codec, image) -> bytes:
    return codec.encode(image)


def encode(
    load: Callable, file: Path, target: Path, overwrite: bool, coded: Callable = _encoded
) -> Done:
    """Image file -> compressed file. `load()` gives the codec, asked for once all else is well.

    `coded(codec, image)` makes the stream, of whatever quality and size it should be.

    Raises ImageError, ModelError, StreamError or OSError, and then leaves no file.
    """
    check_stream_name(target)
    images.check_free(target, overwrite)
    image, notes = images.read(file)
    codec = load()
    start = time.perf_counter()
    try:
        data = coded(codec, image)
    except ImageError as error:  # of a size that it cannot have
        raise ImageError(f"{file}: {error}") from error
    seconds = time.perf_counter() - start
    images.atomic_write(target, data, overwrite)
    return _done(image, stream.inspect(data), seconds, tuple(notes))


def decode(
    load: Callable, file: Path, target: Path, overwrite: bool, allow_truncated: bool = False
) -> Done:
    """Compressed file -> image file, in the format of its extension; otherwise as `encode`.

    With `allow_truncated` a file whose end is missing is decoded as far as it goes, and a note says
    what was lost.
    """
    images.check_writable(target)
    images.check_free(target, overwrite)
    data, info = read_stream(file)
    try:
        if not allow_truncated:
            stream.check_whole(info)
        codec = load()
        start = time.perf_counter()
        image = codec.decode(data, allow_truncated)
    except StreamError as error:
        raise StreamError(f"{file}: {error}") from error
    seconds = time.perf_counter() - start
    images.write(target, image, overwrite)
    notes = (f"cut short, {_loss(info)}",) if info.cut else ()
    return _done(image, info, seconds, notes)


def _done(image, info: stream.Info, seconds: float, notes: tuple[str, ...]) -> Done:
    height, width, _ = image.shape
    size, quality = info.file_bytes, info.header.quality
    return Done(width, height, size, seconds, notes, quality, alone=not info.y_bytes)


def _loss(info: stream.Info) -> str:
    """What a cut file lacks, in words."""
    lost = stream.STEPS - info.steps
    parts = [f"{lost} of the {stream.STEPS} steps of y"] if lost else []
    return (
        f"{info.file_bytes:,} of {info.whole_bytes:,} bytes are there; "
        f"lost: {' and '.join([*parts, 'the checksum'])}"
    )


def read_stream(file: Path) -> tuple[bytes, stream.Info]:
    """A compressed file's bytes and contents, checked as far as can be without a model.

    A file that is cut behind its tokens passes: see `Info.cut`.
    """
    data = None
    if file.stat().st_size <= _MAX_STREAM_BYTES:
        with file.open("rb") as opened:  # a device or a pipe does not tell its size
            data = images.read_at_most(opened, _MAX_STREAM_BYTES)
    if data is None:
        raise StreamError(f"{file}: too large to be a compressed image")
    try:
        return data, stream.inspect(data)
    except StreamError as error:
        raise StreamError(f"{file}: {error}") from error


def check_stream_name(target: Path) -> None:
    """Raises OneDCError for an image's name: `onedc encode a.jpg b.jpg` is a slip."""
    if target.suffix.lower() in images.READ_SUFFIXES:
        raise OneDCError(f"{target}: the output is no image; name it {target.stem}{STREAM_SUFFIX}")


ENCODE = Direction("encoded", images.READ_SUFFIXES, STREAM_SUFFIX, encode)
DECODE = Direction("decoded", (STREAM_SUFFIX,), ".png", decode)
