"""The container: header, z, y and a checksum. docs/format.md describes every byte.

It knows nothing of tables, coders or networks, so that `inspect` is fast: y is opaque bytes here,
of which only the lengths of its four steps are known.
"""

import binascii
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from onedc_jax.errors import ImageError, OneDCError, StreamError
from onedc_jax.sizes import MAX_PIXELS, MAX_SIDE

VERSION = 1
STEPS = 4
"""The steps in which y is coded."""
MAX_RATE = 255
"""The highest place of the quality knob."""

_MAGIC = 0xC1  # starts no UTF-8 text and no common image, archive or document
_TOKEN_BITS = 14
TOKEN_PIXELS = 64
"""Pixels along the side of the block that a token stands for."""
_CHECKSUM_BYTES = 4
_HAS_LENGTHS, _HAS_RATE = 1, 2
_FIRST_BITS = 3  # by which the first step's length may be longer: it holds most of y


class Arithmetic(IntEnum):
    """How the network computed the means and scale indices that y was coded with."""

    FLOAT32_CPU = 0
    INTEGER = 1


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it reads z.

    Attributes:
      width, height: of the image in pixels, 1 to 65535.
      fingerprint: 16 bits of a digest of the weights that y's probabilities depend on.
      arithmetic: how those probabilities were computed.
      version: of the format.
      rate: 0 to 255, the place of the model's quality knob; None for a model without one.
    """

    width: int
    height: int
    fingerprint: int
    arithmetic: Arithmetic = Arithmetic.FLOAT32_CPU
    version: int = VERSION
    rate: int | None = None

    @property
    def z_shape(self) -> tuple[int, int]:
        """Rows and columns of z: one token for each 64x64 block, counting partial ones."""
        return -(-self.height // TOKEN_PIXELS), -(-self.width // TOKEN_PIXELS)

    @property
    def quality(self) -> float | None:
        """The rate as people state it, 0 to 100; see `rate_of`."""
        return None if self.rate is None else 100 * self.rate / MAX_RATE


@dataclass(frozen=True)
class Info:
    """Where the bytes of a stream go, as its header declares them.

    Attributes:
      header: what it says.
      file_bytes: what the file has. A cut file has fewer than `whole_bytes`.
      header_bytes, z_bytes, checksum_bytes: of these parts; the header's with the steps' lengths.
      step_bytes: of each of y's steps.
    """

    header: Header
    file_bytes: int
    header_bytes: int
    z_bytes: int
    step_bytes: tuple[int, ...]
    checksum_bytes: int = _CHECKSUM_BYTES

    @property
    def y_bytes(self) -> int:
        """The bytes of y, all steps."""
        return sum(self.step_bytes)

    @property
    def whole_bytes(self) -> int:
        """What the parts add up to: the bytes of the file before it was cut."""
        return self.header_bytes + self.z_bytes + self.y_bytes + self.checksum_bytes

    @property
    def cut(self) -> bool:
        """Whether the end of the file is missing."""
        return self.file_bytes < self.whole_bytes

    @property
    def steps(self) -> int:
        """How many of y's steps the file has in full."""
        left = self.file_bytes - self.header_bytes - self.z_bytes
        return sum(sum(self.step_bytes[: k + 1]) <= left for k in range(STEPS))

    @property
    def bpp(self) -> float:
        """Bits of the file a pixel."""
        return 8 * self.file_bytes / (self.header.width * self.header.height)


@dataclass(frozen=True)
class Content:
    """What a stream holds.

    Attributes:
      header: what it says.
      z: the tokens, int32 [ceil(height / 64), ceil(width / 64)] in [0, 16384).
      y: the entropy-coded steps that are there in full.
      words: the number of 32-bit words of each of these steps. There are four, unless the stream
        was cut.
    """

    header: Header
    z: np.ndarray
    y: bytes
    words: tuple[int, ...]


def pack(
    header: Header, z: np.ndarray, y: bytes = b"", words: Sequence[int] = (0,) * STEPS
) -> bytes:
    """Puts a stream together.

    Args:
      header: its version must be this module's.
      z: integers in [0, 16384), [ceil(height / 64), ceil(width / 64)].
      y: the entropy-coded y; without it the stream holds z alone.
      words: how many words of 32 bits each of y's four steps has (the first word may be partial).

    Returns:
      The stream. `unpack` gives back all of it.

    Raises:
      ImageError: a side of 0 or of more than 65535 pixels.
      ValueError: z of another shape or out of range, words that do not add up to y's, or a field
        too large for the header.
    """
    check_size(header.width, header.height)
    rate = [] if header.rate is None else [header.rate]
    if header.version != VERSION or header.fingerprint not in range(2**16):
        raise ValueError(f"not a header of version {VERSION}: {header}")
    z = np.asarray(z)
    if z.shape != header.z_shape or z.min() < 0 or z.max() >= 2**_TOKEN_BITS:
        raise ValueError(f"z must be {list(header.z_shape)} in [0, {2**_TOKEN_BITS})")
    if len(words) != STEPS or sum(words) != -(-len(y) // 4) or (y and words[0] < 1):
        raise ValueError(f"words must be {STEPS} that add up to those of y, not {words}")
    shifts = np.arange(_TOKEN_BITS - 1, -1, -1, dtype=np.uint16)
    bits = (z.astype(np.uint16).reshape(-1, 1) >> shifts) & np.uint16(1)  # [h*w, 14]
    flags = _HAS_LENGTHS * bool(y) | _HAS_RATE * bool(rate)
    start = bytes([_MAGIC, header.version << 4 | Arithmetic(header.arithmetic) << 2 | flags])
    rest = b"".join(
        (
            _varint(header.width),
            _varint(header.height),
            bytes(rate),
            _lengths(words, -len(y) % 4) if y else b"",
            np.packbits(bits.astype(np.uint8)).tobytes(),
        )
    )
    identity = header.fingerprint ^ _check(start + rest)
    body = start + identity.to_bytes(2, "big") + rest + y
    return body + _checksum(body)


def rate_of(quality: float) -> int:
    """The rate, as a header has it, that is nearest to a quality of 0 to 100. OneDCError beyond."""
    if not 0 <= quality <= 100:
        raise OneDCError(f"quality must be 0 to 100, not {quality}")
    return round(quality / 100 * MAX_RATE)


def check_size(width: int, height: int) -> None:
    """Raises ImageError for an image that no stream can hold: no pixels, or too many."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE) or width * height > MAX_PIXELS:
        raise ImageError(
            f"the image is {width}x{height}; a side must have 1 to {MAX_SIDE} pixels, and all of "
            f"it at most {MAX_PIXELS}"
        )


def check_whole(info: Info) -> None:
    """Raises StreamError for a cut stream."""
    if info.cut:
        raise StreamError(
            f"the stream is cut short or damaged: it has {info.file_bytes} of "
            f"{info.whole_bytes} bytes; --allow-truncated (in Python allow_truncated=True) "
            f"decodes what is there, z and {info.steps} of the {STEPS} steps of y"
        )


def unpack(data: bytes, allow_truncated: bool = False) -> Content:
    """Takes a stream apart, after checking all of it.

    Memory is bounded by a small multiple of `len(data)`, whatever size the header declares.

    Args:
      data: the stream.
      allow_truncated: take what is whole of a stream whose end is missing; all of z must be there.
        The checksum went with the end: what the header and z say is then proven only by the
        fingerprint, which the caller has to compare.

    Raises:
      StreamError: a damaged, truncated, foreign or unsupported stream.
    """
    info = inspect(data)
    if not allow_truncated:
        check_whole(info)
    start, stop = info.header_bytes, info.header_bytes + info.z_bytes
    bits = np.unpackbits(np.frombuffer(data, np.uint8, stop - start, start))
    rows, columns = info.header.z_shape
    used = rows * columns * _TOKEN_BITS
    if bits[used:].any():
        raise StreamError("the stream is damaged: the padding of z is not zero")
    weights = 1 << np.arange(_TOKEN_BITS - 1, -1, -1, dtype=np.int32)
    z = bits[:used].reshape(rows, columns, _TOKEN_BITS) @ weights
    steps = info.step_bytes[: info.steps]
    words = tuple(-(-count // 4) for count in steps)
    return Content(info.header, z, data[stop : stop + sum(steps)], words)


def inspect(data: bytes) -> Info:
    """Says what a stream holds, without decoding it; no model is needed.

    A cut stream is told about too, if it has all of z; only a whole one's checksum is verified.

    Raises:
      StreamError: a damaged, foreign or unsupported stream, or one cut before the end of z.
    """
    info = _parse(data)
    if info.file_bytes > info.whole_bytes:
        raise StreamError(
            f"the stream is damaged: it has {len(data)} bytes and declares {info.whole_bytes}"
        )
    view = memoryview(data)
    if not info.cut and _checksum(view[:-_CHECKSUM_BYTES]) != view[-_CHECKSUM_BYTES:]:
        raise StreamError("the stream is damaged: its checksum does not match")
    check = _check(data[:2] + data[4 : info.header_bytes + info.z_bytes])
    header = replace(info.header, fingerprint=int.from_bytes(data[2:4], "big") ^ check)
    return replace(info, header=header)


def _parse(data: bytes) -> Info:
    """Reads the header, with 0 for the fingerprint; nothing is allocated by what it declares."""
    if not data:
        raise StreamError("the stream is empty: 0 bytes")
    if data[0] != _MAGIC:
        raise StreamError(
            f"this is not a onedc stream: it begins with byte 0x{data[0]:02x}, not 0x{_MAGIC:02x}"
        )
    _need(data, 2)
    version, arithmetic, flags = data[1] >> 4, data[1] >> 2 & 3, data[1] & 3
    if version != VERSION:
        raise StreamError(
            f"the stream has format version {version}, this program reads version {VERSION}"
        )
    if arithmetic not in tuple(Arithmetic):
        raise StreamError(f"the stream uses arithmetic {arithmetic}, unknown to this program")
    width, at = _read_varint(data, 4)
    height, at = _read_varint(data, at)
    if width * height > MAX_PIXELS:
        raise StreamError(f"the stream declares {width}x{height} pixels, above {MAX_PIXELS}")
    rate = None
    if flags & _HAS_RATE:
        _need(data, at + 1)
        rate, at = data[at], at + 1
    steps = (0,) * STEPS
    if flags & _HAS_LENGTHS:
        steps, at = _read_lengths(data, at)
    header = Header(width, height, 0, Arithmetic(arithmetic), version, rate)
    rows, columns = header.z_shape
    info = Info(header, len(data), at, -(-rows * columns * _TOKEN_BITS // 8), steps)
    if len(data) < at + info.z_bytes:
        raise StreamError(
            f"the stream is cut short or damaged: {width}x{height} pixels need at least "
            f"{at + info.z_bytes} bytes, it has {len(data)}; nothing of it can be decoded"
        )
    return info


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Reads a side of the image; returns it and the position after it."""
    value = 0
    for count, byte in enumerate(data[at : at + 3]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            if not byte or value > MAX_SIDE:  # 0 is no side, and a last byte of 0 is superfluous
                break
            return value, at + count + 1
    else:
        _need(data, at + 3)
    raise StreamError(
        f"the stream is damaged: a side of the image is not written as 1 to {MAX_SIDE}"
    )


def _lengths(words: Sequence[int], missing: int) -> bytes:
    """The lengths of y's steps: a width, what the first word lacks, and they in as many bits."""
    width = max(0, words[0].bit_length() - _FIRST_BITS, max(words[1:]).bit_length())
    value = width << 2 | missing
    value = value << width + _FIRST_BITS | words[0]
    for count in words[1:]:
        value = value << width | count
    bits = _lengths_bits(width)
    return (value << -bits % 8).to_bytes(-(-bits // 8), "big")


def _read_lengths(data: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """Reads what `_lengths` wrote; returns the bytes of each step and the position after it."""
    _need(data, at + 1)
    width = data[at] >> 3
    bits = _lengths_bits(width)
    stop = at + -(-bits // 8)
    _need(data, stop)
    value = int.from_bytes(data[at:stop], "big") >> -bits % 8
    words = []
    for size in (width, width, width, width + _FIRST_BITS):  # from the last
        words.insert(0, value & (1 << size) - 1)
        value >>= size
    missing = value & 3
    if not words[0] or _lengths(words, missing) != data[at:stop]:
        raise StreamError("the stream is damaged: no encoder writes such lengths of y's steps")
    return (4 * words[0] - missing, *(4 * count for count in words[1:])), stop


def _lengths_bits(width: int) -> int:
    return 7 + STEPS * width + _FIRST_BITS


def _need(data: bytes, count: int) -> None:
    if len(data) < count:
        raise StreamError(
            f"the stream is cut short: it ends in its header, after {len(data)} bytes"
        )


def _check(data: bytes) -> int:
    """CRC-16 of header and z: the fingerprint is written XOR it, so that it proves them too."""
    return binascii.crc_hqx(data, 0xFFFF)


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")
