"""The frequency tables of y: 256 discretised zero-mean Gaussians, as integers.

Both sides of a stream must use the very same frequencies, so they are constants, read from
`tables.npz`. `build` is how they were made; nothing at run time evaluates an exp, a log or an erf.

Level i has the scale `0.11 * (64 / 0.11) ** (i / 255)`. The release of the paper has the same 256
levels and picks, as here, the widest level that is not above the scale the network predicts.
"""

import functools
import math
import os
from typing import NamedTuple

import numpy as np

LEVELS = 256
SCALE_MIN, SCALE_MAX = 0.11, 64.0
PRECISION = 24
"""The frequencies of a table add up to 2**PRECISION."""

# A value has a code of its own if its frequency is at least _FLOOR, and in any case up to +-4:
# 2**-20 keeps an outlier affordable (20 bits, or 36 with an escape), while all the floors of the
# narrowest table together cost 1e-5 bits a symbol.
_FLOOR = 16
_MIN_RADIUS = 4

_PATH = os.path.join(os.path.dirname(__file__), "tables.npz")


class Tables(NamedTuple):
    """All tables.

    Attributes:
      escape: int32 [256], the escape's code in each level, 2 R + 1. The codes before it stand for
        the values 0, -1, +1, -2, +2, ..., -R, +R; every other value is escaped.
      frequencies: 256 arrays, uint32 [2 R + 2], of these codes. They add up to 2**24.
      thresholds: float32 [256], increasing, 0.11 to 64: the scales at which the levels begin.
    """

    escape: np.ndarray
    frequencies: tuple[np.ndarray, ...]
    thresholds: np.ndarray


@functools.lru_cache(maxsize=1)
def load() -> Tables:
    """Returns the tables; they are read once and cannot be written to."""
    with np.load(_PATH) as file:
        radius = file["radius"].astype(np.int32)
        halves = np.split(file["half"], np.cumsum(radius + 2)[:-1])
        thresholds = file["thresholds"]
    frequencies = []
    for half in halves:  # of the values 0..R, then the escape
        both = np.repeat(half[:-1], 2)[1:]
        frequencies.append(np.append(both, half[-1]))
    escape = 2 * radius + 1
    for array in (escape, thresholds, *frequencies):
        array.flags.writeable = False
    return Tables(escape, tuple(frequencies), thresholds)


def scale_index(scales: np.ndarray) -> np.ndarray:
    """Returns the level of each scale: the last one that begins at or below it.

    Args:
      scales: float32 of any shape. Up to 0.11, negative and NaN are level 0; from 64 on, 255.

    Returns:
      uint8, of the same shape.
    """
    scales = np.where(np.isnan(scales), np.float32(0), scales).astype(np.float32)
    inner = load().thresholds[1:]  # without the first, a count is an index already
    return np.searchsorted(inner, scales, side="right").astype(np.uint8)


def build() -> dict[str, np.ndarray]:
    """Computes the content of `tables.npz`.

    The frequency of a value k > 0, and of -k, is P(k - 1/2 < X < k + 1/2) * 2**24, rounded half up
    and raised to the floor; the escape's is P(|X| > R + 1/2), likewise; 0 takes what is left.

    Returns:
      `radius` uint16 [256]; `half` uint32, one table after the other: the frequencies of 0..R, then
      of the escape; `thresholds` float32 [256].
    """
    step = math.log(SCALE_MAX / SCALE_MIN) / (LEVELS - 1)
    scales = [math.exp(math.log(SCALE_MIN) + level * step) for level in range(LEVELS)]
    tables = [_half(scale) for scale in scales]
    return {
        "radius": np.array([len(table) - 2 for table in tables], np.uint16),
        "half": np.concatenate(tables).astype(np.uint32),
        "thresholds": np.array(scales, np.float32),
    }


def _half(scale: float) -> list[int]:
    def above(x: float) -> float:  # P(X > x) * 2**24; erfc keeps the digits that 1 - erf loses
        return math.ldexp(0.5 * math.erfc(x / (scale * math.sqrt(2))), PRECISION)

    half = []
    while True:
        k = len(half) + 1
        frequency = math.floor(above(k - 0.5) - above(k + 0.5) + 0.5)
        if frequency < _FLOOR and k > _MIN_RADIUS:
            break
        half.append(max(frequency, _FLOOR))
    escape = max(math.floor(2 * above(len(half) + 0.5) + 0.5), _FLOOR)
    return [2**PRECISION - 2 * sum(half) - escape, *half, escape]
