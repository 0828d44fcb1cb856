"""Image files to pixels and back, and files that appear whole or not at all.

Pixels are uint8 arrays [H, W, 3]: RGB, upright, in sRGB.
"""

import contextlib
import errno
import functools
import io
import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImagePalette, UnidentifiedImageError

from onedc_jax import damage
from onedc_jax.errors import ImageError, one_line
from onedc_jax.sizes import MAX_PIXELS, MAX_SIDE

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
WRITE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

# What Pillow may open. Its other readers are left out: some of them run other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
_STARTS = re.compile(
    rb"(?P<PNG>\x89PNG)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF....WEBP)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)",
    re.DOTALL,
)
_ORIENTATION = 0x0112
_PHOTOMETRIC = 262  # of TIFF: 0 where the smallest value is white
_PALETTE = 320
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Shades of grey and of each primary: what a colour profile makes of them tells if it is sRGB.
_SHADES = np.arange(0, 256, 5, np.uint8)[:, None] * np.array(
    [[[1, 1, 1]], [[1, 0, 0]], [[0, 1, 0]], [[0, 0, 1]]], np.uint8
)
_BAND = 1 << 20  # pixels that are converted at a time: each step makes a copy of them
_MOST_BYTES = 2 << 30  # that are read of a pipe or a device, which may never end
_NAME = 60  # characters, of a colour profile's name; it can have any number
# zlib's own level 6 takes up to twice as long as 4, for a hundredth less of a photograph.
_PNG = ("PNG", {"compress_level": 4})
_SAVE = {
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".png": _PNG,
    "": _PNG,
}


def read(path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """Reads PNG, JPEG, WebP, TIFF, BMP or GIF: (pixels uint8 [H, W, 3], notes).

    The notes say, in words for the user, what of the file the pixels do not hold: transparency
    (composited on white), 12- and 16-bit samples, further frames or pages, another colour space.

    Raises ImageError for a file that is no image, is damaged, or is larger than MAX_SIDE or
    MAX_PIXELS; OSError for one that cannot be opened.
    """
    with open(path, "rb") as file:
        if file.seekable():
            return _decode(file, str(path))
        # What is no image is looked at twice, and a pipe can only be read once.
        data = read_at_most(file, _MOST_BYTES)
    if data is None:
        raise ImageError(f"{path}: more than {_MOST_BYTES:,} bytes, too large to be an image")
    return decode(data, str(path))


def read_at_most(file: BinaryIO, count: int) -> bytes | None:
    """What a file holds, which may be a pipe or a device; None where that is over `count` bytes.

    Read in parts: a single read takes the memory for all that it might find.
    """
    data = io.BytesIO()
    while data.tell() <= count and (part := file.read(1 << 20)):
        data.write(part)
    return data.getvalue() if data.tell() <= count else None


def decode(data: bytes, name: str) -> tuple[np.ndarray, list[str]]:
    """`read` for what such a file holds; `name` is how errors call it. Raises ImageError."""
    return _decode(io.BytesIO(data), name)


def _decode(file: BinaryIO, name: str) -> tuple[np.ndarray, list[str]]:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            _check_size(name, *image.size)
            notes, ends = _notes(image), _ends(image)
            _scale_transparent(image)
            _fill_palette(image)
            image.load()
            damage.check(file, image)
            return _pixels(image, ends, notes), notes
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        file.seek(0)
        raise ImageError(f"{name}: {_unidentified(file.read(16))}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Pillow's readers let through whatever a damaged file trips over (OSError,
        # SyntaxError, struct.error, zlib.error, IndexError, ...).
        raise ImageError(f"{name}: damaged or unsupported image ({one_line(error)})") from error


def _unidentified(start: bytes) -> str:
    """Why Pillow makes nothing of a file that starts so."""
    if not start:
        return "the file is empty"
    if kind := _STARTS.match(start):
        return f"damaged, or a kind of {kind.lastgroup} that is not supported"
    return "not a PNG, JPEG, WebP, TIFF, BMP or GIF image"


def write(path: str | os.PathLike, image: np.ndarray, overwrite: bool = False) -> None:
    """Writes uint8 [H, W, 3] in the format of the path's extension (none: PNG).

    JPEG has quality 95; the other formats are lossless. The file appears whole or not at all.
    Raises ImageError for an extension or an image that cannot be written, FileExistsError if there
    is such a file and `overwrite` is not set, OSError where writing fails.
    """
    check_writable(path)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ImageError(f"an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    kind, options = _SAVE[Path(path).suffix.lower()]
    buffer = io.BytesIO()
    try:
        Image.fromarray(image).save(buffer, kind, **options)
    except (OSError, ValueError) as error:  # e.g. WebP holds at most 16383 pixels a side
        size = f"{image.shape[1]}x{image.shape[0]}"
        reason = one_line(error)
        raise ImageError(f"{path}: {kind} cannot hold this {size} image ({reason})") from error
    atomic_write(path, buffer.getbuffer(), overwrite)


def check_writable(path: str | os.PathLike) -> None:
    """Raises ImageError unless `write` knows the path's extension."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SAVE:
        known = ", ".join(WRITE_SUFFIXES)
        raise ImageError(f"{path}: cannot write {suffix} images; use one of {known}")


def atomic_write(path: str | os.PathLike, data: bytes, overwrite: bool = False) -> None:
    """Writes a file under a temporary name beside `path`, then renames it: all of it or nothing.

    Without `overwrite`, a file that is there stays, even one that appears meanwhile:
    FileExistsError. What is no regular file (a device, a folder) is never replaced. A link stays:
    what it leads to is written.
    """
    check_free(path, overwrite)
    target = followed(path)
    temporary = target.parent / f".onedc-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_new(temporary, target)
    except OSError as error:
        # A full disk names no file, others the temporary one or what a link leads to.
        if error.errno and error.filename in (None, str(temporary), temporary, str(target)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Raises OSError where `atomic_write` would, as far as can be known beforehand."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        folder = followed(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder)) from None
        return
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a regular file", str(path))
    if not overwrite:
        raise _exists(path)


def followed(path: str | os.PathLike) -> Path:
    """The file that a link leads to, be it there or not; any other path as it is."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _exists(path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already; ask to overwrite it", str(path))


def _rename_new(temporary: Path, path: Path) -> None:
    """Renames, unless `path` exists. A plain rename would replace it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:
        # No hard links on this file system: claim the name with an empty file, then replace that.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            raise _exists(path) from None
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink()
            raise


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < 1 or max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; a side has 1 to {MAX_SIDE:,}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is more than {MAX_PIXELS:,} pixels")


def _notes(image: Image.Image) -> list[str]:
    """What is known before the pixels are decoded."""
    notes = []
    if getattr(image, "n_frames", 1) > 1:
        notes.append(f"first of {image.n_frames} frames")
    if bits := _stored_bits(image):
        notes.append(f"{bits}-bit reduced to 8 bit")
    elif image.mode == "I":
        notes.append("grey of more than 8 bits taken as 16-bit, reduced to 8 bit")
    if bits == 16 and image.mode == "RGB" and image.info.pop("transparency", None):
        # It has 16 bits, which Pillow would compare with samples of 8.
        notes.append("transparent colour taken as opaque")
    return notes


def _stored_bits(image: Image.Image) -> int | None:
    """The bits of a sample that Pillow gives in another size than the file has, 12 or 16."""
    stored = str(image.tile) if image.format in ("PNG", "TIFF") else ""
    return next((bits for bits in (12, 16) if f";{bits}" in stored), None)


def _scale_transparent(image: Image.Image) -> None:
    """Pillow spreads grey of 2 and 4 bits over 0 to 255, but not the value that is transparent."""
    value = image.info.get("transparency")
    for bits in (2, 4):
        if isinstance(value, int) and f"'L;{bits}'" in str(image.tile):
            image.info["transparency"] = value * 255 // (2**bits - 1)


def _fill_palette(image: Image.Image) -> None:
    """Some writers of TIFF put 8 bits into the 16 of a palette: nearly black, if taken as said."""
    colours = getattr(image, "tag_v2", {}).get(_PALETTE)
    if image.mode == "P" and colours and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _ends(image: Image.Image) -> tuple[int, int]:
    """The values of black and white of grey with more than 8 bits."""
    largest = 4095 if _stored_bits(image) == 12 else 65535
    inverted = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC, 0) == 0
    return (largest, 0) if inverted else (0, largest)


def _pixels(image: Image.Image, ends: tuple[int, int], notes: list[str]) -> np.ndarray:
    """Decoded image -> uint8 [H, W, 3]; adds to the notes."""
    image = _upright(image)
    width, height = image.size
    rows = max(1, _BAND // width)
    pixels, transparent, converted = np.empty((height, width, 3), np.uint8), False, []
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        if band.mode in ("I", "F") or band.mode.startswith("I;16"):
            band = _eight_bit(band, *ends)
        band, alpha = _without_alpha(band)
        band, converted = _srgb(band)
        if alpha and alpha.getextrema()[0] < 255:
            transparent = True
            band = Image.composite(band, Image.new("RGB", band.size, "white"), alpha)
        pixels[top : top + rows] = np.asarray(band)
    notes += ["transparency composited on white"] * transparent + converted
    return pixels


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image, and its alpha if it has any."""
    if not image.has_transparency_data:
        return image, None
    with_alpha = image.convert("RGBA")
    # Without its alpha grey stays grey, as its colour profile wants it.
    colours = image.convert("L") if image.mode == "LA" else with_alpha.convert("RGB")
    return colours, with_alpha.getchannel("A")


def _upright(image: Image.Image) -> Image.Image:
    # Unreadable EXIF data is no reason to refuse the photo.
    orientation = 1
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(_ORIENTATION, 1)
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _eight_bit(image: Image.Image, black: int, white: int) -> Image.Image:
    """Grey of more than 8 bits -> "L", or "LA" where one value stands for transparent."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("samples beyond 16 bits have no known range; save as 8 or 16 bits")
    lightness, largest = np.abs(values.astype(np.int32) - black), abs(white - black)
    grey = Image.fromarray(((lightness * 255 + largest // 2) // largest).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    grey.info = {"icc_profile": image.info.get("icc_profile")}
    return grey


def _srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Converts to RGB, through the embedded colour profile where there is one: (image, notes).

    Nothing after this carries a profile, so without it a wide-gamut photo would turn pale.
    """
    profile, notes = image.info.get("icc_profile"), []
    if image.mode in ("RGBA", "RGBX", "P", "PA", "YCbCr"):
        image = image.convert("RGB")
    fits = profile and image.mode in ("RGB", "CMYK", "L")
    if fits and (conversion := _conversion(profile, image.mode)):
        transform, name = conversion
        image = ImageCms.applyTransform(image, transform)
        notes = [f"colours converted from {name or 'an embedded profile'} to sRGB"]
    return image.convert("RGB"), notes


@functools.lru_cache(maxsize=16)  # to make one takes longer than to decode a small photo
def _conversion(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform, str] | None:
    """From a profile's colours to sRGB, and its name; None where it is sRGB, or of no use."""
    shades = Image.fromarray(_SHADES).convert(mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source)[:_NAME]
        name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        converted = ImageCms.applyTransform(shades, transform)
    except (ImageCms.PyCMSError, OSError):
        return None
    # Not by its name: there is a linear "sRGB", and a "c2" that is sRGB.
    change = ImageChops.difference(converted, shades.convert("RGB"))
    return (transform, name) if max(high for _, high in change.getextrema()) > 1 else None
