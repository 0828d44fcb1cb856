"""The container gives back what went in, is as small as promised, and refuses everything else."""

import dataclasses
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from onedc_jax.coding import stream
from onedc_jax.coding.stream import Header
from onedc_jax.errors import ImageError, StreamError

PHOTO = Header(width=768, height=512, fingerprint=0xBEEF)


def tokens(header, seed=0):
    return np.random.default_rng(seed).integers(0, 2**14, header.z_shape).astype(np.int32)


def words(y: bytes) -> tuple[int, ...]:
    """Any lengths of four steps that add up to y's."""
    count = -(-len(y) // 4)
    return count - count // 2 - count // 8, count // 2, 0, count // 8


def packed(header, y: bytes) -> bytes:
    return stream.pack(header, tokens(header), y, words(y))


def sealed(body: bytes) -> bytes:
    """A stream of any content with a right checksum."""
    return body + zlib.crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize("width", [1, 64, 65, 127, 128, 500, 16384, 65535])
@pytest.mark.parametrize("height", [1, 63, 333])
@pytest.mark.parametrize("y", [b"", b"\1", b"anything", bytes(range(1, 201))])
def test_round_trip(width, height, y):
    header = Header(width, height, fingerprint=width)
    content = stream.unpack(packed(header, y))
    assert content.header == header
    assert content.z.dtype == np.int32
    np.testing.assert_array_equal(content.z, tokens(header))
    assert (content.y, content.words) == (y, words(y))


@pytest.mark.parametrize("rate", [None, 0, 255])
@pytest.mark.parametrize("arithmetic", stream.Arithmetic)
def test_the_header_s_choices_come_back(rate, arithmetic):
    header = dataclasses.replace(PHOTO, rate=rate, arithmetic=arithmetic)
    data = packed(header, b"anything")
    assert stream.unpack(data).header == header == stream.inspect(data).header
    assert stream.inspect(data).header_bytes == 8 + 2 + (rate is not None)


def test_the_bytes_are_those_of_the_format():
    """The example of docs/format.md."""
    header = Header(width=100, height=300, fingerprint=0x1234)
    z = np.array([[0, 1], [2, 3], [16383, 0], [0, 0], [0, 1]])
    data = stream.pack(header, z, b"\xab\xcd", (1, 0, 0, 0))
    assert data.hex(" ") == (
        "c1 11 3e f3 64 ac 02 04 40 00 00 00 10 00 80 03 ff fc "
        "00 00 00 00 00 00 00 00 10 ab cd 64 31 8c 57"
    )


@pytest.mark.parametrize("steps", [(4,) * 4, (3900, 1076, 692, 464), (16380, 2044, 2044, 2044)])
def test_all_that_is_not_z_or_y_takes_at_most_18_bytes(steps):
    """12, and 6 for the lengths of y's steps, at the size and the rates of a photo."""
    count = sum(steps)
    lengths = [step // 4 for step in steps]
    info = stream.inspect(stream.pack(PHOTO, tokens(PHOTO), bytes(count), lengths))
    assert info.header_bytes + info.checksum_bytes <= 18
    assert info.z_bytes == 96 * 14 / 8
    assert info.step_bytes == steps and info.y_bytes == count
    assert info.file_bytes == info.whole_bytes == info.header_bytes + 4 + 168 + count
    assert info.bpp == pytest.approx(8 * info.file_bytes / (768 * 512))
    assert info.header == PHOTO


def test_without_y_there_are_no_lengths():
    info = stream.inspect(stream.pack(PHOTO, tokens(PHOTO)))
    assert info.file_bytes == 12 + 168 and info.step_bytes == (0, 0, 0, 0)


def test_inspecting_needs_neither_jax_nor_constriction():
    code = (
        "import sys; from onedc_jax.coding import stream; "
        "assert not {'jax', 'constriction'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_images_are_refused(kind):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    with pytest.raises(StreamError, match="not a onedc stream"):
        stream.unpack(file.getvalue())


@pytest.mark.parametrize("text", ["onedc", "\n", "Ärger", "\ufeffa", "日本語"])
def test_texts_are_refused(text):
    with pytest.raises(StreamError, match="not a onedc stream"):
        stream.unpack(text.encode())


def test_an_empty_file_is_refused():
    with pytest.raises(StreamError, match="empty"):
        stream.unpack(b"")


@pytest.mark.parametrize(
    ("byte", "message"),
    [
        (0x00, "version 0"),
        (0x20, "version 2"),
        (0xF0, "version 15"),
        (0x18, "arithmetic 2"),
        (0x1C, "arithmetic 3"),
    ],
)
def test_what_later_versions_may_write_is_refused(byte, message):
    data = bytearray(packed(PHOTO, b""))
    data[1] = byte
    with pytest.raises(StreamError, match=message):
        stream.unpack(sealed(bytes(data[:-4])))


def test_every_truncation_is_refused():
    data = packed(PHOTO, bytes(range(1, 100)))
    for length in range(1, len(data)):
        with pytest.raises(StreamError, match="short"):
            stream.unpack(data[:length])


def test_a_truncation_that_is_allowed_gives_the_whole_steps():
    y = bytes(range(1, 100))  # 99 bytes, 25 words: steps of 39, 48, 0 and 12 bytes
    data = packed(PHOTO, y)
    info = stream.inspect(data)
    start = info.header_bytes + info.z_bytes
    assert info.step_bytes == (39, 48, 0, 12)
    for length in range(start):
        with pytest.raises(StreamError):
            stream.unpack(data[:length], allow_truncated=True)
    for length in range(start, len(data)):
        steps = sum(end <= length - start for end in (39, 87, 87, 99))
        content = stream.unpack(data[:length], allow_truncated=True)
        assert content.header == PHOTO
        assert content.words == words(y)[:steps]
        assert content.y == y[: (0, 39, 87, 87, 99)[steps]]
        assert stream.inspect(data[:length]) == dataclasses.replace(info, file_bytes=length)
    whole = stream.unpack(data, allow_truncated=True)
    assert (whole.y, whole.words) == (y, words(y))


def test_the_message_of_a_cut_says_what_is_left():
    data = packed(PHOTO, bytes(range(1, 100)))
    words = (
        r"180 of 283 bytes; --allow-truncated \(.*allow_truncated=True\).*z and 0 of the 4 steps"
    )
    with pytest.raises(StreamError, match=words):
        stream.unpack(data[:180])
    with pytest.raises(StreamError, match="nothing of it can be decoded"):
        stream.unpack(data[:170], allow_truncated=True)


def test_bytes_behind_the_end_are_refused():
    data = packed(PHOTO, b"anything")
    for more in (b"\0", data):
        with pytest.raises(StreamError, match=f"{len(data + more)} bytes and declares {len(data)}"):
            stream.unpack(data + more, allow_truncated=True)


def test_every_flipped_bit_is_refused():
    data = packed(PHOTO, bytes(range(1, 100)))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            stream.unpack(bytes(damaged))


def test_every_flipped_bit_before_y_of_a_cut_stream_changes_the_fingerprint():
    """What the checksum no longer proves of header, lengths and z."""
    data = packed(PHOTO, bytes(range(1, 100)))
    start = len(data) - 99 - 4
    for bit in range(8 * start):
        damaged = bytearray(data[:-6])
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            content = stream.unpack(bytes(damaged), allow_truncated=True)
        except StreamError:
            continue
        assert content.header.fingerprint != PHOTO.fingerprint


@pytest.mark.parametrize(
    "lengths",
    [
        "00 00",  # the first step has no word
        "08 20",  # a width of 1, though 0 is enough
        "00 41",  # the last bits are not 0
    ],
)
def test_lengths_that_no_encoder_writes_are_refused(lengths):
    body = bytes.fromhex("c1 11 00 00 01 01") + bytes.fromhex(lengths) + bytes(20)
    with pytest.raises(StreamError, match="lengths"):
        stream.unpack(sealed(body))


@pytest.mark.parametrize(
    "sides",
    [
        "00 01",
        "01 00",
        "80 00 01",
        "81 00 01",
        "81 80 00 01",
        "80 80 04 01",
        "ff ff 7f 01",
        "80 80 80 80 80 01 01",
        "01 80 80 04",
    ],
)
def test_a_side_that_no_encoder_writes_is_refused(sides):
    """Zero, beyond 65535, or longer than it need be."""
    body = bytes.fromhex("c1 10 00 00") + bytes.fromhex(sides) + bytes(2000)
    with pytest.raises(StreamError, match="a side of the image"):
        stream.unpack(sealed(body))


def test_a_huge_size_is_refused_before_anything_is_allocated():
    largest = bytes.fromhex("c1 10 00 00 ff ff 03 ff 0f")
    with pytest.raises(StreamError, match="65535x2047 pixels need at least 57353 bytes"):
        stream.unpack(sealed(largest + bytes(1000)))
    beyond = bytes.fromhex("c1 10 00 00 ff ff 03 ff ff 03")
    with pytest.raises(StreamError, match="declares 65535x65535 pixels"):
        stream.unpack(sealed(beyond + bytes(1000)))


def test_padding_of_z_must_be_zero():
    body = bytes.fromhex("c1 10 00 00 01 01")  # one token of 14 bits: two are left
    assert stream.unpack(sealed(body + b"\xff\xfc")).z.tolist() == [[2**14 - 1]]
    for padding in (1, 2, 3):
        with pytest.raises(StreamError, match="padding"):
            stream.unpack(sealed(body + bytes([0xFF, 0xFC | padding])))


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (65536, 1), (1, -5)])
def test_a_size_out_of_bounds_cannot_be_packed(width, height):
    with pytest.raises(ImageError, match=f"{width}x{height}"):
        stream.pack(Header(width, height, 0), np.zeros((1, 1), np.int32))


def test_wrong_tokens_or_fields_cannot_be_packed():
    header, z = Header(65, 64, 0), np.zeros((1, 2), np.int32)
    for wrong in (z.T, z - 1, z + 2**14, z[0]):
        with pytest.raises(ValueError, match="z must be"):
            stream.pack(header, wrong)
    for field in ({"fingerprint": 2**16}, {"fingerprint": -1}, {"version": 2}, {"rate": 256}):
        with pytest.raises(ValueError):
            stream.pack(dataclasses.replace(header, **field), z)
    for wrong in ((1, 0, 0, 0), (2, 0, 0), (0, 2, 0, 0), (3, 0, 0, 0)):
        with pytest.raises(ValueError, match="words"):
            stream.pack(header, z, b"12345", wrong)
