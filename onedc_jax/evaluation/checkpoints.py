"""A model in training, measured through bytes as `onedc eval` measures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onedc_jax import metrics as measures
from onedc_jax.coding.codec import Codec
from onedc_jax.coding.loading import assembled
from onedc_jax.coding.programs import Programs
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import results
from onedc_jax.evaluation.distances import Distances


class Coded:
    """Images that models are measured on, and how; `names` are those of the numbers."""

    def __init__(self, images: Path, limit: int, metrics: Sequence[str]):
        """The first `limit` images of a folder; `metrics` are names of `Distances`.

        Raises OneDCError for a folder without images, or a metric that cannot be had here.
        """
        try:
            self._distances = Distances(metrics)
        except OneDCError as error:
            raise OneDCError(f"config.coded.metrics: {error}") from error
        if self._distances.missing:
            raise OneDCError(f"config.coded.metrics: {'; '.join(self._distances.missing)}")
        self.names = ("bpp", *metrics)
        self._programs = Programs()  # of all models: only their parameters differ
        self._images = [results.read_image(picture) for picture in results.find([images], limit)]

    def __call__(self, config: Mapping[str, Any], params: Any) -> dict[str, float]:
        """{"bpp" and each metric: the mean over the images} of a model, on a device of its own.

        The configuration must be that of every call. NaN for a metric that all images are too small
        for.
        """
        codec = assembled("the model in training", config, params, self._programs)
        rows = [self._measure(codec, image) for image in self._images]
        found = {name: [row[name] for row in rows if row[name] is not None] for name in self.names}
        return {name: statistics.fmean(v) if v else float("nan") for name, v in found.items()}

    def _measure(self, codec: Codec, image: np.ndarray) -> dict[str, float | None]:
        data = codec.encode(image)
        rate = measures.bpp(data, *image.shape[:2])
        return {"bpp": rate} | self._distances(image, codec.decode(data))
