"""What a report's folder holds: a row for each file coded, the files, and pictures to look at.

results.jsonl                  one JSON object a line, each on disk as soon as it is known
files/IMAGE/CODEC-QUALITY-…    what was coded, byte for byte
pictures/IMAGE/…               originals and decoded images, lossless
report.json                    says that the folder is such a one
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onedc_jax import folders, images
from onedc_jax.errors import ImageError, OneDCError
from onedc_jax.evaluation.codecs import Codec, Quality
from onedc_jax.log import JsonLines

_MARK_FILE = "report.json"
_MARK = {"format": "onedc eval", "version": 1}
_KEY = ("image", "digest", "codec", "version", "quality")
_WEBP_SIDE = 16383  # pixels; the most that it holds


@dataclass(frozen=True)
class Picture:
    """An image to measure with: the name it has in the report, and its file."""

    name: str
    path: Path


def find(sources: Iterable[Path], limit: int | None = None) -> list[Picture]:
    """The images that are named, and those in the folders that are, `limit` of them at most.

    Names are those below their folders; of images that would have one name, the folder's is before
    it. Raises OneDCError where there is none, or two that would have one name even so; OSError for
    a path that is not there.
    """
    sources = list(sources)
    places: list[tuple[Path, Path]] = []  # each image, and the folder that its name begins below
    for source in sources:
        source.stat()
        if source.is_dir():
            places += [(path, source) for path in folders.find(source, images.READ_SUFFIXES)]
        else:
            places.append((source, source.parent))
    below = lambda path, folder: path.relative_to(folder).as_posix()
    taken = Counter(below(*place) for place in places)
    found = []
    for path, folder in places:
        name = below(path, folder)
        prefix = folder.resolve().name + "/" if taken[name] > 1 else ""
        found.append(Picture(prefix + name, path))
    for name, count in Counter(picture.name for picture in found).items():
        if count > 1:
            raise OneDCError(f"{name}: two images have this name; name a folder above both")
    if not found:
        raise OneDCError(f"{sources[0]}: no {', '.join(images.READ_SUFFIXES)} file in it")
    return found[:limit]


def row_key(picture: Picture, digest: str, codec: Codec, quality: Quality) -> dict:
    """The fields that tell a row from all others."""
    values = (picture.name, digest, codec.name, codec.version, quality)
    return dict(zip(_KEY, values, strict=True))


def check_folder(path: Path, sources: Iterable[Path] = ()) -> None:
    """Raises OneDCError unless a report can be in this folder, which need not exist.

    It must hold nothing else, and not lie below one of the `sources`: its pictures would be images
    to measure the next time.
    """
    for source in sources:
        if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
            raise OneDCError(f"{path}: lies in the folder of images; choose another")
    if path.exists() and not path.is_dir():
        raise OneDCError(f"{path}: is a file; the report is a folder")
    if path.is_dir() and any(path.iterdir()) and not _is_mark(path / _MARK_FILE):
        raise OneDCError(f"{path}: holds something else; name a new or empty folder")


class Folder:
    """A report's folder; `rows` are those in results.jsonl, errors left out. A context manager."""

    def __init__(self, path: Path, sources: Iterable[Path] = ()):
        """Makes the folder, or opens one that was made here before, once `check_folder` allows."""
        check_folder(path, sources)
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _MARK_FILE).exists():
            self.write(_MARK_FILE, json.dumps(_MARK).encode() + b"\n")
        log = path / "results.jsonl"
        self.rows = {_hash(row): row for row in (read(log) if log.exists() else ())}
        self._log = JsonLines(log, keep=lambda row: row == self.rows.get(_hash(row)))

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_) -> None:
        self._log.close()

    def find_row(self, key: dict) -> dict | None:
        """The row of this key, if its file is there, and as long as it was."""
        row = self.rows.get(_hash(key))
        file = row and self.path / row["file"]
        return row if file and file.is_file() and file.stat().st_size == row.get("bytes") else None

    def add(self, row: dict, data: bytes, suffix: str) -> dict:
        """Keeps what was coded, then its row with the file's name in it, which it returns.

        The row takes the place of one of the same key.
        """
        file = self.write(f"files/{_stem(row)}{suffix}", data)
        row = row | {"file": file}
        self._log.write(**row)
        self.rows[_hash(row)] = row
        return row

    def add_error(self, row: dict) -> None:
        self._log.write(**row)

    def data(self, row: dict) -> bytes:
        """What was coded, of a row."""
        return (self.path / row["file"]).read_bytes()

    def write(self, name: str, data: bytes) -> str:
        """Writes a file of the report anew; returns its name."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        images.atomic_write(target, data, overwrite=True)
        return name

    def remove(self, name: str) -> None:
        """Removes a file of the report, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def picture_of(self, row: dict) -> str:
        """The name of the decoded picture of a row, whether it is there or not."""
        return f"pictures/{_stem(row)}{_picture_suffix(row)}"

    def original_of(self, row: dict) -> str:
        """The name of the picture of the original of a row, whether it is there or not."""
        return f"pictures/{slug(row['image'])}/original-{row['digest']}{_picture_suffix(row)}"

    def write_picture(self, name: str, image: np.ndarray) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, image, overwrite=True)


def digest(path: Path) -> str:
    """16 hexadecimal digits that tell a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def slug(text: str) -> str:
    """A file name for any text: the same for the same, another for another."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".")[:80]
    if safe == text:
        return safe
    # A name on disk need not be UTF-8; Python has surrogates for its other bytes.
    code = text.encode(errors="surrogatepass")
    return f"{safe}-{hashlib.sha256(code).hexdigest()[:6]}"


def label(quality: Quality) -> str:
    """How a quality is called; "" where there is only one."""
    if quality is None:
        return ""
    return quality if isinstance(quality, str) else f"{quality:g}"


def _stem(row: dict) -> str:
    name = "-".join(filter(None, (slug(row["codec"]), slug(label(row["quality"])), _hash(row))))
    return f"{slug(row['image'])}/{name}"


def _picture_suffix(row: dict) -> str:
    return ".webp" if max(row["width"], row["height"]) <= _WEBP_SIDE else ".png"


def _hash(row: dict) -> str:
    text = json.dumps([row.get(name) for name in _KEY])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _is_mark(path: Path) -> bool:
    try:
        return json.loads(path.read_text()).get("format") == _MARK["format"]
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path) -> list[dict]:
    """The rows of a results.jsonl: the last of each key, in the order of the file; no errors.

    Raises OSError where it cannot be read, OneDCError for a line that is no JSON object.
    """
    rows: dict[str, dict] = {}
    text = path.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].splitlines()  # one that was cut short is dropped
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if "error" not in row:
                rows.pop(_hash(row), None)
                rows[_hash(row)] = row
        except (ValueError, TypeError, AttributeError):
            raise OneDCError(f"{path}: line {number} is no JSON object; mend or move it") from None
    return list(rows.values())


def read_image(picture: Picture) -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 3]. Raises ImageError, naming it."""
    try:
        return images.read(picture.path)[0]
    except MemoryError as error:
        raise ImageError(f"{picture.path}: not enough memory to read it") from error
