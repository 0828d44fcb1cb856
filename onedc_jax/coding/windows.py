"""Windows over an image: a few sizes of arrays for images of all sizes.

A program is compiled for one size of arrays. An image that fits one of SHAPES is put in its corner
(`models/padding.py` lets networks see where it ends); a larger one is covered by windows that
overlap. All lengths here are in blocks of 64×64 pixels.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onedc_jax.coding.stream import TOKEN_PIXELS

BLOCK = TOKEN_PIXELS
"""Pixels along a block's side."""
Y_SCALE = 4
"""Positions of y along a block's side."""

_RAMP = 32  # pixels on either side of where two windows meet, over which one fades into the other

SHAPES = ((8, 8), (8, 12), (12, 8), (16, 16))
"""Rows and columns of the arrays that networks are compiled for, from the smallest."""


class Span(NamedTuple):
    """A window along one axis.

    Attributes:
      start, stop: what of the image is in the window.
      first, last: the part of it that this window answers for; those of all windows are the axis.
    """

    start: int
    stop: int
    first: int
    last: int


class Window(NamedTuple):
    """A window over an image: its spans along both axes."""

    rows: Span
    columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """How many rows and columns of the image are in it."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def spans(length: int, size: int, halo: int) -> list[Span]:
    """Windows of `size` along an axis; each answers for nothing closer than `halo` to its edges.

    But for the image's own edges, which have nothing beyond them. Windows overlap about alike.
    """
    if length <= size:
        return [Span(0, length, 0, length)]
    count = -(-(length - 2 * halo) // (size - 2 * halo))
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    # Where two windows overlap, each answers for its half.
    cuts = [(a + size + b) // 2 for a, b in itertools.pairwise(starts)]
    edges = itertools.pairwise([0, *cuts, length])
    return [Span(a, a + size, *edge) for a, edge in zip(starts, edges, strict=True)]


def cover(
    rows: int, columns: int, shapes: tuple[tuple[int, int], ...], halo: int
) -> tuple[tuple[int, int], list[Window]]:
    """The array's shape, one of `shapes`, and windows that cover an image, row by row.

    One window in the smallest array that holds the image; if none does, several of the last shape.
    """
    for shape in shapes:
        if rows <= shape[0] and columns <= shape[1]:
            break
    axes = (spans(length, size, halo) for length, size in zip((rows, columns), shape, strict=True))
    return shape, [Window(*pair) for pair in itertools.product(*axes)]


def cut(x: np.ndarray, window: Window, shape: tuple[int, int], scale: int) -> np.ndarray:
    """A window of a map in the corner of an array of zeros: [1, scale · rows, scale · columns, ..].

    `scale` is how many of the map's positions are along a block's side.
    """
    out = np.zeros((1, scale * shape[0], scale * shape[1], *x.shape[2:]), x.dtype)
    rows, columns = (slice(scale * span.start, scale * span.stop) for span in window)
    part = x[rows, columns]
    out[0, : part.shape[0], : part.shape[1]] = part
    return out


def paste(x: np.ndarray, part: np.ndarray, window: Window, scale: int) -> None:
    """Writes into a map x what a window, whose array is `part`, answers for."""
    to = tuple(slice(scale * s.first, scale * s.last) for s in window)
    of = tuple(slice(scale * (s.first - s.start), scale * (s.last - s.start)) for s in window)
    x[to] = part[of]


def joined(windows: list[Window], tile: Callable[[Window], np.ndarray]) -> np.ndarray:
    """The image, uint8 [H, W, 3], that windows of `cover` see.

    `tile` makes the pixels of a window's array, uint8 [h, w, 3]. Where windows meet, one fades into
    the other. Beside the image no more than a row of windows is in memory.
    """
    height, width = (BLOCK * max(span.stop for span in axis) for axis in zip(*windows, strict=True))
    if len(windows) == 1:
        return tile(windows[0])[:height, :width]
    image = np.empty((height, width, 3), np.uint8)
    done, rest = 0, np.zeros((0, width, 3), np.float32)
    for rows, line in itertools.groupby(windows, lambda window: window.rows):
        top, bottom = BLOCK * rows.start, BLOCK * rows.stop
        strip = np.zeros((bottom - top, width, 3), np.float32)
        for window in line:
            place = slice(BLOCK * window.columns.start, BLOCK * window.columns.stop)
            pixels = tile(window)[: bottom - top, : place.stop - place.start]
            strip[:, place] += pixels * _weights(window.columns, width)[:, None]
        strip *= _weights(rows, height)[:, None, None]
        strip[done - top :][: len(rest)] += rest
        # Rows that the next windows reach into wait for them.
        end = height if bottom == height else BLOCK * rows.last - _RAMP
        image[done:end] = np.rint(strip[done - top : end - top])
        done, rest = end, strip[end - top :]
    return image


def _weights(span: Span, length: int) -> np.ndarray:
    """The share that a window has in each of its pixels along an axis, float32 in [0, 1]."""
    places = np.arange(BLOCK * span.start, BLOCK * span.stop, dtype=np.float32) + 0.5
    ramp = lambda distance: np.clip(distance / (2 * _RAMP) + 0.5, 0, 1)
    weights = np.ones(len(places), np.float32)
    if span.start > 0:
        weights *= ramp(places - BLOCK * span.first)
    if BLOCK * span.stop < length:
        weights *= ramp(BLOCK * span.last - places)
    return weights
