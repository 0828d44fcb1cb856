"""Photographs in, training batches out: batch k is a function of the seed and k, of nothing else.

Neither the number of processes, workers or threads nor the step at which a run resumed changes
what batch k holds, so a training step's number is all that a checkpoint has to keep of its data.
"""

import fnmatch
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grain
import jax
import numpy as np
from absl import logging
from PIL import Image

from onedc_jax import folders, images
from onedc_jax.errors import ImageError, OneDCError

_ATTEMPTS = 16  # other files tried in place of an unreadable one, before giving up


class ImageFolder:
    """The images under a folder, in the order of their paths; item i is uint8 [H, W, 3].

    `keep` weighs files by the first pattern that matches their path below `root`, or their name:
    {"clothing-*": 0.15, "icons/*": 0, "faces-*": 2} takes 15 % of the first, chosen by a hash of
    the path and so the same everywhere, none of the second, and each of the third twice. Files
    that no pattern matches count once.

    An unreadable file is replaced by another one, the same at each run, and noted in `unreadable`.
    Up to `cache_gib` of decoded images are kept in memory (by each worker process for itself).
    Raises OneDCError for a folder that is missing or holds no image, and, at an item, where image
    after image is unreadable.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        keep: Mapping[str, float] | None = None,
        cache_gib: float = 0.0,
    ):
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
        self.unreadable: dict[Path, str] = {}
        self._room = int(cache_gib * 2**30)
        self._cache: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, {len(self)} images)"

    def __getstate__(self) -> dict:
        # What a worker process gets: the list of files, not this process' pixels.
        return {**self.__dict__, "_cache": {}, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __getitem__(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        path = self.paths[index]
        for _ in range(_ATTEMPTS):
            image = self._read(path)
            if image is not None:
                return image
            last, path = path, self.paths[rng.integers(len(self))]
        raise OneDCError(
            f"{self.root}: {len(self.unreadable)} of {len(set(self.paths))} images are unreadable, "
            f"{_ATTEMPTS} in a row; the last one is {self.unreadable[last]}"
        )

    def _read(self, path: Path) -> np.ndarray | None:
        if path in self._cache:
            return self._cache[path]
        if path in self.unreadable:
            return None
        try:
            image, _ = images.read(path)
        except (ImageError, OSError) as e:
            with self._lock:
                self.unreadable[path] = str(e)
            logging.warning("image skipped (%d so far): %s", len(self.unreadable), e)
            return None
        with self._lock:
            if image.nbytes <= self._room and path not in self._cache:
                self._room -= image.nbytes
                self._cache[path] = image
        return image


def _copies(path: Path, keep: Mapping[str, float]) -> int:
    for pattern, times in keep.items():
        if fnmatch.fnmatch(path.as_posix(), pattern) or fnmatch.fnmatch(path.name, pattern):
            digest = hashlib.sha256(path.as_posix().encode()).digest()
            chance = int.from_bytes(digest[:8], "little") / 2**64
            return int(times) + (chance < times % 1)
    return 1


@dataclass(frozen=True)
class RandomCrops(grain.transforms.RandomMap):
    """`count` random squares of one image, scaled and flipped -> uint8 [count, size, size, 3].

    Each square shows size / s pixels a side, s uniform in `scale`, or as many as the short side of
    the image has, and is brought to `size` by Lanczos (so an image is enlarged only if its short
    side is below `size`). Only the square is resampled, never the whole image.
    """

    size: int
    count: int = 1
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True

    def random_map(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.stack([self._crop(image, rng) for _ in range(self.count)])

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = min(self.size / rng.uniform(*self.scale), *image.shape[:2])
        if round(side) == self.size:
            side = self.size  # whole pixels: nothing to resample
        top, left = (int(rng.integers(int(n - side) + 1)) for n in image.shape[:2])
        mirrored = self.flip and rng.random() < 0.5
        reach = math.ceil(side)
        crop = image[top : top + reach, left : left + reach]
        if side != self.size:
            size, box = (self.size, self.size), (0, 0, side, side)
            crop = Image.fromarray(crop).resize(size, Image.Resampling.LANCZOS, box)
        return np.asarray(crop)[:, :: -1 if mirrored else 1]


def _batch(crops: np.ndarray) -> dict[str, np.ndarray]:
    """[images, crops, size, size, 3] -> {"image": [images · crops, size, size, 3]}."""
    return {"image": crops.reshape(-1, *crops.shape[2:])}


def batches(
    source: str | Path | ImageFolder,
    *,
    seed: int,
    batch_size: int,
    crop: int,
    start: int = 0,
    scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    crops_per_image: int = 1,
    threads: int = 2,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless {"image": uint8 [batch_size / processes, crop, crop, 3]}, from batch `start` on.

    `source` is a folder or an `ImageFolder`; its images come in another order each epoch, as
    `RandomCrops` of `size` = `crop`. `batch_size` counts the crops of all processes together;
    this process gets those of `shard` = (index, count), by default its own of JAX's processes.
    `crops_per_image` squares of each image (side by side in the batch) save decoding. `threads`
    decode and crop in this process, or else in each of `workers` processes; close() the iterator
    to end those. Raises OneDCError for sizes that do not divide and for a folder without images.
    """
    if not isinstance(source, ImageFolder):
        source = ImageFolder(source)
    index, count = shard or (jax.process_index(), jax.process_count())
    if batch_size <= 0 or batch_size % (count * crops_per_image):
        raise OneDCError(
            f"a batch of {batch_size} crops does not divide into {crops_per_image} crops of an "
            f"image on each of {count} processes"
        )
    if not 0 < scale[0] <= scale[1]:
        raise OneDCError(f"scale={tuple(scale)}: wanted are two factors, the lower one first")
    crops = RandomCrops(size=crop, count=crops_per_image, scale=tuple(scale), flip=flip)
    ds = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(crops)
    # The generator of an element comes from its place in the global order: slice after it.
    ds = ds[index::count].batch(batch_size // (count * crops_per_image), drop_remainder=True)
    ds = ds[start:].map(_batch)
    ds = ds.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    )
    if workers:
        ds = ds.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(ds)
