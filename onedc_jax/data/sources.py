"""Where examples come from: a folder, ArrayRecord, Parquet or Arrow files, a TFDS data set."""

import fnmatch
import glob
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from onedc_jax import folders, images
from onedc_jax.data.examples import Source, one_caption, shard_kind, share
from onedc_jax.data.tables import Tables
from onedc_jax.data.tfds import TfdsImages
from onedc_jax.errors import ImageError, OneDCError, one_line

_PART = re.compile(r"^(.*?)-(\d+)-of-(\d+)(\.\w+)?$")


class ImageFolder(Source):
    """The images under a folder, in the order of their paths.

    The caption of photo.jpg is the text of photo.txt beside it. `keep` weighs files by the first
    pattern that matches their path below `root`, or their name: {"clothing-*": 0.15, "icons/*": 0,
    "faces-*": 2} takes 15 % of the first, chosen by a hash of the path and so the same everywhere,
    none of the second, and each of the third twice. Files that no pattern matches count once.

    Raises OneDCError for a folder that is missing or holds no image, OSError for one that cannot be
    read.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        keep: Mapping[str, float] | None = None,
        cache_gib: float = 0.0,
    ):
        super().__init__(str(root), cache_gib=cache_gib)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise OneDCError(f"{root}: no such folder of images")
        found = folders.find(self.root, images.READ_SUFFIXES)
        if not found:
            raise OneDCError(f"{root}: no images ({' '.join(images.READ_SUFFIXES)}) in this folder")
        keep = dict(keep or {})
        self.paths = [p for p in found for _ in range(_copies(p.relative_to(self.root), keep))]
        if not self.paths:
            raise OneDCError(f"{root}: keep={keep} leaves none of its {len(found)} images")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def record(self, index: int) -> tuple[bytes, str]:
        path = self.paths[index]
        try:
            caption = path.with_suffix(".txt").read_bytes()
        except OSError:
            caption = None
        return path.read_bytes(), one_caption(caption, index)


def _copies(path: Path, keep: Mapping[str, float]) -> int:
    for pattern, times in keep.items():
        if fnmatch.fnmatch(path.as_posix(), pattern) or fnmatch.fnmatch(path.name, pattern):
            return int(times) + (share(path.as_posix()) < times % 1)
    return 1


_MAGIC = b"ODCI"
_HEADER = struct.Struct("<4sI")


def pack_record(image: bytes, caption: str) -> bytes:
    """A record of our ArrayRecord files.

    4 bytes "ODCI", the length of the caption in bytes (uint32, little-endian), the caption in
    UTF-8, and to the end an image file as it is: PNG, JPEG, WebP, TIFF, BMP or GIF.
    """
    text = caption.encode()
    return _HEADER.pack(_MAGIC, len(text)) + text + image


def unpack_record(record: bytes) -> tuple[bytes, str]:
    """What `pack_record` was given. A record without its header is an image without a caption."""
    if not record.startswith(_MAGIC):
        return record, ""
    if len(record) < _HEADER.size:
        raise ImageError("a record that is cut short")
    _, length = _HEADER.unpack_from(record)
    start = _HEADER.size + length
    if start > len(record):
        raise ImageError("a record that is cut short")
    return record[start:], record[_HEADER.size : start].decode(errors="replace")


class ArrayRecords(Source):
    """The records of ArrayRecord files, as `pack_record` makes them, or image files as they are."""

    def __init__(self, paths: Sequence[str | Path], *, title: str = "", cache_gib: float = 0.0):
        super().__init__(title or str(paths[0]), cache_gib=cache_gib)
        self.paths = [os.fspath(path) for path in paths]
        try:
            self._length = len(self._opened)
        except RuntimeError as error:
            reason = one_line(error)
            raise OneDCError(f"{self.title}: not ArrayRecord, or damaged ({reason})") from error

    def _open(self):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        return ArrayRecordDataSource(self.paths)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def record(self, index: int) -> tuple[bytes, str]:
        return unpack_record(self._opened[index])


def open_source(
    spec: str | Path,
    *,
    keep: Mapping[str, float] | None = None,
    cache_gib: float = 0.0,
) -> Source:
    """The examples that a text names:

    - `photos/`: the images below a folder (`ImageFolder`, which `keep` is for), if there are any;
    - `photos.array_record`, `packed/`, `packed/*.array_record`: ArrayRecord files, as
      `python -m onedc_jax.data` writes them; also by the name that was given to that where it wrote
      photos-00000-of-00004.array_record and so on;
    - `shards/*.parquet`, `shards/`, likewise `.arrow`: tables as of Hugging Face's data sets;
    - `tfds:coco_captions/train`, `tfds:NAME/CONFIG/SPLIT`: a data set that TensorFlow Datasets has
      prepared, in the folder that TFDS_DATA_DIR names or else ~/tensorflow_datasets; without a
      split, `tfds:NAME`, it is "train".

    Raises OneDCError, in one line, for what is not there, is incomplete or holds no images; OSError
    for a folder that cannot be read.
    """
    if str(spec).startswith("tfds:"):
        source = TfdsImages(str(spec), cache_gib=cache_gib)
    elif (files := _shards(spec)) is None:
        return ImageFolder(spec, keep=keep, cache_gib=cache_gib)
    else:
        kinds = sorted({shard_kind(path.name) for path in files})
        if len(kinds) > 1:
            raise OneDCError(f"{spec}: files of {' and '.join(kinds)}; name one kind: {spec}/*.…")
        kind = ArrayRecords if kinds == ["array_record"] else Tables
        source = kind(files, title=str(spec), cache_gib=cache_gib)
    if not len(source):
        raise OneDCError(f"{spec}: holds no images")
    if keep:
        logging.warning("%s: keep=%s weighs the files of a folder only", spec, dict(keep))
    return source


def _shards(spec: str | Path) -> list[Path] | None:
    """The files of shards that are meant, in order; None where a folder of images is."""
    path = Path(spec).expanduser()
    if path.is_dir():
        found = []
        for root, names in folders.walk(path):
            if any(name.lower().endswith(images.READ_SUFFIXES) for name in names):
                return None  # tables beside images describe these
            found += [root / name for name in names if shard_kind(name)]
        if not found:
            return None
        if (path / "features.json").exists():
            raise OneDCError(f"{spec}: prepared by TensorFlow Datasets; name it tfds:NAME/SPLIT")
    elif path.is_file() and shard_kind(path.name):
        found = [path]
    elif path.is_file():
        raise OneDCError(f"{spec}: neither a folder nor a .array_record, .parquet or .arrow file")
    elif any(c in str(spec) for c in "*?["):
        found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
        found = [p for p in found if shard_kind(p.name)]
        if not found:
            raise OneDCError(f"{spec}: no .array_record, .parquet or .arrow file is called so")
    elif shard_kind(path.name):
        found = parts_of(path)
        if not found:
            raise OneDCError(f"{spec}: no such file, nor parts of it")
    else:
        return None
    _check_complete(spec, found)
    return sorted(found)


def part_names(path: Path, count: int) -> list[Path]:
    """Of NAME.array_record: itself, or NAME-00000-of-00004.array_record and so on."""
    if count == 1:
        return [path]
    return [
        path.with_name(f"{path.stem}-{n:05d}-of-{count:05d}{path.suffix}") for n in range(count)
    ]


def parts_of(path: Path) -> list[Path]:
    """The files there are that `part_names` would call so, for any count."""
    found = glob.glob(glob.escape(str(path.with_suffix(""))) + f"-*-of-*{path.suffix}")
    parts = ((Path(p), _PART.match(Path(p).name)) for p in found)
    return sorted(p for p, match in parts if match and match[1] == path.stem)


def _check_complete(spec: str | Path, paths: Sequence[Path]) -> None:
    """Raises OneDCError where files are numbered "-of-N" and are fewer or more than N."""
    sets: dict[tuple, set] = {}
    for path in paths:
        if part := _PART.match(path.name):
            sets.setdefault((path.parent, part[1], part[4], int(part[3])), set()).add(int(part[2]))
    for (folder, stem, _, count), numbers in sets.items():
        wrong = sorted(set(range(count)) ^ numbers)
        if wrong and not Path(spec).expanduser().is_file():  # one of them that is named may be all
            what = "missing" if wrong[0] < count else "none of these"
            raise OneDCError(
                f"{spec}: {folder / stem}-*-of-{count:05d} has {len(numbers)} of {count} files; "
                f"number {wrong[0]:05d} is {what}"
            )
