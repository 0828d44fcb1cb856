"""The quality that meets a size: bisection over streams that grow."""

from collections.abc import Callable


def most_within(stream: Callable[[int], bytes], count: int, limit: int) -> tuple[int, bytes]:
    """The last of `count` streams of at most `limit` bytes, and its place; the first if none is.

    `stream(i)` makes one; about log2(count) are made. Sizes should not fall from one to the next:
    where they do, the one found is within the limit all the same, but may not be the last.
    """
    best, low, high = (0, stream(0)), 1, count
    while low < high:
        middle = (low + high) // 2
        data = stream(middle)
        if len(data) <= limit:
            best, low = (middle, data), middle + 1
        else:
            high = middle
    return best


def nearest(stream: Callable[[int], bytes], count: int, size: int) -> bytes:
    """Of `count` streams, as above, the one whose size is nearest; of two the smaller."""
    place, below = most_within(stream, count, size)
    if place + 1 == count:
        return below
    above = stream(place + 1)
    return min(below, above, key=lambda data: (abs(len(data) - size), len(data)))
