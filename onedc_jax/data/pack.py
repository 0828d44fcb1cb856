"""Any source of images packed into a few ArrayRecord files."""

import contextlib
import io
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from onedc_jax import folders
from onedc_jax.data.examples import Source
from onedc_jax.data.sources import pack_record, part_names, parts_of
from onedc_jax.errors import ImageError, OneDCError, one_line
from onedc_jax.images import check_free, followed

_WEBP_SIDE = 16383  # pixels, the most that WebP holds


@dataclass(frozen=True)
class Smaller:
    """Images anew as WebP: reduced by Lanczos to `max_side` pixels, of `quality` (1 to 100).

    With max_side, images that fit it stay the files they are; without, all are encoded anew.
    """

    max_side: int | None = None
    quality: int = 95

    def __call__(self, data: bytes, image: Image.Image) -> bytes:
        if self.max_side and max(image.size) <= self.max_side:
            return data
        limit = min(self.max_side or _WEBP_SIDE, _WEBP_SIDE)
        scale = min(1.0, limit / max(image.size))
        if scale < 1:
            size = tuple(max(1, round(n * scale)) for n in image.size)
            image = image.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=self.quality, method=4)
        return buffer.getvalue()


def pack(
    source: Source,
    target: str | Path,
    *,
    shards: int = 1,
    smaller: Smaller | None = None,
    overwrite: bool = False,
    threads: int = 2,
    skipped: Callable[[str], object] = lambda message: None,
    done: Callable[[], object] = lambda: None,
) -> tuple[list[Path], int, int]:
    """Writes the images and captions of a source: (the files, images written, images skipped).

    Images keep the bytes they have, in the order of the source, unless `smaller` encodes them anew.
    One file is `target`, NAME.array_record; several are NAME-00000-of-00004.array_record and so on.
    They have temporary names until all are complete; of a link what it leads to is written. Each
    image is decoded once: the unreadable ones are left out and told to `skipped`; `done` is called
    after each image.

    Raises OneDCError for a target of another name, for more shards than images, and where no image
    is readable; FileExistsError if a file or set of this name is there, unless `overwrite` is set,
    which also removes a former set of another number of shards; OSError where writing fails.
    """
    target = Path(target)
    if target.suffix != ".array_record":
        raise OneDCError(f"{target}: what is packed is called NAME.array_record")
    if not 1 <= shards <= len(source):
        raise OneDCError(f"{shards} shards of {len(source)} images: choose 1 to {len(source)}")
    before = [*([target] if target.exists() else []), *parts_of(target)]
    for path in before:
        check_free(path, overwrite)
    folders.make(target.parent)
    final = part_names(target, shards)
    mark = secrets.token_hex(8)
    places = [followed(path) for path in final]
    temporary = [path.with_name(f".onedc-{mark}-{n}.tmp") for n, path in enumerate(places)]
    written = 0
    records = _records(source, smaller, threads, skipped, done)
    try:
        for n, path in enumerate(temporary):
            end = (n + 1) * len(source) // shards
            written += _write(path, records, end - n * len(source) // shards)
        if not written:
            raise OneDCError(f"{source.title}: none of its {len(source)} images is readable")
        for path, place in zip(temporary, places, strict=True):
            os.replace(path, place)
        for path in before:
            if path not in final:
                path.unlink()
    finally:
        records.close()
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink()
    return final, written, len(source) - written


def _write(path: Path, records: Iterator[bytes | None], count: int) -> int:
    """Writes the next `count` records of which there are; how many that was."""
    from array_record.python.array_record_module import ArrayRecordWriter

    written = 0
    try:
        # One record a group, to be read alone; image files do not get smaller by compression.
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        try:
            for record in islice(records, count):
                if record is not None:
                    writer.write(record)
                    written += 1
        finally:
            writer.close()
    except RuntimeError as error:
        raise OneDCError(f"{path.parent}: cannot be written to ({one_line(error)})") from error
    return written


def _records(
    source: Source,
    smaller: Smaller | None,
    threads: int,
    skipped: Callable[[str], object],
    done: Callable[[], object],
) -> Iterator[bytes | None]:
    """A record for each image in order, None for those that are unreadable."""

    def make(index: int) -> bytes | ImageError:
        try:
            example, data = source.decode(index)
        except ImageError as error:
            return error
        if smaller:
            data = smaller(data, Image.fromarray(example["image"]))
        return pack_record(data, example["caption"])

    indices = iter(range(len(source)))
    pool = ThreadPoolExecutor(threads)
    try:
        # A few at a time, so that no more than these are in memory.
        waiting = deque(pool.submit(make, index) for index in islice(indices, 2 * threads))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, index) for index in islice(indices, 1))
            if isinstance(made, ImageError):
                skipped(str(made))
                made = None
            done()
            yield made
    finally:
        pool.shutdown(cancel_futures=True)
