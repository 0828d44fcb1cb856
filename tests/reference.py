"""The reference's golden arrays and seeded weights.

No weight is stored: each is drawn from its own name by a rule that anyone can repeat, so a list of
tensor names and shapes stands for a whole checkpoint.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Zero mean, unit variance float32 numbers that depend on nothing but the name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    unit = (bits >> 40).astype(np.float32) * np.float32(2**-24) - np.float32(0.5)
    return (unit * np.float32(np.sqrt(12.0))).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The seeded value of the released tensor `name` (with its file's prefix, e.g. "codec.")."""
    r = draw(name, shape)
    if name.endswith(".bias"):
        return np.float32(0.05) * r
    if len(shape) == 1:
        return 1 + np.float32(0.1) * r
    return r / np.float32(np.sqrt(np.prod(shape[1:])))


def checkpoint(keys: str, prefix: str) -> dict[str, np.ndarray]:
    """The seeded checkpoint for a list of keys, e.g. checkpoint("micro/codec", "codec.")."""
    shapes = json.loads((GOLDEN / f"{keys}.keys.json").read_text())
    return {name: weight(prefix + name, tuple(shape)) for name, shape in shapes.items()}


def golden(name: str) -> dict[str, np.ndarray]:
    """The golden arrays of one file, four-dimensional ones turned from NCHW to NHWC."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


def relative_l2(actual, expected) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
