"""A second reader of streams, written from docs/format.md alone: slow, and in Python's integers.

Of the package it takes the frequency tables and nothing else.
"""

import bisect
import itertools
from typing import NamedTuple

from onedc_jax.coding import tables


class Whole(NamedTuple):
    """What a whole stream holds, and where its y stands."""

    arithmetic: int
    fingerprint: int
    width: int
    height: int
    rate: int | None
    z: list[int]
    step_bytes: list[int]
    y: bytes


def crc(data: bytes, polynomial: int, bits: int, start: int, reflected: bool) -> int:
    """A cyclic redundancy check, bit by bit."""
    register = start
    for byte in data:
        byte = int(f"{byte:08b}"[::-1], 2) if reflected else byte
        register ^= byte << bits - 8
        for _ in range(8):
            register = register << 1 ^ (polynomial if register >> bits - 1 & 1 else 0)
            register &= (1 << bits) - 1
    return int(f"{register:0{bits}b}"[::-1], 2) if reflected else register


def read(data: bytes) -> Whole:
    """A whole stream -> what it holds; an AssertionError where it breaks a rule."""
    at = 4

    def side() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            value |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 128:
                return value

    assert data[0] == 0xC1 and data[1] >> 4 == 1
    width, height = side(), side()
    rate = None
    if data[1] & 2:
        rate, at = data[at], at + 1
    steps = [0, 0, 0, 0]
    if data[1] & 1:
        bits = "".join(f"{byte:08b}" for byte in data[at : at + 17])
        b, missing = int(bits[:5], 2), int(bits[5:7], 2)
        ends = [7, 10 + b, 10 + 2 * b, 10 + 3 * b, 10 + 4 * b]
        words = [int(bits[i:j] or "0", 2) for i, j in itertools.pairwise(ends)]
        steps = [4 * count for count in words]
        steps[0] -= missing
        at += -(-ends[4] // 8)
    tokens = -(-width // 64) * -(-height // 64)
    start, at = at, at + -(-14 * tokens // 8)
    bits = "".join(f"{byte:08b}" for byte in data[start:at])
    z = [int(bits[14 * i : 14 * i + 14], 2) for i in range(tokens)]
    assert "1" not in bits[14 * tokens :]
    check = crc(data[:2] + data[4:at], 0x1021, 16, 0xFFFF, False)
    y = data[at : at + sum(steps)]
    assert len(data) == at + len(y) + 4
    checksum = crc(data[:-4], 0x04C11DB7, 32, 0xFFFFFFFF, True) ^ 0xFFFFFFFF
    assert checksum == int.from_bytes(data[-4:], "big")
    fingerprint = (data[2] << 8 | data[3]) ^ check
    return Whole(data[1] >> 2 & 3, fingerprint, width, height, rate, z, steps, y)


def read_symbols(y: bytes, levels: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The symbols of each step, and how many words the decoder has taken in for it."""
    y = bytes(-len(y) % 4) + y
    words = [int.from_bytes(y[i : i + 4], "big") for i in range(0, len(y), 4)]
    state, taken = 0, 0

    def fill() -> bool:
        nonlocal state, taken
        if state < 2**32 and taken < len(words):
            state, taken = state << 32 | words[taken], taken + 1
            return True
        return False

    def pop(starts: list[int]) -> int:
        """Decodes a code; `starts` has where each begins, and 2^24."""
        nonlocal state
        slot = state & 0xFFFFFF
        code = bisect.bisect_right(starts, slot) - 1
        state = (state >> 24) * (starts[code + 1] - starts[code]) + slot - starts[code]
        fill()
        return code

    while fill():
        pass
    starts = [[0, *itertools.accumulate(table.tolist())] for table in tables.load().frequencies]
    uniform = list(range(0, 2**24 + 1, 256))
    symbols, ends = [], [0]
    for step in levels:
        values, escaped = [0] * len(step), []
        for i in sorted(range(len(step)), key=lambda i: step[i]):
            code = pop(starts[step[i]])
            values[i] = code // 2 if code % 2 == 0 else -(code + 1) // 2
            if code == len(starts[step[i]]) - 2:
                escaped.append(i)
        for i in escaped:
            raw = pop(uniform)
            values[i] = raw if raw < 32768 else raw - 65536
        symbols.append(values)
        ends.append(taken)
    assert state == 0 and taken == len(words)
    return symbols, [after - before for before, after in itertools.pairwise(ends)]
