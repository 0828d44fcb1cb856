"""Networks on arrays that are larger than the images in them.

A program is compiled for arrays of one size; people's images have thousands. In the context of
`within` the networks of this package see each image of a batch end where it does, not where its
array does: what they make of it is what they make of the image alone, up to the order of sums.
Beyond an image's end there is nothing of interest.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.layers import (
    AttnBlock,
    Conv,
    DepthwiseConv3x3,
    GroupNorm,
    inside,
)
from onedc_jax.models.transform import BlockInverse
from onedc_jax.models.unet import Attention, SelfAttention
from onedc_jax.models.vae import WindowAttention

Array = jax.Array


def within(
    sizes: Array,
    blocks: tuple[int, int],
    seen: list | None = None,
    statistics: list | None = None,
):
    """The context. An image has at least one block.

    Convolutions see zeros beyond the end, attention looks at no position there, norms' statistics
    are of the image alone, and where blocks overlap its last row and column of them are repeated.

    Args:
      sizes, blocks: as for `layers.inside`.
      seen: where to put the statistics of the norms over whole images (`GroupNorm.moments`), in the
        order in which they run.
      statistics: as in `seen`, what these norms take in place of their own.
    """
    seen = [] if seen is None else seen

    def here(x: Array) -> Array:
        return inside(sizes, blocks, *x.shape[1:3])

    def keys(x: Array) -> Array:
        """For positions in a row, [B, N, C], which are the image's: [B, N]."""
        scale = math.isqrt(x.shape[1] // (blocks[0] * blocks[1]))
        there = inside(sizes, blocks, scale * blocks[0], scale * blocks[1])
        return there.reshape(len(sizes), -1)

    def call(next_function, args, kwargs, context):
        x = args[0] if args else None
        match context.module if context.method_name in ("__call__", "of_upsampled") else None:
            case Conv(size=size) if size > 1:
                args = (jnp.where(here(x), x, 0), *args[1:])
            case DepthwiseConv3x3():
                args = (jnp.where(here(x), x, 0), *args[1:])
            case BlockInverse():
                args = (_extended(x, sizes, blocks), *args[1:])
            case GroupNorm(groups=groups) if groups and len(args) == 1:
                given = None if statistics is None else statistics[len(seen)]
                seen.append(context.module.moments(x, here(x)))
                kwargs = kwargs | dict(statistics=given or seen[-1])
            case AttnBlock() | SelfAttention() | WindowAttention():
                kwargs = kwargs | dict(mask=here(x))
            case Attention():
                kwargs = kwargs | dict(mask=keys(args[1]))
        return next_function(*args, **kwargs)

    return nn.intercept_methods(call)


def _extended(x: Array, sizes: Array, blocks: tuple[int, int]) -> Array:
    """x [B, h, w, C] with the last row and column of each image repeated to the array's end."""
    for axis in (1, 2):
        length = x.shape[axis]
        ends = sizes[:, axis - 1] * (length // blocks[axis - 1])
        places = jnp.minimum(jnp.arange(length)[None], ends[:, None] - 1)  # [B, length]
        shape = [len(x), 1, 1, 1]
        shape[axis] = length
        x = jnp.take_along_axis(x, places.reshape(shape), axis)
    return x
