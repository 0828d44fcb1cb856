"""What a run leaves to read: numbers, one JSON object a line, and panels of images."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image


class JsonLines:
    """Appends one JSON object a line to `path`, each on disk at once. Only process 0 writes.

    A line that a crash left half written is dropped when the file is opened again. Arrays become
    numbers or lists; what is not finite, which JSON lacks, becomes "nan", "inf" or "-inf".
    """

    def __init__(self, path: str | Path):
        self._file = None
        if jax.process_index() == 0:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)

    def write(self, **fields) -> None:
        """Writes one line, e.g. write(step=10, loss=loss). Fetches what is still on a device."""
        if self._file is not None:
            line = json.dumps(_plain(fields), ensure_ascii=False, allow_nan=False)
            self._file.write(line.encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value)
        value = (value if value.dtype.kind in "biuOSU" else value.astype(np.float64)).tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def image_panel(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """A grid of uint8 images [H, W, 3] of any sizes, on white, `gap` pixels apart -> uint8."""
    heights = [max(image.shape[0] for image in row) for row in rows]
    columns = max(len(row) for row in rows)
    widths = [max(row[n].shape[1] for row in rows if n < len(row)) for n in range(columns)]
    shape = (sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (columns - 1), 3)
    panel = np.full(shape, 255, np.uint8)
    for m, row in enumerate(rows):
        top = sum(heights[:m]) + gap * m
        for n, image in enumerate(row):
            left = sum(widths[:n]) + gap * n
            panel[top : top + image.shape[0], left : left + image.shape[1]] = image
    return panel


def save_panel(path: str | Path, rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> None:
    """Writes `image_panel(rows)`, say [[original, decoded], ...], as PNG; process 0 only."""
    if jax.process_index() == 0:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_panel(rows, gap)).save(path, "PNG")
