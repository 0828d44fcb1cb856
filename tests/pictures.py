"""Pictures to test with: pairs made from nothing but their names, and crops of a photograph."""

from pathlib import Path

import numpy as np
from PIL import Image
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


def photo(height: int, width: int) -> np.ndarray:
    """A crop of a real photograph, uint8 [height, width, 3], up to 512 × 768."""
    path = Path(__file__).parent.parent / "examples" / "valley.jpg"
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))[:height, :width].copy()
