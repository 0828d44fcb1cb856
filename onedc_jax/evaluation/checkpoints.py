"""A model in training, measured through bytes as `onedc eval` measures."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onedc_jax import metrics as measures
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.loading import load
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import results
from onedc_jax.evaluation.distances import Distances


class Coded:
    """Images that models are measured on, and how; `names` are those of the numbers."""

    def __init__(self, images: Path, limit: int, metrics: Sequence[str]):
        """The first `limit` images of a folder; `metrics` are names of `Distances`.

        Raises OneDCError for a folder without images, or a metric that cannot be had here.
        """
        nets = [name.removeprefix("lpips_") for name in metrics if name.startswith("lpips_")]
        self._distances = Distances(nets, dists="dists" in metrics)
        missing = [name for name in metrics if name not in self._distances.names]
        if missing:
            reasons = self._distances.missing or [f"there are {', '.join(self._distances.names)}"]
            raise OneDCError(f"config.coded.metrics: no {missing[0]}: {'; '.join(reasons)}")
        self.names = ("bpp", *metrics)
        self._images = [results.read_image(picture) for picture in results.find([images], limit)]

    def __call__(self, model: Path) -> dict[str, float]:
        """{"bpp" and each metric: the mean over the images} of a model folder's codec.

        NaN for a metric that all images are too small for.
        """
        codec = load(model)
        rows = [self._measure(codec, image) for image in self._images]
        found = {name: [row[name] for row in rows if row[name] is not None] for name in self.names}
        return {name: statistics.fmean(v) if v else float("nan") for name, v in found.items()}

    def _measure(self, codec: Codec, image: np.ndarray) -> dict[str, float | None]:
        data = codec.encode(image)
        rate = measures.bpp(data, *image.shape[:2])
        return {"bpp": rate} | self._distances(image, codec.decode(data))
