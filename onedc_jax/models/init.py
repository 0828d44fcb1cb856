"""Random parameters, drawn on the host.

Compiled as one program, a model's thousand random draws take XLA minutes. Here every array is drawn
from (seed, path) by NumPy: in a second, and the same on any device, mesh and version.
"""

import zlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from onedc_jax.trees import map_named

# Where a residual branch ends: full-size branches would double the variance with every block. The
# last two make the generator's noisy latent, which the step to x0 amplifies.
_BRANCH_ENDS = {
    *("dw_out", "ffn_out", "conv2", "proj_out", "to_out_0", "net_2"),
    *("blocks_5", "short_cut"),
}
_BRANCH_GAIN = 0.25


def shapes_of(module: nn.Module, *inputs: Any) -> Any:
    """Shapes and dtypes of a module's parameters, given its inputs or their shapes.

    Nothing is computed, but tracing a large network takes seconds.
    """
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def random_params(shapes: Any, seed: int) -> Any:
    """Float32 arrays for a tree of shapes, as of `shapes_of`.

    By the leaf's name: kernels and embeddings are normal with variance 1 / fan-in (kernels that end
    a residual branch a sixteenth of that), `lora_a` He-uniform, scales one, and all else (biases,
    `lora_b`) zero.
    """

    def draw(name: str, leaf) -> np.ndarray:
        *_, module, kind = ("", *name.split("/"))
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
        match kind:
            case "kernel" | "embedding":
                gain = (_BRANCH_GAIN if module in _BRANCH_ENDS else 1.0) * fan_in**-0.5
                return rng.standard_normal(leaf.shape, np.float32) * np.float32(gain)
            case "lora_a":
                bound = np.sqrt(6.0 / fan_in)
                return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)
            case "scale":
                return np.ones(leaf.shape, np.float32)
            case _:
                return np.zeros(leaf.shape, np.float32)

    return map_named(draw, shapes)
