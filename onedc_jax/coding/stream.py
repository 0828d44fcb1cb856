"""The container: header, z, y and a checksum. docs/format.md describes every byte.

It knows nothing of tables, coders or networks, so that `inspect` is fast: y is opaque bytes here.
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from onedc_jax.errors import ImageError, StreamError

VERSION = 1
MAX_SIDE = 65535
"""The largest width or height, in pixels."""
MAX_PIXELS = 2**27
"""The largest width times height: what a header declares bounds what a decoder allocates."""

_MAGIC = 0xC1  # starts no UTF-8 text and no common image, archive or document
_TOKEN_BITS = 14
_TOKEN_PIXELS = 64
_CHECKSUM_BYTES = 4


class Arithmetic(IntEnum):
    """How the network computed the means and scale indices that y was coded with."""

    FLOAT32_CPU = 0  # 1 is reserved for exact integers


@dataclass(frozen=True)
class Header:
    """What a decoder must know before it reads z.

    Attributes:
      width, height: of the image in pixels, 1 to 65535.
      fingerprint: 16 bits of a digest of the weights that y's probabilities depend on.
      arithmetic: how those probabilities were computed.
      version: of the format.
    """

    width: int
    height: int
    fingerprint: int
    arithmetic: Arithmetic = Arithmetic.FLOAT32_CPU
    version: int = VERSION

    @property
    def z_shape(self) -> tuple[int, int]:
        """Rows and columns of z: one token for each 64x64 block, counting partial ones."""
        return -(-self.height // _TOKEN_PIXELS), -(-self.width // _TOKEN_PIXELS)


@dataclass(frozen=True)
class Info:
    """Where the bytes of a stream go; the four parts add up to `file_bytes`."""

    header: Header
    file_bytes: int
    header_bytes: int
    z_bytes: int
    y_bytes: int
    checksum_bytes: int

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file."""
        return 8 * self.file_bytes / (self.header.width * self.header.height)


def pack(header: Header, z: np.ndarray, y: bytes) -> bytes:
    """Puts a stream together.

    Args:
      header: its version must be this module's.
      z: integers in [0, 16384), [ceil(height / 64), ceil(width / 64)].
      y: the entropy-coded y.

    Returns:
      The stream. `unpack` gives back all three.

    Raises:
      ImageError: a side of 0 or of more than 65535 pixels.
      ValueError: z of another shape or out of range, or a field too large for the header.
    """
    check_size(header.width, header.height)
    if header.version != VERSION or not 0 <= header.fingerprint < 2**16:
        raise ValueError(f"not a header of version {VERSION}: {header}")
    z = np.asarray(z)
    if z.shape != header.z_shape or z.min() < 0 or z.max() >= 2**_TOKEN_BITS:
        raise ValueError(f"z must be {list(header.z_shape)} in [0, {2**_TOKEN_BITS})")
    shifts = np.arange(_TOKEN_BITS - 1, -1, -1, dtype=np.uint16)
    bits = (z.astype(np.uint16).reshape(-1, 1) >> shifts) & np.uint16(1)  # [h*w, 14]
    body = b"".join(
        (
            bytes([_MAGIC, header.version << 4 | Arithmetic(header.arithmetic) << 2]),
            header.fingerprint.to_bytes(2, "big"),
            _varint(header.width),
            _varint(header.height),
            np.packbits(bits.astype(np.uint8)).tobytes(),
            y,
        )
    )
    return body + _checksum(body)


def check_size(width: int, height: int) -> None:
    """Raises ImageError for an image that no stream can hold: no pixels, or too many."""
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE) or width * height > MAX_PIXELS:
        raise ImageError(
            f"the image is {width}x{height}; a side must have 1 to {MAX_SIDE} pixels, and all of "
            f"it at most {MAX_PIXELS}"
        )


def unpack(data: bytes) -> tuple[Header, np.ndarray, bytes]:
    """Takes a stream apart, after checking all of it.

    Memory is bounded by a small multiple of `len(data)`, whatever size the header declares.

    Returns:
      The header; z, int32 [ceil(height / 64), ceil(width / 64)] in [0, 16384); y.

    Raises:
      StreamError: a damaged, truncated, foreign or unsupported stream.
    """
    header, start, stop = _verify(data)
    packed = np.frombuffer(data, np.uint8, stop - start, start)
    rows, columns = header.z_shape
    bits = np.unpackbits(packed)
    used = rows * columns * _TOKEN_BITS
    if bits[used:].any():
        raise StreamError("the stream is damaged: the padding of z is not zero")
    weights = 1 << np.arange(_TOKEN_BITS - 1, -1, -1, dtype=np.int32)
    z = bits[:used].reshape(rows, columns, _TOKEN_BITS) @ weights
    return header, z, data[stop:-_CHECKSUM_BYTES]


def inspect(data: bytes) -> Info:
    """Says what a stream holds, without decoding it; no model is needed.

    Raises:
      StreamError: as `unpack`.
    """
    header, start, stop = _verify(data)
    return Info(
        header=header,
        file_bytes=len(data),
        header_bytes=start,
        z_bytes=stop - start,
        y_bytes=len(data) - stop - _CHECKSUM_BYTES,
        checksum_bytes=_CHECKSUM_BYTES,
    )


def read_header(data: bytes) -> Header:
    """Reads the header alone. It suffices to have the first 10 bytes; nothing else is checked.

    Raises:
      StreamError: not a stream of this version, or one cut within the header.
    """
    return _parse_header(data)[0]


def _verify(data: bytes) -> tuple[Header, int, int]:
    """Returns the header, and where z starts and stops, of a stream with a right checksum."""
    header, start = _parse_header(data)
    rows, columns = header.z_shape
    stop = start + -(-rows * columns * _TOKEN_BITS // 8)
    if len(data) < stop + _CHECKSUM_BYTES:
        raise StreamError(
            f"the stream is cut short or damaged: {header.width}x{header.height} pixels need at "
            f"least {stop + _CHECKSUM_BYTES} bytes, it has {len(data)}"
        )
    view = memoryview(data)
    if _checksum(view[:-_CHECKSUM_BYTES]) != view[-_CHECKSUM_BYTES:]:
        raise StreamError("the stream is damaged or cut short: its checksum does not match")
    return header, start, stop


def _parse_header(data: bytes) -> tuple[Header, int]:
    if not data:
        raise StreamError("the stream is empty: 0 bytes")
    if data[0] != _MAGIC:
        raise StreamError(
            f"this is not a onedc stream: it begins with byte 0x{data[0]:02x}, not 0x{_MAGIC:02x}"
        )
    if len(data) < 4:
        raise StreamError(f"the stream is cut short: {len(data)} bytes")
    version, arithmetic, flags = data[1] >> 4, data[1] >> 2 & 3, data[1] & 3
    if version != VERSION:
        raise StreamError(
            f"the stream has format version {version}, this program reads version {VERSION}"
        )
    if arithmetic not in tuple(Arithmetic):
        raise StreamError(f"the stream uses arithmetic {arithmetic}, unknown to this program")
    if flags:
        raise StreamError(f"the stream uses features unknown to this program (flags {flags})")
    width, at = _read_varint(data, 4)
    height, at = _read_varint(data, at)
    if width * height > MAX_PIXELS:
        raise StreamError(f"the stream declares {width}x{height} pixels, above {MAX_PIXELS}")
    fingerprint = int.from_bytes(data[2:4], "big")
    return Header(width, height, fingerprint, Arithmetic(arithmetic), version), at


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
        if len(data) < at + 3:
            raise StreamError(f"the stream is cut short: {len(data)} bytes")
    raise StreamError(
        f"the stream is damaged: a side of the image is not written as 1 to {MAX_SIDE}"
    )


def _checksum(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")
