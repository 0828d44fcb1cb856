"""The container gives back what went in, is as small as promised, and refuses everything else."""

import dataclasses
import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from onedc_jax.coding import entropy, stream
from onedc_jax.coding.stream import Header
from onedc_jax.errors import ImageError, StreamError

PHOTO = Header(width=768, height=512, fingerprint=0xBEEF)


def tokens(header, seed=0):
    return np.random.default_rng(seed).integers(0, 2**14, header.z_shape).astype(np.int32)


def sealed(body: bytes) -> bytes:
    """A stream of any content with a right checksum."""
    return body + zlib.crc32(body).to_bytes(4, "big")


@pytest.mark.parametrize("width", [1, 64, 65, 127, 128, 500, 16384, 65535])
@pytest.mark.parametrize("height", [1, 63, 333])
@pytest.mark.parametrize("y", [b"", b"\1", b"anything"])
def test_round_trip(width, height, y):
    header = Header(width, height, fingerprint=width)
    z = tokens(header)
    data = stream.pack(header, z, y)
    unpacked, z_again, y_again = stream.unpack(data)
    assert unpacked == header == stream.read_header(data) == stream.read_header(data[:10])
    assert z_again.dtype == np.int32
    np.testing.assert_array_equal(z_again, z)
    assert y_again == y


def test_the_bytes_are_those_of_the_format():
    """The example of docs/format.md."""
    header = Header(width=100, height=300, fingerprint=0x1234)
    z = np.array([[0, 1], [2, 3], [16383, 0], [0, 0], [0, 1]])
    data = stream.pack(header, z, b"\xab\xcd")
    assert data.hex(" ") == (
        "c1 10 12 34 64 ac 02 00 00 00 10 00 80 03 ff fc "
        "00 00 00 00 00 00 00 00 10 ab cd ee 02 3f e4"
    )


def test_header_and_checksum_take_12_bytes():
    info = stream.inspect(stream.pack(PHOTO, tokens(PHOTO), b"12345"))
    assert info.header_bytes + info.checksum_bytes == 12
    assert info.z_bytes == 96 * 14 / 8
    assert info.y_bytes == 5
    assert info.file_bytes == 12 + 168 + 5
    assert info.bpp == pytest.approx(8 * 185 / (768 * 512))
    assert info.header == PHOTO


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
        (0x14, "arithmetic 1"),
        (0x1C, "arithmetic 3"),
        (0x11, "flags 1"),
        (0x12, "flags 2"),
    ],
)
def test_what_later_versions_may_write_is_refused(byte, message):
    data = bytearray(stream.pack(PHOTO, tokens(PHOTO), b""))
    data[1] = byte
    with pytest.raises(StreamError, match=message):
        stream.unpack(sealed(bytes(data[:-4])))


def test_every_truncation_is_refused():
    data = stream.pack(PHOTO, tokens(PHOTO), bytes(range(1, 100)))
    for length in range(1, len(data)):
        with pytest.raises(StreamError, match="short"):
            stream.unpack(data[:length])


def test_every_flipped_bit_is_refused():
    data = stream.pack(PHOTO, tokens(PHOTO), bytes(range(1, 100)))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            stream.unpack(bytes(damaged))


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
    with pytest.raises(StreamError, match="65535x2047 pixels need at least 57357 bytes"):
        stream.unpack(sealed(largest + bytes(1000)))
    beyond = bytes.fromhex("c1 10 00 00 ff ff 03 ff ff 03")
    with pytest.raises(StreamError, match="declares 65535x65535 pixels"):
        stream.unpack(sealed(beyond + bytes(1000)))


def test_padding_of_z_must_be_zero():
    body = bytes.fromhex("c1 10 00 00 01 01")  # one token of 14 bits: two are left
    assert stream.unpack(sealed(body + b"\xff\xfc"))[1].tolist() == [[2**14 - 1]]
    for padding in (1, 2, 3):
        with pytest.raises(StreamError, match="padding"):
            stream.unpack(sealed(body + bytes([0xFF, 0xFC | padding])))


@pytest.mark.parametrize(("width", "height"), [(0, 1), (1, 0), (65536, 1), (1, -5)])
def test_a_size_out_of_bounds_cannot_be_packed(width, height):
    with pytest.raises(ImageError, match=f"{width}x{height}"):
        stream.pack(Header(width, height, 0), np.zeros((1, 1), np.int32), b"")


def test_wrong_tokens_or_fields_cannot_be_packed():
    header, z = Header(65, 64, 0), np.zeros((1, 2), np.int32)
    for wrong in (z.T, z - 1, z + 2**14, z[0]):
        with pytest.raises(ValueError, match="z must be"):
            stream.pack(header, wrong, b"")
    for field in ({"fingerprint": 2**16}, {"fingerprint": -1}, {"version": 2}):
        with pytest.raises(ValueError, match="header"):
            stream.pack(dataclasses.replace(header, **field), z, b"")


def decode_all(data, indices):
    header, z, y = stream.unpack(data)
    decoder = entropy.SymbolDecoder(y)
    symbols = [decoder.decode(step) for step in indices]
    decoder.finish()
    return header, z.tolist(), [step.tolist() for step in symbols]


def mutate(data, rng):
    damaged, kind = bytearray(data), rng.integers(5)
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
    if kind == 0:
        damaged[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        damaged[at : at + length] = rng.bytes(length)
    elif kind == 2:
        del damaged[at : at + length]
    elif kind == 3:
        damaged[at:at] = damaged[at // 2 : at // 2 + length]
    else:
        damaged[: at % 12] = rng.bytes(at % 12)
    return bytes(damaged)


@pytest.mark.parametrize("checksum", ["as it is", "repaired"])
def test_damage_is_refused_or_harmless(checksum):
    """With the checksum repaired a mutation may be a stream; it then holds bounded content."""
    rng = np.random.default_rng(7)
    header = Header(width=200, height=130, fingerprint=7)
    indices = [rng.integers(0, 120, 300).astype(np.uint8) for _ in range(4)]
    steps = [(rng.integers(-9, 10, 300).astype(np.int32), step) for step in indices]
    data = stream.pack(header, tokens(header), entropy.encode_steps(steps))
    content = decode_all(data, indices)
    for _ in range(500):
        damaged = mutate(data, rng)
        if checksum == "repaired":
            damaged = sealed(damaged[:-4])
        try:
            decoded = decode_all(damaged, indices)
        except StreamError as error:
            assert "\n" not in str(error)
        else:
            assert checksum == "repaired" or decoded == content
