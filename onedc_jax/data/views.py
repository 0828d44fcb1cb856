"""What a training step sees of its images: squares of one size, cut out at random."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from onedc_jax.errors import OneDCError


@dataclass(frozen=True)
class RandomCrops:
    """`count` random squares of one image, scaled and flipped -> uint8 [count, size, size, 3].

    Each square shows size / s pixels a side, s uniform in `scale`, or as many as the short side of
    the image has, and is brought to `size` by Lanczos (so an image is enlarged only if its short
    side is below `size`). Only the square is resampled, never the whole image.

    `chance` is how often steps have this view, `batch` its share of the full batch.
    """

    size: int
    count: int = 1
    scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    chance: float = 1.0
    batch: float = 1.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.stack([self._crop(image, rng) for _ in range(self.count)])

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = min(self.size / rng.uniform(*self.scale), *image.shape[:2])
        if round(side) == self.size:
            side = self.size  # whole pixels: nothing to resample
        top, left = (int(rng.integers(int(n - side) + 1)) for n in image.shape[:2])
        return _mirrored(cut(image, top, left, side, self.size), self.flip, rng)


@dataclass(frozen=True)
class SourceCrops:
    """`count` random squares of `source` pixels, of each a square of `side` -> [count, size, ...].

    With side = source the whole square is reduced to `size` by Lanczos; with side = size it is a
    random crop of it, its own pixels. An image whose short side is below `source` is enlarged to
    that first. Only what is shown is resampled. uint8; `chance` and `batch` as in `RandomCrops`.
    """

    size: int
    side: int
    source: int
    count: int = 1
    flip: bool = True
    chance: float = 1.0
    batch: float = 1.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.stack([self._crop(image, rng) for _ in range(self.count)])

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        zoom = max(1.0, self.source / min(image.shape[:2]))
        corner = []
        for n in image.shape[:2]:
            square = rng.integers(max(round(n * zoom) - self.source, 0) + 1)
            corner.append(int(square + rng.integers(self.source - self.side + 1)))
        top, left = corner
        if zoom > 1:
            top, left = top / zoom, left / zoom
        crop = cut(image, top, left, self.side / zoom, self.size)
        return _mirrored(crop, self.flip, rng)


View = RandomCrops | SourceCrops


def make_views(
    *,
    crop: int | None = None,
    scale: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
    crops_per_image: int = 1,
    views: Sequence[Mapping[str, float]] = (),
    source_crop: int | None = None,
) -> tuple[View, ...]:
    """The views of a recipe: one `RandomCrops` of `crop`, or a mixture of `views`.

    Each of `views` is either dict(resize=512, ...), squares of `source_crop` reduced to 512, or
    dict(crop=512, ...), random crops of them; with `chance`, the share of the steps that have this
    view (together 1), and `batch`, the share of the full batch that they have (1). With views,
    `crop` and `scale` have no meaning. Raises OneDCError for what does not fit together.
    """
    if crops_per_image < 1:
        raise OneDCError(f"crops_per_image={crops_per_image}: wanted is a whole number from 1")
    if not views:
        if not crop or crop < 1:
            raise OneDCError(f"crop={crop}: wanted are the pixels a side of what is trained on")
        if not 0 < scale[0] <= scale[1]:
            raise OneDCError(f"scale={tuple(scale)}: wanted are two factors, the lower one first")
        return (RandomCrops(crop, crops_per_image, tuple(scale), flip),)
    made = tuple(_source_crops(dict(view), source_crop, crops_per_image, flip) for view in views)
    if abs(sum(view.chance for view in made) - 1) > 1e-6:
        raise OneDCError(f"views: their chances {[view.chance for view in made]} do not sum to 1")
    return made


def _source_crops(view: dict, source: int | None, count: int, flip: bool) -> SourceCrops:
    unknown = view.keys() - {"resize", "crop", "chance", "batch"}
    if unknown or ("resize" in view) == ("crop" in view):
        raise OneDCError(f"view {view}: wanted is resize= or crop=, with chance= and batch=")
    size = view.get("resize") or view["crop"]
    if not source or not 1 <= size <= source:
        raise OneDCError(f"view {view}: does not fit into source_crop={source}")
    chance, share = view.get("chance", 1.0), view.get("batch", 1.0)
    if not (0 < chance <= 1 and 0 < share <= 1):
        raise OneDCError(f"view {view}: chance and batch are shares, above 0 and at most 1")
    side = source if "resize" in view else size
    return SourceCrops(size, side, source, count, flip, chance, share)


def cut(image: np.ndarray, top: float, left: float, side: float, size: int) -> np.ndarray:
    """A square of `side` pixels, brought to `size` -> uint8 [size, size, 3].

    Corner and side may lie between pixels. Nothing is resampled where it has `size` whole ones.
    """
    y, x = int(top), int(left)
    part = image[y : math.ceil(top + side), x : math.ceil(left + side)]
    if side == size and (y, x) == (top, left):
        return part
    right, bottom = min(left - x + side, part.shape[1]), min(top - y + side, part.shape[0])
    box = (left - x, top - y, right, bottom)
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.LANCZOS, box))


def _mirrored(crop: np.ndarray, flip: bool, rng: np.random.Generator) -> np.ndarray:
    return crop[:, :: -1 if flip and rng.random() < 0.5 else 1]
