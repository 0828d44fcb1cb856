"""Images that Pillow reads, filling in what their files lack."""

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import photo
from PIL import Image

from onedc_jax import images
from onedc_jax.errors import ImageError

PHOTO = Image.fromarray(photo(200, 301))
PLAIN = [Image.new("RGB", (45, 37), colour) for colour in ("grey", "white", "black")]


def stored(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(data: bytes) -> np.ndarray:
    return images.decode(data, "photo")[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_data_end_early_is_refused(progressive, restarts, mode):
    options = dict(progressive=progressive, restart_marker_blocks=restarts, quality=90)
    data = stored(PHOTO.convert(mode), "JPEG", **options)
    begin, end = data.index(b"\xff\xda") + 20, b"\xff\xd9"
    for share in (0.1, 0.5, 0.95):
        with pytest.raises(ImageError, match=r"photo: damaged .*(end before its pixels|truncated)"):
            read(data[: begin + int(share * (len(data) - begin))] + end)
    assert read(data + b"more" + end).shape == (200, 301, 3)


def test_a_long_run_of_fill_bytes_is_passed_in_no_time():
    data = stored(PHOTO, "JPEG", progressive=True)
    assert read(data[:-2] + b"\xff" * 300_000 + b"\0" + data[-2:]).shape == (200, 301, 3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize("plain", PLAIN)
def test_a_jpeg_of_one_colour_is_whole(plain, restarts, progressive):
    options = dict(progressive=progressive, restart_marker_blocks=restarts)
    np.testing.assert_allclose(read(stored(plain, "JPEG", **options)), np.asarray(plain), atol=2)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "1", "I;16"])
def test_a_png_without_all_its_rows_is_refused(mode):
    image = PHOTO.convert("L").convert("I") if mode == "I;16" else PHOTO
    data = stored(image.convert(mode), "PNG")
    assert read(data).shape == (200, 301, 3)
    head, packed = data[: data.index(b"IDAT") - 4], zlib.decompress(compressed(data))
    with pytest.raises(ImageError, match=r"photo: .*rows are missing"):
        read(head + chunk(b"IDAT", zlib.compress(packed[: len(packed) // 2])) + chunk(b"IEND"))


def test_an_interlaced_png_has_the_rows_of_all_passes():
    """Black, so that its rows are counted: 3 pixels a side have five of the seven passes."""
    head = struct.pack(">IIBBBBB", 3, 3, 8, 2, 0, 0, 1)
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1)]  # columns and rows; two have none
    packed = b"".join((b"\0" + bytes(3 * columns)) * rows for columns, rows in passes)
    png = lambda rows: (
        b"\x89PNG\r\n\x1a\n"
        + b"".join([chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND")])
    )
    assert not read(png(packed)).any()
    with pytest.raises(ImageError, match="rows are missing"):
        read(png(packed[:-10]))


def test_a_png_whose_checksum_is_wrong_is_refused():
    data = bytearray(stored(PHOTO, "PNG"))
    data[data.index(b"IDAT") + 4 + len(compressed(data))] ^= 1
    with pytest.raises(ImageError, match="a checksum of its data is wrong"):
        read(bytes(data))


def compressed(data: bytes) -> bytes:
    """What the only IDAT of a PNG holds."""
    start = data.index(b"IDAT") + 4
    return bytes(data[start : start + int.from_bytes(data[start - 8 : start - 4])])


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_pipe_that_never_ends_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(images, "_MOST_BYTES", 10)
    monkeypatch.setattr(images, "open", lambda *_: Endless(), raising=False)
    with pytest.raises(ImageError, match="endless: more than 10 bytes"):
        images.read("endless")


class Endless(io.RawIOBase):
    def read(self, size=-1):
        assert 0 < size <= 1 << 20
        return bytes(size)
