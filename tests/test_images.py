import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from onedc_jax import images
from onedc_jax.errors import ImageError

COLOUR = (200, 100, 50)


@pytest.fixture
def photo():
    """A smooth uint8 [12, 20, 3] that no two orientations of agree on."""
    y, x = np.mgrid[:12, :20]
    return np.stack([10 * x, 20 * y, 5 * (x + y)], axis=-1).astype(np.uint8)


def png(samples: np.ndarray, kind: int, *transparent: int, bits: int = 16) -> bytes:
    """A PNG of so many bits, perhaps with a transparent colour; Pillow writes only some kinds."""
    height, width = samples.shape[:2]
    spread = np.unpackbits(samples.astype(">u2")[..., None].view(np.uint8), axis=-1)
    rows = b"".join(b"\0" + np.packbits(row[..., -bits:]).tobytes() for row in spread)

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def grey_tiff(row: bytes, width: int, bits: int, photometric: int) -> bytes:
    """A TIFF of one row of grey samples as they are stored; Pillow writes neither kind below."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 278: 1, 279: len(row)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + directory


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG", ""])
def test_a_lossless_format_gives_back_what_was_written(tmp_path, photo, suffix):
    images.write(tmp_path / f"a{suffix}", photo)
    pixels, notes = images.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels, photo)
    assert notes == []


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_a_jpeg_gives_back_nearly_what_was_written(tmp_path, photo, suffix):
    images.write(tmp_path / f"a{suffix}", photo)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == "JPEG"
    pixels, _ = images.read(tmp_path / f"a{suffix}")
    assert np.abs(pixels.astype(int) - photo).max() < 16


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation_is_applied(tmp_path, photo, orientation, suffix):
    # How EXIF defines it: which side of the scene the first row and the first column show.
    as_stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: photo.transpose(1, 0, 2)[::-1],
        7: photo[::-1, ::-1].transpose(1, 0, 2),
        8: photo.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}
    path = tmp_path / f"a{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(as_stored))
    stored.save(path, exif=exif, **options.get(suffix, {}))
    pixels, _ = images.read(path)
    assert pixels.shape == photo.shape
    assert np.abs(pixels.astype(int) - photo).max() < 16


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I", 0xFFFF, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("RGB", COLOUR, COLOUR),
        ("RGBA", (*COLOUR, 255), COLOUR),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (3, 2), value).save(tmp_path / "a.tif")
    pixels, _ = images.read(tmp_path / "a.tif")
    assert pixels.dtype == np.uint8 and pixels.shape == (2, 3, 3)
    np.testing.assert_array_equal(pixels, np.broadcast_to(expected, (2, 3, 3)))


def test_a_palette_is_looked_up_and_its_transparent_entry_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*COLOUR, 1, 2, 3])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    pixels, notes = images.read(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, [[COLOUR, (255, 255, 255)]])
    assert notes == ["transparency composited on white"]


def test_transparency_is_not_mentioned_where_nothing_is_transparent(tmp_path):
    Image.new("RGBA", (2, 2), (*COLOUR, 255)).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png")[1] == []


# PNG's kinds: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha.
@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_is_reduced_and_said_so(tmp_path, kind, channels):
    samples = np.full((2, 3, channels), 0x6464, np.uint16)
    if kind in (4, 6):
        samples[..., -1] = 0xFFFF
    (tmp_path / "a.png").write_bytes(png(samples, kind))
    pixels, notes = images.read(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), 0x64))
    assert notes == ["16-bit reduced to 8 bit"]


@pytest.mark.parametrize("kind, colour", [(0, (0x6464,)), (2, (0x6464, 0x1234, 0xFFFF))])
def test_a_transparent_colour_of_16_bits_is_white_or_said_to_be_left_out(tmp_path, kind, colour):
    samples = np.array([[colour, [0] * len(colour)]], np.uint16)
    (tmp_path / "a.png").write_bytes(png(samples, kind, *colour))
    pixels, notes = images.read(tmp_path / "a.png")
    grey = kind == 0
    first = (255, 255, 255) if grey else (0x64, 0x12, 0xFF)
    np.testing.assert_array_equal(pixels, [[first, (0, 0, 0)]])
    said = "transparency composited on white" if grey else "transparent colour taken as opaque"
    assert notes == ["16-bit reduced to 8 bit", said]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_becomes_white(bits):
    largest = 2**bits - 1
    value = largest // 3
    samples = np.array([[value, value + 1]])
    pixels, notes = images.decode(png(samples, 0, value, bits=bits), "a")
    assert pixels[0, :, 0].tolist() == [255, (value + 1) * 255 // largest]
    assert notes == ["transparency composited on white"]


def test_grey_of_12_bits_has_its_own_white(tmp_path):
    row = bytes.fromhex("000fff 800010")  # 0, 4095, 2048, 16
    (tmp_path / "a.tif").write_bytes(grey_tiff(row, 4, bits=12, photometric=1))
    pixels, notes = images.read(tmp_path / "a.tif")
    assert pixels[0, :, 0].tolist() == [0, 255, 128, 1]
    assert notes == ["12-bit reduced to 8 bit"]


def test_where_zero_is_white_grey_is_no_negative(tmp_path):
    row = np.array([0, 65535, 257], "<u2").tobytes()
    (tmp_path / "a.tif").write_bytes(grey_tiff(row, 3, bits=16, photometric=0))
    pixels, notes = images.read(tmp_path / "a.tif")
    assert pixels[0, :, 0].tolist() == [255, 0, 254]
    assert notes == ["16-bit reduced to 8 bit"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif", ".png"])
def test_of_several_frames_the_first_is_taken_and_said_so(tmp_path, suffix):
    first, second = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
    pixels, notes = images.read(tmp_path / f"a{suffix}")
    assert pixels.max() < 8 and notes == ["first of 2 frames"]


def swapped_profile() -> bytes:
    """sRGB under another name and with its primaries for red and green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"?XYZ"), (b"gXYZ", b"rXYZ"), (b"?XYZ", b"gXYZ")):
        profile = profile.replace(old, new)
    return profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


@pytest.mark.parametrize("alpha", [None, 255, 254])
def test_another_colour_space_becomes_srgb(tmp_path, alpha):
    mode, pixel = ("RGBA", (*COLOUR, alpha)) if alpha else ("RGB", COLOUR)
    Image.new(mode, (2, 2), pixel).save(tmp_path / "a.png", icc_profile=swapped_profile())
    pixels, notes = images.read(tmp_path / "a.png")
    red, green, blue = COLOUR
    np.testing.assert_allclose(pixels[0, 0].astype(int), (green, red, blue), atol=2)
    assert notes[-1] == "colours converted from swap built-in to sRGB"


def test_of_a_profile_s_name_little_is_shown_and_nothing_obeyed(monkeypatch):
    named = "a\n\x1b[2J" + 100_000 * "b"
    monkeypatch.setattr(images.ImageCms, "getProfileDescription", lambda _: named)
    images._conversion.cache_clear()
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG", icc_profile=swapped_profile())
    _, notes = images.decode(buffer.getvalue(), "a")
    images._conversion.cache_clear()
    assert notes == [f"colours converted from a [2J{'b' * 54} to sRGB"]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "RGB"])
def test_the_bands_in_which_an_image_is_converted_do_not_show(monkeypatch, photo, mode):
    photo = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    photo[-1, :, 3] = 77
    image = Image.fromarray(photo)
    image = Image.fromarray(photo[..., 0] * np.uint16(257)) if "16" in mode else image.convert(mode)
    buffer = io.BytesIO()
    options = {"P": {"transparency": 9}, "I;16": {}}.get(mode, {"icc_profile": swapped_profile()})
    image.save(buffer, "PNG", **options)
    pixels, notes = images.decode(buffer.getvalue(), "a")
    monkeypatch.setattr(images, "_BAND", 50)  # of 20 pixels a row: 2 rows
    banded, same = images.decode(buffer.getvalue(), "a")
    np.testing.assert_array_equal(banded, pixels)
    assert same == notes and (notes or mode == "P")


@pytest.mark.parametrize("linear", [False, True])
def test_what_a_profile_does_counts_and_not_its_name(tmp_path, linear):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if linear:  # a curve of kind 0 and exponent 1 in place of sRGB's
        start = profile.index(b"para") + 8
        curve = struct.pack(">HHi", 0, 0, 1 << 16)
        profile = profile[:start] + curve + profile[start + len(curve) :]
    else:
        profile = profile.replace("sRGB".encode("utf-16-be"), "same".encode("utf-16-be"))
    Image.new("RGB", (2, 2), (55, 55, 55)).save(tmp_path / "a.png", icc_profile=profile)
    pixels, notes = images.read(tmp_path / "a.png")
    assert tuple(pixels[0, 0]) == ((128,) * 3 if linear else (55,) * 3)
    assert notes == ["colours converted from sRGB built-in to sRGB"] * linear


def test_reading_in_threads_leaves_the_process_its_warnings(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.read, [tmp_path / "a.jpg"] * 40))
    assert warnings.filters == before


@pytest.mark.parametrize("profile", ["sRGB", "LAB", b"nonsense"])
def test_a_colour_profile_that_says_or_means_nothing_changes_nothing(tmp_path, profile):
    if isinstance(profile, str):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(profile)).tobytes()
    Image.new("RGB", (2, 2), COLOUR).save(tmp_path / "a.png", icc_profile=profile)
    pixels, notes = images.read(tmp_path / "a.png")
    assert tuple(pixels[0, 0]) == COLOUR and notes == []


def encoded(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused_in_one_line(tmp_path, kind, part):
    data = encoded(kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ImageError, match="cut") as caught:
        images.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_damaged_image_is_refused_or_read_but_nothing_else(tmp_path, kind):
    data = encoded(kind)
    rng = np.random.default_rng(1)
    for _ in range(50):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 8):
            damaged[position] = rng.integers(256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            pixels, _ = images.read(tmp_path / "a")
        except ImageError:
            continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "empty"), (b"hello\n", "not a PNG"), (b"%!PS-Adobe", "not a PNG")]
)
def test_what_is_no_image_is_refused(tmp_path, data, message):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=message):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["PNG", "WebP", "TIFF", "BMP", "GIF"])
def test_an_image_of_an_unknown_kind_is_still_called_what_it_is(kind):
    with pytest.raises(ImageError, match=f"a: damaged, or a kind of {kind} that"):
        images.decode(encoded(kind)[:12], "a")


def test_a_pipe_is_read_as_a_file_is():
    def piped(data):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        try:
            return images.read(f"/dev/fd/{reader}")
        finally:
            os.close(reader)

    assert piped(encoded("PNG"))[0].shape == (40, 40, 3)
    for data, message in ((b"", "the file is empty"), (b"hello\n", "not a PNG")):
        with pytest.raises(ImageError, match=f"/dev/fd/.*: {message}"):
            piped(data)


@pytest.mark.parametrize("size", [(70000, 1), (30000, 30000), (12000, 12000)])
def test_a_declared_size_is_bounded_before_anything_is_decoded(tmp_path, size):
    header = bytearray(png(np.zeros((1, 1, 3), np.uint16), 2))
    header[16:24] = struct.pack(">II", *size)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    (tmp_path / "bomb.png").write_bytes(header)
    with pytest.raises(ImageError, match="pixels"):
        images.read(tmp_path / "bomb.png")


def test_a_missing_file_is_the_system_s_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        images.read(tmp_path / "nothing.png")


def test_an_existing_file_is_replaced_only_when_asked(tmp_path, photo):
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        images.write(path, photo)
    assert path.read_bytes() == b"precious"
    images.write(path, photo, overwrite=True)
    np.testing.assert_array_equal(images.read(path)[0], photo)
    assert list(tmp_path.iterdir()) == [path]


def test_grey_of_32_bits_is_taken_as_16_and_that_is_said(tmp_path):
    values = np.array([[0, 32896], [65535, 257]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    found, notes = images.read(tmp_path / "a.tif")
    assert found[..., 0].tolist() == [[0, 128], [255, 1]]
    assert notes == ["grey of more than 8 bits taken as 16-bit, reduced to 8 bit"]


def test_an_unknown_extension_is_refused_with_the_known_ones(tmp_path, photo):
    with pytest.raises(ImageError, match=r"\.xyz .*\.png.*\.webp"):
        images.write(tmp_path / "a.xyz", photo)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_not_written(tmp_path, image):
    with pytest.raises(ImageError):
        images.write(tmp_path / "a.png", image)


def test_an_image_too_large_for_its_format_is_refused(tmp_path):
    with pytest.raises(ImageError, match="WEBP cannot hold this 16384x1"):
        images.write(tmp_path / "a.webp", np.zeros((1, 16384, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factor", [1, 257])
def test_a_palette_of_tiff_has_8_bits_or_16(factor):
    image = Image.new("P", (2, 1))
    image.putdata([0, 1])
    image.putpalette([10, 20, 30, 40, 50, 60])
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    data, colours = buffer.getvalue(), np.array([10, 40, *[0] * 254, 20, 50, *[0] * 254, 30, 60])
    start = data.index((256 * colours).astype("<u2").tobytes())
    words = (factor * colours).astype("<u2").tobytes()
    found, _ = images.decode(data[:start] + words + data[start + len(words) :], "a.tif")
    np.testing.assert_array_equal(found, [[[10, 20, 30], [40, 50, 60]]])
