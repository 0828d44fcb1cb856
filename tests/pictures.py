"""Pairs of pictures for the metrics, made from nothing but their names. Needs numpy alone."""

import numpy as np
from reference import draw


def pictures(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches with grain, and the same with more grain, uint8 [count, height, width, 3] each."""
    coarse = draw("pictures.coarse", (count, height // 8 + 1, width // 8 + 1, 3))
    coarse = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    shape = (count, height, width, 3)
    a = 0.5 + 0.15 * coarse + 0.05 * draw("pictures.grain", shape)
    strength = np.linspace(0.03, 0.15, count, dtype=np.float32)[:, None, None, None]
    b = a + strength * draw("pictures.damage", shape)
    return _bytes(a), _bytes(b)


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
