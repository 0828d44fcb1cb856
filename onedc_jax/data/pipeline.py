"""Training batches: batch k is a function of the seed and k, of nothing else.

Neither the number of processes, workers or threads nor the step at which a run resumed changes
what batch k holds, so a training step's number is all that a checkpoint has to keep of its data.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags

from onedc_jax.data.examples import Source
from onedc_jax.data.sources import open_source
from onedc_jax.data.views import View, make_views
from onedc_jax.errors import OneDCError

# Streams of randomness that must not meet.
_ELEMENT, _STEP = 0, 1


def batches(
    source: str | Path | Source,
    *,
    seed: int,
    batch_size: int,
    crop: int | None = None,
    start: int = 0,
    scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    crops_per_image: int = 1,
    views: Sequence[Mapping[str, float]] = (),
    source_crop: int | None = None,
    tokenize: Callable[[str], np.ndarray] | None = None,
    threads: int = 2,
    workers: int = 0,
    shard: tuple[int, int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless {"image": uint8 [batch_size / processes, crop, crop, 3]}, from batch `start` on.

    `source` is a `Source` or what `open_source` takes; its images come in another order each
    epoch. What is shown of them is told by `crop`, `scale` and `flip` or, in a mixture of shapes,
    by `views` and `source_crop`: see `make_views`. Each step has one of the views, and so each
    batch the side of its view and batch_size times its share of rows. `crops_per_image` squares of
    each image (side by side in the batch) save decoding. With `tokenize`, which makes int32 [77] of
    a caption, batches have "caption", int32 [rows, 77], too.

    `batch_size` counts the crops of all processes together. Of `shard` = (index, count), by
    default this one of JAX's processes, the rows are those from index / count of the batch to
    (index + 1) / count: one after another, the processes' rows are the batch of a single one.

    `threads` decode and crop in this process, or else in each of `workers` processes (`source` and
    `tokenize` must then pickle); close() the iterator to end those. Raises OneDCError for sizes
    that do not divide, for views that do not fit and for a source without images.
    """
    if not isinstance(source, Source):
        source = open_source(source)
    index, count = shard or (jax.process_index(), jax.process_count())
    made = make_views(
        crop=crop,
        scale=scale,
        flip=flip,
        crops_per_image=crops_per_image,
        views=views,
        source_crop=source_crop,
    )
    for view in made:
        check_divides(batch_size, view, count)
    steps = _Steps(source, seed, batch_size // crops_per_image, made, tokenize, (index, count))
    # What lies before `start` is never looked at: elements are computed when they are asked for.
    ds = grain.MapDataset.source(steps)[start:]
    # An element is a whole batch, which a thread makes by itself.
    ds = ds.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    )
    if workers:
        if not flags.FLAGS.is_parsed():  # grain asks one of its own, also where no program has any
            flags.FLAGS.mark_as_parsed()
        ds = ds.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _deaf)
    return iter(ds)


def _deaf(*_) -> None:
    """Lets a worker live on where its whole group is asked to stop: its parent ends it, in time."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def check_divides(batch_size: int, view: View, processes: int) -> None:
    """Raises OneDCError for a batch whose share for a view is not whole on each process."""
    rows = batch_size * view.batch
    if batch_size <= 0 or abs(rows - round(rows)) > 1e-6 or round(rows) % (processes * view.count):
        raise OneDCError(
            f"batch_size={batch_size}: a batch of {rows:g} crops does not divide into {view.count} "
            f"crops of an image (crops_per_image) on each of {processes} processes"
        )


class _Steps:
    """This process' part of batch k, at [k].

    Step k has the places from k · images on in the endless order of shuffled epochs, as many as its
    view needs: a step of a smaller batch leaves the others where they are.
    """

    def __init__(
        self,
        source: Source,
        seed: int,
        images: int,
        views: tuple[View, ...],
        tokenize: Callable[[str], np.ndarray] | None,
        shard: tuple[int, int],
    ):
        self._source, self._seed, self._images, self._views = source, seed, images, views
        self._tokenize, self._shard = tokenize, shard
        # Computed place by place, so it takes no memory.
        self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    def __len__(self) -> int:
        return sys.maxsize // (self._images + 1)

    def __repr__(self) -> str:
        return f"batches of {self._source!r}"

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        view = self._view(step)
        index, count = self._shard
        share = round(self._images * view.batch) // count
        first = step * self._images + index * share
        crops, captions = [], []
        for place in range(first, first + share):
            example = self._source[int(self._order[place])]
            crops.append(
                view(example["image"], np.random.default_rng((self._seed, _ELEMENT, place)))
            )
            captions += [example["caption"]] * view.count
        batch = {"image": np.concatenate(crops)}
        if self._tokenize:
            batch["caption"] = np.stack([np.asarray(self._tokenize(c), np.int32) for c in captions])
        return batch

    def _view(self, step: int) -> View:
        if len(self._views) == 1:
            return self._views[0]
        number = np.random.default_rng((self._seed, _STEP, step)).random()
        ends = np.cumsum([view.chance for view in self._views])
        return self._views[min(int(np.searchsorted(ends, number, side="right")), len(ends) - 1)]
