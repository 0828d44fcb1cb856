"""How far one picture is from another, by every metric there is of two pictures."""

from collections.abc import Callable, Collection
from pathlib import Path

import jax
import numpy as np

from onedc_jax import metrics
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models import lpips
from onedc_jax.models.dists import DISTS, SMALLEST, load_dists
from onedc_jax.models.lpips import LPIPS

NAMES = ("psnr", "ms_ssim", *(f"lpips_{net}" for net in lpips.SMALLEST), "dists")
"""All metrics that there are, where their weights are."""

# Pixels of an original whose features are kept: VGG's take half a kilobyte for each, twice.
_KEPT = 1 << 20


class Distances:
    """Metrics of two pictures, all of `NAMES` or some, each compiled once for a shape.

    Calls with the same original one after the other take half of the time, below a megapixel.

    `names` are the metrics that it gives, in the order of a table: "psnr" (dB, higher is closer),
    "ms_ssim" (at most 1, higher is closer), "lpips_alex", "lpips_vgg" and "dists" (0 for equal
    pictures, lower is closer). `missing` says in a line each which could not be loaded, and what to
    do; they are left out of `names` and of the values.
    """

    def __init__(self, names: Collection[str] = NAMES, dists_file: str | Path | None = None):
        """`dists_file`: of DISTS' weights, instead of the package's.

        Raises OneDCError for a name that is none of NAMES.
        """
        for name in names:
            if name not in NAMES:
                raise OneDCError(f"{name}: no such metric; there are {', '.join(NAMES)}")
        self._metrics: dict[str, tuple[int, Callable]] = {}
        self.missing: list[str] = []
        for name in (name for name in NAMES if name in names):
            try:
                self._metrics[name] = _load(name, dists_file)
            except ModelError as error:
                self.missing.append(f"without {name}: {error}")
        self.names = tuple(self._metrics)

    def batch(
        self, a: np.ndarray, b: np.ndarray, names: Collection[str] | None = None
    ) -> dict[str, np.ndarray | None]:
        """uint8 [B, H, W, 3] twice -> {name: float32 [B]}, None where they are too small for it.

        Of all metrics, or of those of `names` alone.
        Raises OneDCError if the two differ in shape or are not batches of colour images.
        """
        for x in (a, b):
            if x.ndim != 4 or x.shape[3] != 3 or x.dtype != np.uint8:
                raise OneDCError(
                    f"pictures to compare are uint8 [B, H, W, 3]; got {x.dtype} {list(x.shape)}"
                )
        if a.shape != b.shape:
            sizes = " and ".join(f"{len(x)} of {x.shape[2]}×{x.shape[1]} pixels" for x in (a, b))
            raise OneDCError(f"only pictures of one size can be compared; these are {sizes}")
        side = min(a.shape[1:3])
        return {
            name: np.asarray(distance(a, b)) if side >= least else None
            for name, (least, distance) in self._metrics.items()
            if names is None or name in names
        }

    def __call__(
        self, a: np.ndarray, b: np.ndarray, names: Collection[str] | None = None
    ) -> dict[str, float | None]:
        """uint8 [H, W, 3] twice -> {name: value}, None where they are too small for it.

        `names` is as in `batch`. Raises OneDCError if the two differ in size or are not colour
        images.
        """
        values = self.batch(a[None], b[None], names)
        return {name: None if value is None else value.item() for name, value in values.items()}


def _load(name: str, dists_file: str | Path | None) -> tuple[int, Callable]:
    """The least side in pixels, and the distance of uint8 batches of one shape.

    Raises ModelError where its weights are not there.
    """
    if name == "psnr":
        return 1, metrics.psnr
    if name == "ms_ssim":
        return metrics.MS_SSIM_MIN_SIDE, metrics.ms_ssim
    if name == "dists":
        return SMALLEST, _Learned(DISTS(), load_dists(dists_file))
    net = name.removeprefix("lpips_")
    return lpips.SMALLEST[net], _Learned(LPIPS(net), lpips.load_lpips(net))


class _Learned:
    """A distance of networks' features. The last original's are kept, for the next codec's turn."""

    def __init__(self, model: LPIPS | DISTS, params: dict):
        # Else a GPU or TPU would round what is multiplied to TF32 or bfloat16.
        def features(params: dict, x: jax.Array) -> list[jax.Array]:
            with jax.default_matmul_precision("highest"):
                return model.apply({"params": params}, x / np.float32(255), method="features")

        def distance(params: dict, kept: list[jax.Array], x: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                return model.apply({"params": params}, kept, features(params, x), method="compare")

        self._params = jax.device_put(params)
        self._features, self._distance = jax.jit(features), jax.jit(distance)
        self._last = np.zeros(0), []

    def __call__(self, a: np.ndarray, b: np.ndarray) -> jax.Array:
        if not np.array_equal(a, self._last[0]):
            self._last = np.zeros(0), []  # before the next ones take memory
            self._last = a.copy(), self._features(self._params, a)
        distance = self._distance(self._params, self._last[1], b)
        if a[..., 0].size > _KEPT:
            self._last = np.zeros(0), []
        return distance
