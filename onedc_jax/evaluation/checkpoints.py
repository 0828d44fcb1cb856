"""A model in training, measured through bytes as `onedc eval` measures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onedc_jax import metrics as measures
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.loading import assembled
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import results
from onedc_jax.evaluation.distances import NAMES, Distances


class Coded:
    """Images that models are measured on, and how; `names` are those of the numbers."""

    def __init__(self, images: Path, limit: int, metrics: Sequence[str]):
        """The first `limit` images of a folder; `metrics` are names of `Distances`.

        Raises OneDCError for a folder without images, or a metric that cannot be had here.
        """
        for name in metrics:
            if name not in NAMES:
                raise OneDCError(f"config.coded.metrics: no {name}; there are {', '.join(NAMES)}")
        nets = [name.removeprefix("lpips_") for name in metrics if name.startswith("lpips_")]
        self._distances = Distances(nets, dists="dists" in metrics)
        if self._distances.missing:
            raise OneDCError(f"config.coded.metrics: {'; '.join(self._distances.missing)}")
        self.names = ("bpp", *metrics)
        self._images = [results.read_image(picture) for picture in results.find([images], limit)]

    def __call__(self, config: Mapping[str, Any], params: Any) -> dict[str, float]:
        """{"bpp" and each metric: the mean over the images} of a model, on a device of its own.

        NaN for a metric that all images are too small for.
        """
        codec = assembled("the model in training", config, params)
        rows = [self._measure(codec, image) for image in self._images]
        found = {name: [row[name] for row in rows if row[name] is not None] for name in self.names}
        return {name: statistics.fmean(v) if v else float("nan") for name, v in found.items()}

    def _measure(self, codec: Codec, image: np.ndarray) -> dict[str, float | None]:
        data = codec.encode(image)
        rate = measures.bpp(data, *image.shape[:2])
        return {"bpp": rate} | self._distances(image, codec.decode(data))
