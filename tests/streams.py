"""Streams to test with that need no network: levels by formula, and a path made of hashes."""

import hashlib

import numpy as np

from onedc_jax.coding import tables
from onedc_jax.coding.stream import STEPS, Arithmetic


def levels(step: int, count: int) -> np.ndarray:
    """The levels of a step's symbols in the test vectors, uint8 [count]; more are low than high."""
    products = (np.arange(1, count + 1, dtype=np.int64) * (2 * step + 3) * 40503) % 65536
    return ((products >> 8) ** 2 >> 8).astype(np.uint8)


def digest(values: np.ndarray) -> str:
    """SHA-256 of integers as little-endian 32-bit numbers."""
    return hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()


class HashPath:
    """What a codec's path is, with hashes for a network.

    As there, a level depends on the tokens and the symbols of the steps before at its place and
    around it.
    """

    arithmetic = Arithmetic.INTEGER
    fingerprint = 0x0DEC
    channels = 4  # of each step

    def draw(self, rng, z_indices):
        """Symbols as the levels expect them: the coder's (symbols, levels) of each step."""
        coded = []

        def read(levels):
            scales = tables.load().thresholds[levels] * rng.choice([1, 1, 1, 9], levels.size)
            coded.append((np.rint(rng.normal(size=levels.size) * scales).astype(np.int32), levels))
            return coded[-1][0]

        self.dequantise(read, z_indices)
        return coded

    def dequantise(self, read, z_indices, rate=None):
        """`read(levels)` gives a step's symbols -> y_hat int64 [4, channels, rows, columns]."""
        grid = np.kron(z_indices.astype(np.uint32), np.ones((4, 4), np.uint32))
        channels = np.arange(self.channels, dtype=np.uint32)[:, None, None]
        context = grid * np.uint32(2654435761) + channels * np.uint32(40503)
        y_hat = []
        for _ in range(STEPS):
            context = context * np.uint32(1664525) + np.uint32(1013904223)
            context ^= context >> np.uint32(15)
            levels = (context >> np.uint32(25)).astype(np.uint8)
            symbols = read(levels.reshape(-1)).reshape(levels.shape)
            y_hat.append(256 * symbols.astype(np.int64) + (context >> np.uint32(8)) % 256)
            context = context + symbols.astype(np.uint32) * np.uint32(2246822519)
            context = context + np.roll(context, 1, axis=2) + np.roll(context, 1, axis=1)
        return np.stack(y_hat)
