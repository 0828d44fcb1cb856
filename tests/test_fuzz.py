"""Whatever bytes a decoder is given: the right picture or a StreamError, soon and in little memory.

    python tests/test_fuzz.py --cases 200000

A case is a stream that was damaged, or bytes that never were one. It is decoded as a whole file,
and as one that may be cut. No network is in it: `streams.HashPath` stands for the model.
"""

import argparse
import collections
import contextlib
import dataclasses
import tracemalloc
import zlib

import numpy as np
import pytest
from streams import HashPath

from onedc_jax.coding import entropy, stream
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.networks import Networks
from onedc_jax.errors import StreamError
from onedc_jax.models.onedc import build

CODEC = Codec("hashes", Networks(build({}), None), HashPath())


@dataclasses.dataclass(frozen=True)
class Original:
    """A stream, and what each beginning of it decodes to: from its first byte of y on."""

    data: bytes
    y_starts: int
    prefixes: tuple[bytes, ...]  # after 0, 1, 2, 3, 4 steps


def original(width: int, height: int, steps: int, rng: np.random.Generator) -> Original:
    path = CODEC.path
    header = stream.Header(width, height, path.fingerprint, path.arithmetic)
    z = rng.integers(0, 2**14, header.z_shape).astype(np.int32)
    nothing = (np.zeros(0, np.int32), np.zeros(0, np.uint8))
    coded = path.draw(rng, z)
    prefixes = []
    for count in range(stream.STEPS + 1):
        values = iter([symbols for symbols, _ in coded[: min(count, steps)]])
        read = lambda levels, values=values: next(values, np.zeros(levels.shape, np.int32))
        prefixes.append(z.tobytes() + path.dequantise(read, z).tobytes())
    coded = coded[:steps] + [nothing] * (stream.STEPS - steps)
    data = stream.pack(header, z, *entropy.encode_steps(coded))
    info = stream.inspect(data)
    return Original(data, info.header_bytes + info.z_bytes, tuple(prefixes))


def originals() -> list[Original]:
    rng = np.random.default_rng(1)
    sizes = ((64, 64, 4), (192, 128, 4), (100, 70, 4), (65, 64, 2), (128, 128, 1), (200, 200, 0))
    return [original(*size, rng) for size in sizes]


def decode(data: bytes, allow_truncated: bool) -> bytes | None:
    """What it decodes to; None if it is refused, in one line."""
    try:
        _, latents = CODEC.decode_latents(data, allow_truncated)
    except StreamError as error:
        assert "\n" not in str(error)
        return None
    return latents.z_indices.tobytes() + latents.y_hat.tobytes()


# Ways to damage a stream: (the stream, another one, a generator) -> bytes.


def flip(data, other, rng):
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def overwrite(data, other, rng):
    damaged = bytearray(data)
    at = rng.integers(len(data))
    damaged[at : at + 40] = rng.bytes(len(damaged[at : at + rng.integers(1, 40)]))
    return bytes(damaged)


def delete(data, other, rng):
    at = rng.integers(len(data))
    return data[:at] + data[at + rng.integers(1, 40) :]


def insert(data, other, rng):
    at, start = rng.integers(len(data), size=2)
    return data[:at] + data[start : start + rng.integers(1, 40)] + data[at:]


def cut(data, other, rng):
    return data[: rng.integers(len(data))]


def cut_and_flip(data, other, rng):
    return flip(data[: rng.integers(1, len(data))], other, rng)


def splice(data, other, rng):
    at = rng.integers(len(data))
    return data[:at] + other[rng.integers(len(other)) if rng.integers(2) else at :]


def noise(data, other, rng):
    return data[: rng.integers(12)] + rng.bytes(rng.integers(300))


def absurd_header(data, other, rng):
    """Any sizes, rates and lengths, with and without the bytes that they need."""
    header = bytes([0xC1, 0x10 | rng.integers(16)]) + rng.bytes(2)
    sides = [stream._varint(int(2 ** rng.uniform(0, 18))) for _ in range(2)]
    lengths = bytes([rng.integers(256)]) + rng.bytes(rng.integers(20))
    return header + b"".join(sides) + lengths + bytes(2 ** int(rng.integers(14)))


DAMAGES = (*(flip, overwrite, delete, insert, cut, cut_and_flip, splice, noise, absurd_header),)


def forged(data: bytes) -> bytes:
    """The same with the right checksum, and the right fingerprint where there is a header."""
    data = bytearray(data[:-4])
    with contextlib.suppress(StreamError):
        info = stream._parse(bytes(data) + bytes(4))
        end = info.header_bytes + info.z_bytes
        check = stream._check(bytes(data[:2] + data[4:end])) ^ HashPath.fingerprint
        data[2:4] = check.to_bytes(2, "big")
    return bytes(data) + zlib.crc32(data).to_bytes(4, "big")


def run(cases: int, seed: int) -> collections.Counter:
    """Damages and decodes; returns how often what came out. Raises where it must not have."""
    rng = np.random.default_rng(seed)
    streams = originals()
    right = {each.data: each.prefixes[-1] for each in streams}
    counts = collections.Counter()
    for _ in range(cases):
        one, other = (streams[i] for i in rng.integers(len(streams), size=2))
        damage = DAMAGES[rng.integers(len(DAMAGES))]
        data = damage(one.data, other.data, rng)
        if rng.random() < 0.1:
            decode(forged(data), bool(rng.integers(2)))  # to anything, but it must end
            counts["forged"] += 1
            continue

        whole = decode(data, allow_truncated=False)
        assert whole == right.get(data)
        counts["whole: " + ("not damaged" if whole else "refused")] += 1

        part = decode(data, allow_truncated=True)
        source = next((each for each in streams if each.data.startswith(data)), None)
        if source and len(data) >= source.y_starts:
            info = stream.inspect(data)
            assert part == source.prefixes[info.steps]
            counts[f"cut: {info.steps} steps, exact"] += 1
        elif part is None:
            counts["cut: refused"] += 1
        elif any(part in each.prefixes for each in streams):
            counts["cut and damaged: an exact picture"] += 1
        else:
            # Only the checks within y are left for this, and they are weak: see docs/format.md.
            assert stream.inspect(data).cut
            assert any(part.startswith(z_of(each)) for each in streams)
            counts["cut and damaged: unseen in y"] += 1
    return counts


def z_of(each: Original) -> bytes:
    info = stream.inspect(each.data)
    return each.prefixes[0][: 4 * np.prod(info.header.z_shape)]


@pytest.mark.parametrize("seed", range(4))
def test_500_cases(seed):
    counts = run(500, seed)
    assert counts["whole: refused"] > 300 and counts["cut: refused"] > 150
    assert sum(counts[f"cut: {steps} steps, exact"] for steps in range(5)) > 20
    assert counts["cut and damaged: unseen in y"] <= 15


def test_a_declared_size_takes_no_memory():
    rng = np.random.default_rng(0)
    cases = [forged(absurd_header(b"", b"", rng)) for _ in range(300)]
    tracemalloc.start()
    for data in cases:
        for allowed in (False, True):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(StreamError):
                stream.unpack(data, allowed)
            assert tracemalloc.get_traced_memory()[1] - before < 100 * len(data) + 20000
    tracemalloc.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200000)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    total = collections.Counter()
    for start in range(0, options.cases, 1000):
        total += run(min(1000, options.cases - start), options.seed + start)
        print(f"{start + 1000:>8}", dict(sorted(total.items())), flush=True)
