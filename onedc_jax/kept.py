"""Files kept from one run to the next: programs ready to run, weights ready for them.

They lie where jax's compilation cache is (`jax_compilation_cache_dir`), or nowhere if there is
none. As in it, whoever may write there may run code. A CRC-32 in front tells damage.
"""

import hashlib
import mmap
import os
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from onedc_jax import folders
from onedc_jax.images import atomic_write

_LARGEST = 1 << 27  # bytes; reading more than that takes longer than making it ready
_FOLDERS = 8  # so many are kept
_CRC_BYTES = 4


def file(name: str, *of: str) -> Path | None:
    """Where something is kept that depends on `of`; None where nothing can be."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or "://" in folder or not os.path.isdir(folder):  # it may be a bucket
        return None
    return Path(folder, f"onedc-{name}-{_digest(*of)}")


def of_folder(kind: str, folder: Path, make: Callable[[], Any]) -> Any:
    """The tree of arrays that `make` makes of a folder's files, anew where one has changed."""
    place = file(kind, str(folder.absolute()))
    if place is None:
        return make()
    state = _digest(CODE, *map(str, _files(folder))).encode()
    with suppress(Exception):  # none yet, or not readable: made anew
        stored = read(place)
        if stored[: len(state)] == state:
            return pickle.loads(stored[len(state) :])
    made = make()
    if sum(x.nbytes for x in jax.tree.leaves(made)) <= _LARGEST:
        with suppress(OSError):  # a full disk: it only takes longer the next time
            write(place, state + pickle.dumps(made), _FOLDERS)
    return made


def read(place: Path) -> memoryview:
    """What `write` has written at a place, mapped into memory.

    Raises OSError where it cannot be read, ValueError where it is not as it was.
    """
    with place.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if _crc(data[_CRC_BYTES:]) != data[:_CRC_BYTES]:
        raise ValueError(f"{place}: damaged")
    return data[_CRC_BYTES:]


def _crc(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES)


def write(place: Path, data: bytes, most: int) -> None:
    """Writes what is kept at a place of `file`; of its name `most` are, and the oldest give way.

    Raises OSError.
    """
    atomic_write(place, _crc(data) + data, overwrite=True)
    name = place.name.rpartition("-")[0]
    files = place.parent.glob(f"{name}-*")
    for old in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)[most:]:
        old.unlink(missing_ok=True)


def _code() -> str:
    """A digest of this package's code and tables."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*")):
        if source.suffix in (".py", ".npz"):
            digest.update(source.read_bytes())
    return digest.hexdigest()


# Taken as the code is imported: its files may change while it runs.
CODE = _code()


def _files(folder: Path) -> list[tuple]:
    """The files below a folder, also behind links, by name, size and time of their last change."""
    found = []
    for root, names in folders.walk(folder):
        for path in (root / name for name in names):
            state = path.stat()
            found.append((str(path.relative_to(folder)), state.st_size, state.st_mtime_ns))
    return sorted(found)


def _digest(*of: str) -> str:
    # A path need not be UTF-8; Python has surrogates for its other bytes.
    return hashlib.sha256("\n".join(of).encode(errors="surrogatepass")).hexdigest()[:32]
