"""How far one set of pictures is from another: FID and KID, over patches of 256×256 pixels.

    network = Features(folder)  # by `onedc convert-part inception`
    originals = np.concatenate([network(patches(image)) for image in images])
    frechet_distance(originals, decoded), kernel_distance(originals, decoded)

FID from few patches is far too high, and only numbers from the same patches can be compared: the
literature's are of thousands.
"""

from pathlib import Path

import jax
import numpy as np

from onedc_jax import checkpoint
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.models.inception import Inception
from onedc_jax.models.init import shapes_of

PATCH = 256  # pixels a side
_BATCH = 8  # patches through the network at once

HOW_TO_GET = (
    "FID and KID need Inception's weights: download pt_inception-2015-12-05-6726825d.pth (of the "
    "project pytorch-fid), then onedc convert-part inception FILE --out DIR"
)


def patches(image: np.ndarray, size: int = PATCH) -> np.ndarray:
    """uint8 [H, W, 3] -> its patches [N, size, size, 3], as in HiFiC (Mentzer et al., 2020).

    Those of the grid that starts in the top left corner, then those of the grid that starts half a
    patch further down and right. What does not fill a patch is left out; N may be 0.
    """
    found = []
    for start in (0, size // 2):
        rest = image[start:, start:]
        rows, columns = rest.shape[0] // size, rest.shape[1] // size
        grid = rest[: rows * size, : columns * size].reshape(rows, size, columns, size, 3)
        found.append(grid.swapaxes(1, 2).reshape(rows * columns, size, size, 3))
    return np.concatenate(found)


class Features:
    """The network of FID and KID: patches, uint8 [N, S, S, 3] -> features, float32 [N, 2048].

    Patches go through it eight at a time, so that it is compiled once for a size.
    """

    def __init__(self, folder: str | Path):
        """`folder`: written by `onedc convert-part inception`. Raises ModelError for another."""
        config, params = checkpoint.load_model(folder)
        if "inception" not in config or "inception" not in params:
            raise ModelError(f"{folder}: holds no Inception network. {HOW_TO_GET}")
        image = jax.ShapeDtypeStruct((1, PATCH, PATCH, 3), np.float32)
        shapes = shapes_of(Inception(), image)
        checkpoint.check_tree(params["inception"], shapes)
        self._params = jax.device_put(params["inception"])
        self._apply = jax.jit(_features)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        count = len(patches)
        padded = np.concatenate(
            [patches, np.zeros((-count % _BATCH, *patches.shape[1:]), np.uint8)]
        )
        parts = [
            np.asarray(self._apply(self._params, padded[i : i + _BATCH]))
            for i in range(0, len(padded), _BATCH)
        ]
        return np.concatenate([np.zeros((0, 2048), np.float32), *parts])[:count]


def _features(params: dict, x: jax.Array) -> jax.Array:
    # Else a GPU or TPU would round what is multiplied to TF32 or bfloat16.
    with jax.default_matmul_precision("highest"):
        return Inception().apply({"params": params}, x)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID of two sets of features, [N, D] and [M, D], N and M at least 2 (Heusel et al., 2017).

    The squared Fréchet distance of the normal distributions with their means and covariances,
    |μ - ν|² + tr(A + B - 2 (AB)^½). With A = XᵀX and B = YᵀY the last trace is the sum of the
    singular values of XYᵀ: no root of a matrix is taken, and none fails where there are fewer
    features than dimensions.
    """
    a, b = _two_sets(a, b, "FID")
    means = a.mean(axis=0), b.mean(axis=0)
    x, y = (_short((v - mean) / np.sqrt(len(v) - 1)) for v, mean in zip((a, b), means, strict=True))
    traces = np.square(x).sum() + np.square(y).sum()
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + traces - 2 * cross)


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID of two sets of features, [N, D] and [M, D]: mean and standard deviation over subsets.

    Bińkowski et al. (2018): `squared_mmd` of `subsets` pairs of random subsets, all drawn from
    `seed`. A subset has `subset_size` of the features, or all where there are fewer in a set.
    """
    a, b = _two_sets(a, b, "KID")
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    values = [
        squared_mmd(*(v[rng.choice(len(v), size, replace=False)] for v in (a, b)))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """The squared maximum mean discrepancy of [N, D] and [M, D], estimated without bias.

    Its kernel is (x·y / D + 1)³. It may be little less than 0. N and M are at least 2.
    """
    a, b = _two_sets(a, b, "KID")
    kernel = {k: (x @ y.T / a.shape[1] + 1) ** 3 for k, x, y in (("aa", a, a), ("bb", b, b))}
    own = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernel.values())
    return float(own - 2 * ((a @ b.T / a.shape[1] + 1) ** 3).mean())


def _short(x: np.ndarray) -> np.ndarray:
    """A matrix with the XᵀX of x [N, D], of at most D rows."""
    return np.linalg.qr(x, mode="r") if len(x) > x.shape[1] else x


def _two_sets(a: np.ndarray, b: np.ndarray, name: str) -> tuple[np.ndarray, ...]:
    sets = tuple(np.asarray(x, np.float64) for x in (a, b))
    if any(x.ndim != 2 or len(x) < 2 for x in sets) or sets[0].shape[1] != sets[1].shape[1]:
        raise OneDCError(
            f"{name} compares sets [N, D] of at least two features; "
            f"got {list(sets[0].shape)} and {list(sets[1].shape)}"
        )
    return sets
