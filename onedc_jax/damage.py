"""Damage of image files that Pillow reads past: it fills what is missing, and tells nobody."""

import io
import re
import zlib
from typing import BinaryIO

from PIL import Image, ImageChops

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's types of colour
# The first column and row of each of Adam7's passes, and its steps along both.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_MOST_BYTES = 1 << 30
_START = 8  # bytes of PNG's signature
_ARITHMETIC = (0xC9, 0xCA, 0xCB)  # this coding may leave out the zeros that its data end with
_SCAN = 0xDA
_END = 0xD9
# A marker among a scan's data; there FF is followed by 0, and restarts belong to the data.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# What the decoder takes for more data if it still wants some, after any restart.
_MORE = b"".join(b"\x55" * 16 + bytes((0xFF, 0xD0 + n % 8)) for n in range(16)) + b"\x55" * 16


def check(file: BinaryIO, image: Image.Image) -> None:
    """Raises ValueError where pixels of a loaded image are made up, as far as its format tells.

    Of a PNG: a checksum of its data is wrong, or rows are missing. Of a JPEG: its data end before
    its pixels do. What looks whole is not read twice: what is made up is black there, and here
    grey, if it is no detail of a progressive one.
    """
    if image.format == "PNG":
        data = _all(file)
        compressed = _png_data(data)
        if not any(image.crop((0, image.height - 1, *image.size)).tobytes()):
            _check_rows(data, compressed)
    elif image.format in ("JPEG", "MPO"):
        corner = image.crop((*(max(0, side - 4) for side in image.size), *image.size))
        flat = len(corner.getcolors()) == 1
        if (flat or "progressive" in image.info) and _takes_more(_all(file), image):
            raise ValueError("its data end before its pixels do")


def _all(file: BinaryIO) -> bytes:
    """What a file holds; of more than any image needs only the beginning."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return file.read(min(size, _MOST_BYTES))


def _png_data(data: bytes) -> list[memoryview]:
    """The compressed data of a PNG, in the parts that it has; ValueError where one is damaged."""
    parts, view, place = [], memoryview(data), _START
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind == b"IDAT":
            if zlib.crc32(view[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
                raise ValueError("a checksum of its data is wrong")
            parts.append(view[place + 8 : end])
        if kind == b"IEND":
            break
        place = end + 4
    return parts


def _check_rows(data: bytes, compressed: list[memoryview]) -> None:
    """ValueError where a PNG's compressed data hold fewer rows than its header says."""
    width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
    depth, colour, interlaced = data[24], data[25], data[28]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    inflate, found = zlib.decompressobj(), 0
    for part in compressed:
        while part and not inflate.eof and found < wanted:
            found += len(inflate.decompress(part, 1 << 20))
            part = inflate.unconsumed_tail
    if found < wanted:
        raise ValueError("rows are missing")


def _takes_more(data: bytes, image: Image.Image) -> bool:
    """Whether a JPEG becomes another picture if more data stand before its end.

    After a picture's last block a decoder looks for the end alone.
    """
    end = _end(data)
    if end is None:
        return False
    longer = io.BytesIO(data[:end] + _MORE + data[end:])
    with Image.open(longer, formats=("JPEG",)) as other:
        return ImageChops.difference(other, image).getbbox() is not None


def _end(data: bytes) -> int | None:
    """The place of the marker that ends a JPEG's first picture; None where that says nothing."""
    place = 2
    while place + 2 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == _END:
            return place
        if kind in _ARITHMETIC:
            return None
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
        if kind == _SCAN:
            found = _MARKER.search(data, place)
            if not found:
                return None
            place = found.start()
    return None
