"""What a run leaves to read: numbers, one JSON object a line, and panels of images.

TensorBoard has the same where it is asked for.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from onedc_jax.errors import OneDCError


class JsonLines:
    """Appends one JSON object a line to `path`, each on disk at once. Only process 0 writes.

    A line that a crash left half written is dropped when the file is opened again, and so is each
    of which `keep(fields)` is false. Arrays become numbers or lists; what is not finite, which JSON
    lacks, becomes "nan", "inf" or "-inf". A file name's bytes that are not UTF-8, surrogates in
    Python, are written as JSON's escapes of these.
    """

    def __init__(self, path: str | Path, keep: Callable[[dict], bool] = lambda fields: True):
        self._file = None
        if jax.process_index() == 0:
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_bytes() if path.exists() else b""
            whole = before[: before.rfind(b"\n") + 1].splitlines(keepends=True)
            kept = b"".join(line for line in whole if _readable(line) and keep(json.loads(line)))
            if kept != before:
                scratch = path.with_name(path.name + ".new")
                scratch.write_bytes(kept)
                scratch.replace(path)
            self._file = path.open("ab")

    def write(self, **fields) -> None:
        """Writes one line, e.g. write(step=10, loss=loss). Fetches what is still on a device."""
        if self._file is not None:
            line = json.dumps(plain(fields), ensure_ascii=False, allow_nan=False)
            self._file.write(line.encode(errors="backslashreplace") + b"\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _readable(line: bytes) -> bool:
    """Whether it is an object in JSON; a machine that lost its power may have left other bytes."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class TensorBoard:
    """Event files for TensorBoard in `folder`; process 0 only. Needs `tensorboardX`.

    Raises OneDCError where that is not installed.
    """

    def __init__(self, folder: str | Path):
        self._writer = None
        if jax.process_index() == 0:
            try:
                from tensorboardX import SummaryWriter
            except ImportError as error:
                raise OneDCError(
                    "--config.tensorboard needs tensorboardX: pip install 'onedc-jax[train]'"
                ) from error
            self._writer = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Batches of images by name, uint8 [B, H, W, 3]."""
        if self._writer:
            for name, batch in images.items():
                self._writer.add_images(name, batch, step, dataformats="NHWC")
            self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()


def plain(value):
    """What JSON can say of a value: arrays as lists, infinities and what is no number as words."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value)
        value = (value if value.dtype.kind in "biuOSU" else value.astype(np.float64)).tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
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
