"""Random parameters, drawn on the host.

Compiled as one program, a model's thousand random draws take XLA minutes. Here every array is drawn
from (seed, path) by NumPy: in a second, and the same on any device, mesh and version.
"""

import zlib
from typing import Any

import jax
import numpy as np


def random_params(shapes: Any, seed: int) -> Any:
    """Float32 arrays for a tree of shapes (from `jax.eval_shape` of a module's init).

    By the leaf's name: kernels are normal with variance 1 / fan-in, `lora_a` He-uniform, scales one, and
    all else (biases, `lora_b`) zero.
    """

    def draw(path, leaf) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        match name.rpartition("/")[2]:
            case "kernel":
                return rng.standard_normal(leaf.shape, np.float32) * np.float32(fan_in**-0.5)
            case "lora_a":
                bound = np.sqrt(6.0 / fan_in)
                return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
            case "scale":
                return np.ones(leaf.shape, np.float32)
            case _:
                return np.zeros(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
