"""Rounding, bounds and finite scalar quantisation (FSQ): small functions with chosen gradients."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

FSQ_LEVELS = 4  # per channel
FSQ_CHANNELS = 7
CODEBOOK_SIZE = FSQ_LEVELS**FSQ_CHANNELS  # 16384: 14 bits a token

_HALF_LEVELS = FSQ_LEVELS // 2
_HALF_WIDTH = (FSQ_LEVELS - 1) * (1 + 1e-3) / 2
_OFFSET = 0.5  # an even number of levels lies off centre
_SHIFT = math.atanh(_OFFSET / _HALF_WIDTH)


@jax.custom_jvp
def ste_round(x: Array) -> Array:
    """Round half to even, exactly, with the gradient of the identity (straight-through)."""
    return jnp.round(x)


@ste_round.defjvp
def _ste_round_jvp(primals, tangents):
    return jnp.round(primals[0]), tangents[0]


@jax.custom_vjp
def lower_bound(x: Array, bound: float) -> Array:
    """max(x, bound); the gradient also passes below the bound where a descent step raises x."""
    return jnp.maximum(x, bound)


def _lower_bound_fwd(x, bound):
    return jnp.maximum(x, bound), x >= bound


def _lower_bound_bwd(above, g):
    return jnp.where(above | (g < 0), g, 0), None


lower_bound.defvjp(_lower_bound_fwd, _lower_bound_bwd)


def fsq(z: Array) -> Array:
    """Quantises float [..., 7] to codes in {-1, -1/2, 0, 1/2}, float32, straight-through."""
    bounded = jnp.tanh(z.astype(jnp.float32) + _SHIFT) * _HALF_WIDTH - _OFFSET
    return ste_round(bounded) / _HALF_LEVELS


def codes_to_indices(codes: Array) -> Array:
    """`fsq` codes [..., 7] -> tokens int32 [...] in [0, 16384), first channel least significant."""
    digits = jnp.round(codes * _HALF_LEVELS).astype(jnp.int32) + _HALF_LEVELS
    return (digits << (2 * jnp.arange(FSQ_CHANNELS)).reshape((1,) * (codes.ndim - 1) + (-1,))).sum(
        -1
    )


def indices_to_codes(indices: Array) -> Array:
    """The inverse of `codes_to_indices`: int [...] -> float32 [..., 7]."""
    shifts = (2 * jnp.arange(FSQ_CHANNELS)).reshape((1,) * indices.ndim + (-1,))
    digits = (indices[..., None] >> shifts) & (FSQ_LEVELS - 1)
    return (digits - _HALF_LEVELS).astype(jnp.float32) / _HALF_LEVELS
