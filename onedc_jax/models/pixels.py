"""The scales of pixels: uint8, [-1, 1] as networks have them, and [0, 1]."""

import jax
import jax.numpy as jnp

Array = jax.Array


def from_uint8(image: Array) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1


def to_uint8(image: Array) -> Array:
    """Float in [-1, 1] -> uint8."""
    return jnp.round((image.astype(jnp.float32) + 1) * 127.5).astype(jnp.uint8)


def to_unit(image: Array) -> Array:
    """[-1, 1] -> [0, 1], where distances are taken."""
    return (image + 1) / 2
