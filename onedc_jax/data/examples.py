"""What every source of examples does alike: decode, cache, and step over what is unreadable."""

import abc
import hashlib
import re
import threading
from collections.abc import Hashable
from typing import Any, TypedDict

import numpy as np
from absl import logging

from onedc_jax import images
from onedc_jax.errors import ImageError, OneDCError, one_line

_ATTEMPTS = 16  # other images tried in place of an unreadable one, before giving up

# What columns of tables and fields of data sets are called; the first that is there is taken.
IMAGE_NAMES = ("jpg", "image", "hr", "png", "webp", "jpeg", "img")
CAPTION_NAMES = ("blip2_caption", "caption", "captions", "text", "txt")

_SHARD = re.compile(r"\.(array_record|parquet|arrow)(-\d+-of-\d+)?$")


def shard_kind(name: str) -> str | None:
    """What a file of this name holds, "array_record", "parquet" or "arrow"; None for any other."""
    match = _SHARD.search(name)
    return match and match[1]


class Example(TypedDict):
    image: np.ndarray  # uint8 [H, W, 3]
    caption: str  # "" where there is none


class Source(abc.ABC):
    """Examples by number, of images that are stored encoded.

    An image that cannot be read is replaced by another one of the source, the same at each run,
    and noted in `unreadable`: {its name: why}. Up to `cache_gib` of decoded images are kept in
    memory, by each worker process for itself.

    A kind of source says how many there are (`__len__`), what each holds (`record`) and how it is
    called (`name`); what it opens, it opens in `_opened`, once for each process.
    """

    def __init__(self, title: str, *, cache_gib: float = 0.0):
        self.title = title
        self.unreadable: dict[str, str] = {}
        self._room = int(cache_gib * 2**30)
        self._cache: dict[Hashable, Example] = {}
        self._handle = None
        self._lock = threading.Lock()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def record(self, index: int) -> tuple[bytes, str]:
        """The image as it is stored (a JPEG file, say) and its caption; any error if there is none.

        Called by several threads at once.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Which image this is, in words for a user; two that are alike have the same."""

    def _open(self) -> Any:
        """What `record` reads from, which a worker process opens for itself."""
        return None

    @property
    def _opened(self) -> Any:
        with self._lock:
            if self._handle is None:
                self._handle = self._open()
            return self._handle

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title!r}, {len(self)} images)"

    def __getstate__(self) -> dict:
        # What a worker process gets: what there is to read, not this process' pixels or files.
        return {**self.__dict__, "_cache": {}, "_handle": None, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __getitem__(self, index: int) -> Example:
        """Example `index`, or the one in its place.

        Raises OneDCError where image after image is unreadable, IndexError out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng(index)
        for _ in range(_ATTEMPTS):
            example = self._example(index)
            if example is not None:
                return example
            last, index = self.name(index), int(rng.integers(len(self)))
        raise OneDCError(
            f"{self.title}: {_ATTEMPTS} images in a row are unreadable, {len(self.unreadable)} so "
            f"far; the last one is {self.unreadable[last]}"
        )

    def decode(self, index: int) -> tuple[Example, bytes]:
        """Example `index` itself, and its image as it is stored.

        Raises ImageError, in one line with its name, if it is unreadable.
        """
        name = self.name(index)
        try:
            data, caption = self.record(index)
        except MemoryError:
            raise
        except Exception as error:
            # Each kind of file has a library with errors of its own for what is damaged.
            raise ImageError(f"{name}: cannot be read ({one_line(error)})") from error
        image, _ = images.decode(data, name)
        return Example(image=image, caption=caption), data

    def _example(self, index: int) -> Example | None:
        name = self.name(index)
        if name in self._cache:
            return self._cache[name]
        if name in self.unreadable:
            return None
        try:
            example, _ = self.decode(index)
        except ImageError as error:
            with self._lock:
                self.unreadable[name] = str(error)
            logging.warning("image skipped (%d so far): %s", len(self.unreadable), error)
            return None
        size = example["image"].nbytes
        if size <= self._room:
            with self._lock:
                if size <= self._room and name not in self._cache:
                    self._room -= size
                    self._cache[name] = example
        return example


def share(text: str) -> float:
    """A number in [0, 1) that a text has everywhere and always, and a path of any bytes."""
    data = text.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") / 2**64


def one_caption(captions: Any, index: int) -> str:
    """A caption as data sets have it: text, bytes, nothing, or several of which one is chosen."""
    if captions is None:
        return ""
    if isinstance(captions, bytes):
        return captions.decode("utf-8-sig", errors="replace").strip()
    if isinstance(captions, str):
        return captions.strip()
    captions = list(captions)
    if not captions:
        return ""
    return one_caption(captions[int(share(f"caption {index}") * len(captions))], index)
