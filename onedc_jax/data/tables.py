"""Examples of Parquet and Arrow files, row by row."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onedc_jax.data.examples import CAPTION_NAMES, IMAGE_NAMES, Source, one_caption, shard_kind
from onedc_jax.errors import ImageError, OneDCError, one_line

_ROW_GROUPS = 4  # of Parquet files, kept in memory as they are stored


class Tables(Source):
    """The rows of Parquet or Arrow files with images in a column, as of Hugging Face's data sets.

    The column of images ("jpg", "image", "png", ...) has the bytes of image files, or structs with
    these in `bytes`; that of captions ("blip2_caption", "caption", "text", ...) text or lists of
    text, and may be missing.

    A row of a Parquet file costs the reading of the row group that it is in; the last few are kept.
    In random order that is slow where row groups are large: pack such files first.
    """

    def __init__(self, paths: Sequence[str | Path], *, title: str = "", cache_gib: float = 0.0):
        super().__init__(title or str(paths[0]), cache_gib=cache_gib)
        self.paths = [os.fspath(path) for path in paths]
        self._groups: OrderedDict = OrderedDict()
        self._blocks, sizes = [], []  # a block is (number of the file, number of its row group)
        self._image = self._caption = None
        for number, path in enumerate(self.paths):
            names, rows = self._describe(path)
            self._choose(path, names)
            self._blocks += [(number, group) for group in range(len(rows))]
            sizes += rows
        self._ends = np.cumsum(np.asarray(sizes, np.int64))

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_groups": OrderedDict()}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def record(self, index: int) -> tuple[bytes, str]:
        block = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[block - 1]) if block else 0)
        table = self._block(*self._blocks[block])
        image = table[self._image][row].as_py()
        if isinstance(image, dict):
            image = image.get("bytes")
        if not isinstance(image, bytes):
            raise ImageError(f"its column {self._image!r} holds no image file")
        caption = table[self._caption][row].as_py() if self._caption else None
        return image, one_caption(caption, index)

    def _describe(self, path: str) -> tuple[list[str], list[int]]:
        """The columns of a file, and how many rows each of its groups has."""
        pyarrow = _pyarrow(self.title)
        try:
            file = _open_table(path)
            if _is_arrow(path):
                return file[0], [batch.num_rows for batch in file[1]]
            rows = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            return file.schema_arrow.names, rows
        except (pyarrow.ArrowException, OSError) as error:
            raise OneDCError(
                f"{path}: not a Parquet or Arrow file, or damaged ({one_line(error)})"
            ) from None

    def _choose(self, path: str, names: Sequence[str]) -> None:
        image = next((name for name in IMAGE_NAMES if name in names), None)
        caption = next((name for name in CAPTION_NAMES if name in names), None)
        if image is None:
            known = ", ".join(IMAGE_NAMES)
            raise OneDCError(f"{path}: none of its columns ({', '.join(names)}) is one of {known}")
        if self._image not in (None, image) or (self._image and self._caption != caption):
            raise OneDCError(f"{path}: has other columns than {self.paths[0]}; train on them apart")
        self._image, self._caption = image, caption

    def _open(self) -> dict:
        return {}  # path -> the file

    def _block(self, number: int, group: int):
        opened = self._opened
        with self._lock:  # one reader at a time: two of the same row group would read it twice
            path = self.paths[number]
            if path not in opened:
                opened[path] = _open_table(path)
            file = opened[path]
            if _is_arrow(path):
                return file[1][group]  # mapped into memory: nothing to keep
            if (number, group) in self._groups:
                self._groups.move_to_end((number, group))
            else:
                columns = [self._image] + [self._caption] * bool(self._caption)
                self._groups[number, group] = file.read_row_group(group, columns=columns)
                if len(self._groups) > _ROW_GROUPS:
                    self._groups.popitem(last=False)
            return self._groups[number, group]


def _pyarrow(title: str):
    try:
        import pyarrow
    except ImportError as error:
        raise OneDCError(f"{title}: needs pyarrow: pip install 'onedc-jax[train]'") from error
    return pyarrow


def _is_arrow(path: str) -> bool:
    return shard_kind(path) == "arrow"


def _open_table(path: str):
    """A pyarrow.parquet.ParquetFile; of Arrow files (names of the columns, record batches)."""
    import pyarrow
    import pyarrow.parquet

    if not _is_arrow(path):
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    mapped = pyarrow.memory_map(path)
    try:
        reader = pyarrow.ipc.open_file(mapped)
        batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
    except pyarrow.ArrowInvalid:  # what the `datasets` library writes is a stream
        mapped.seek(0)
        reader = pyarrow.ipc.open_stream(mapped)
        batches = list(itertools.chain(reader))
    return reader.schema.names, batches
