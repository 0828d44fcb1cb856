"""The quality that meets a size: bisection over streams that grow.

Streams may be made in two ways: `quick(i)`, of which many are tried, and `final(i)`, which takes
its time for one of nearly the same size. Where there is but one way, both are that.
"""

from collections.abc import Callable

_TRIES = 3  # final streams that are made for one size


def most_within(quick: Callable[[int], bytes], count: int, limit: int) -> tuple[int, bytes]:
    """The last of `count` streams of at most `limit` bytes, and its place; the first if none is.

    About log2(count) are made. Sizes should not fall from one to the next: where they do, the one
    found is within the limit all the same, but may not be the last.
    """
    best, low, high = (0, quick(0)), 1, count
    while low < high:
        middle = (low + high) // 2
        data = quick(middle)
        if len(data) <= limit:
            best, low = (middle, data), middle + 1
        else:
            high = middle
    return best


def within(
    quick: Callable[[int], bytes], final: Callable[[int], bytes], count: int, limit: int
) -> bytes:
    """Of `count` final streams about the last of at most `limit` bytes; a quick one if none is.

    The first quick one, which may have more, if even that is too long.
    """
    place, largest = most_within(quick, count, limit)
    data = largest
    for _ in range(_TRIES):
        if len(data) > limit:
            break
        better = final(place)
        if len(better) <= limit:
            return better
        aim = min(len(data) * limit // len(better), len(data) - 1)
        place, data = most_within(quick, count, aim)
    return largest


def nearest(
    quick: Callable[[int], bytes], final: Callable[[int], bytes], count: int, size: int
) -> bytes:
    """Of `count` final streams one whose size is about the nearest; of two tried the smaller."""
    place, data = _nearest(quick, count, size)
    first = final(place)
    place, _ = _nearest(quick, count, size * len(data) // len(first))
    return min(first, final(place), key=_distance(size))


def _nearest(quick: Callable[[int], bytes], count: int, size: int) -> tuple[int, bytes]:
    place, below = most_within(quick, count, size)
    if place + 1 == count:
        return place, below
    above = quick(place + 1)
    if min(below, above, key=_distance(size)) is below:
        return place, below
    return place + 1, above


def _distance(size: int) -> Callable[[bytes], tuple[int, int]]:
    """How far a stream is from a size; of two as far the smaller is less."""
    return lambda data: (abs(len(data) - size), len(data))
