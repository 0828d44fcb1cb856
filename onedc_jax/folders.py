"""The same job on every file of a folder: which file becomes which, and going on past a bad one."""

import contextlib
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onedc_jax.errors import ModelError, OneDCError


def explain(error: BaseException) -> str | None:
    """One line for a failure that is no fault of the program, None for any other."""
    if isinstance(error, OneDCError):
        text = str(error)
    elif isinstance(error, FileExistsError) and error.filename:
        text = f"{error.filename}: exists already; --overwrite replaces files"
        if not os.path.isfile(error.filename):
            text = f"{error.filename}: is there already and is not a file"
    elif isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        text = f"{error.filename}: {what}" if error.filename else what
    elif isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        text = "not enough memory for an image of this size"
    else:
        return None
    return " ".join(text.split())


def _raise(error: OSError) -> None:
    raise error


def walk(
    folder: Path, failed: Callable[[OSError], object] = _raise
) -> Iterator[tuple[Path, list[str]]]:
    """`folder` and all below it, each with the names of its files; nothing hidden.

    Links to folders are followed, unless to one that they are in. `failed` is told of each folder
    that cannot be read; by default that OSError is raised.
    """
    for root, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        folders[:] = [name for name in _shown(folders) if not _circular(Path(root, name))]
        yield Path(root), _shown(files)


def _shown(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _circular(folder: Path) -> bool:
    """Whether this is a link to a folder that it is in."""
    above = folder.absolute().parents
    return folder.is_symlink() and any(folder.samefile(other) for other in above)


def find(
    folder: Path, suffixes: Collection[str], failed: Callable[[OSError], object] = _raise
) -> list[Path]:
    """The files of `walk` with one of these (lower-case) suffixes, sorted."""
    paths = (root / name for root, names in walk(folder, failed) for name in names)
    return sorted(path for path in paths if path.suffix.lower() in suffixes)


def make(folder: Path) -> None:
    """Makes a folder and those it is in, as needed.

    Raises NotADirectoryError where a file has its name, OSError where it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        what = "is a file; a folder is needed"
        raise NotADirectoryError(errno.ENOTDIR, what, str(folder)) from None


def targets(files: Iterable[Path], source: Path, target: Path, suffix: str) -> list[Path]:
    """For each file below `source` its place below `target`, no two alike.

    a/photo.jpg becomes a/photo + suffix. Where two files would meet (photo.jpg, photo.png; also
    where a file system takes upper for lower case), each keeps its full name: photo.jpg + suffix.
    """
    files = [file.relative_to(source) for file in files]
    names = [file.with_suffix(suffix) for file in files]
    while True:
        taken = Counter(str(name).casefold() for name in names)
        clashes = [
            i
            for i, (file, name) in enumerate(zip(files, names, strict=True))
            if taken[str(name).casefold()] > 1 and name != _full(file, suffix)
        ]
        if not clashes:
            return [target / name for name in names]
        for i in clashes:
            names[i] = _full(files[i], suffix)


def linked(files: Iterable[Path], places: Iterable[Path]) -> dict[Path, str]:
    """What is wrong with each place that, by links, is one of `files` or an earlier place."""
    sources, taken, found = {os.path.realpath(file) for file in files}, set(), {}
    for place in places:
        real = os.path.realpath(place)
        if real in sources:
            found[place] = "a link to one of the files that are read"
        elif real in taken:
            found[place] = "by a link the same file as another output"
        taken.add(real)
    return found


def _full(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def for_each(
    jobs: Iterable[tuple[Path, Path]],
    work: Callable[[Path, Path], object],
    failed: Callable[[str], object],
    workers: int = 1,
    stop: threading.Event | None = None,
) -> tuple[list, int]:
    """work(file, target) for every job, folders made as needed: (the results, how many failed).

    So many `workers` are at it at a time; results and failures are in the order of the jobs. A
    failure that a user can understand is told to `failed` in one line and does not end the job; a
    ModelError does, since every further file would fail alike. What is at work when the job ends
    early, as by Ctrl-C, is waited for; `stop` is set, so that long work may leave. `failed` is told
    of Ctrl-C too, which then ends the process.
    """

    def made(file: Path, target: Path):
        if file.exists() and not file.is_file():
            raise OneDCError(f"{file}: a pipe or device, of which reading may never end")
        make(target.parent)
        return work(file, target)

    results, failures = [], 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            pending = [(*job, pool.submit(made, *job)) for job in jobs]
            for file, target, future in pending:
                error = _unless_unknown(future.exception())
                if error is None:
                    results.append(future.result())
                    continue
                failures += 1
                message = explain(error)
                named = str(file) in message or str(target) in message
                failed(message if named else f"{file}: {message}")
        except BaseException as error:
            if stop is not None:
                stop.set()
            with _ended_by_interrupt():
                if isinstance(error, KeyboardInterrupt):
                    failed("stops after the files that are at work; Ctrl-C again stops at once")
                pool.shutdown(cancel_futures=True)
            raise
    return results, failures


@contextlib.contextmanager
def _ended_by_interrupt() -> Iterator[None]:
    """Ctrl-C in here ends the process: an exception would wait for threads that compute."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _unless_unknown(error: BaseException | None) -> BaseException | None:
    """Raises what no user can understand, and what all further files would fail with alike."""
    if error is not None and (isinstance(error, ModelError) or explain(error) is None):
        raise error
    return error
