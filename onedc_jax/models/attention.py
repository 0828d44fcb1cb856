"""Attention of any size: all logits at once, by cuDNN's fused kernel, or block by block."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from onedc_jax.sharding import attention_spec

Array = jax.Array

# Above this many logits, attention is computed by cuDNN's fused kernel where there is one, else a
# head and a block of queries at a time, so that memory grows linearly with the number of pixels.
_DENSE_LOGITS = 1 << 22
_QUERY_BLOCK = 256

_SPARE = 8  # channels that cuDNN's kernel is given for the mask: it takes multiples of 8


def attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, bias: Array | None = None
) -> Array:
    """softmax(q·kᵀ/√d)·v over the heads, q [B, N, h, d], k and v [B, M, h, d] -> [B, N, h, d].

    `mask`, boolean [B, M], says which keys there are. `bias`, float32 [B or 1, N, M], is added to
    the logits of every head; -inf keeps a query from a key. The softmax is float32. Large problems
    never hold all logits: half precision on an NVIDIA GPU runs in cuDNN's fused kernel, all else a
    head and a block of queries at a time.
    """
    batch, queries, heads, _ = q.shape
    if batch * heads * queries * k.shape[1] <= _DENSE_LOGITS:
        return _dense_attention(q, k, v, mask, bias)
    if _is_fused(q):
        return _fused_attention(q, k, v, mask, bias)
    return _block_attention(q, k, v, mask, bias)


def _is_fused(q: Array) -> bool:
    """Whether cuDNN has a fused kernel for such queries on the device that is in use."""
    device = jax.config.jax_default_device  # or a platform's name, or None
    if not isinstance(device, jax.Device):
        device = jax.local_devices(backend=device)[0]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] + _SPARE <= _widest_fused(device)


def _widest_fused(device: jax.Device) -> int:
    """The most channels of a head that cuDNN's fused kernel takes on a device, 0 where it cannot.

    The device may be one to compile for only.
    """
    try:
        capability = float(getattr(device, "compute_capability", 0))
    except ValueError:  # AMD's are names
        return 0
    # For more than 128 jax asks the device that is here, whichever the program is for.
    if capability >= 9 and jax.default_backend() == "gpu":
        return 256
    return 128 if capability >= 8 else 0


def _fused_attention(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """`attention` by cuDNN: bias, of all queries and keys, in the type of q.

    On a mesh all of them are cut alike, as that kernel wants them.
    """
    _, queries, _, width = q.shape
    q, k, v, mask, bias = _even(q, k, v, mask, bias)
    if mask is not None:
        q, k, v = _barred(q, k, v, mask)
    bias = None if bias is None else bias[:, None].astype(q.dtype)
    if spec := attention_spec(q.shape[0], q.shape[2]):
        q, k, v = (lax.with_sharding_constraint(x, spec) for x in (q, k, v))
        if bias is not None and len(bias) == len(q):
            bias = lax.with_sharding_constraint(bias, P(spec[0]))
    options = dict(scale=width**-0.5, implementation="cudnn")
    return jax.nn.dot_product_attention(q, k, v, bias, **options)[:, :queries, :, :width]


def _even(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> tuple:
    """The same with one query and one key more where their number is odd, as of captions.

    For gradients jax takes even numbers only. No query sees the key, and nobody the query.
    """
    rows, columns = (0, q.shape[1] % 2), (0, k.shape[1] % 2)
    if columns[1] and mask is None:
        mask = jnp.ones(k.shape[:2], bool)
    longer = lambda x, *axes: None if x is None else jnp.pad(x, [(0, 0), *axes])
    rest = ((0, 0), (0, 0))
    q, k, v = longer(q, rows, *rest), longer(k, columns, *rest), longer(v, columns, *rest)
    return q, k, v, longer(mask, columns), longer(bias, rows, columns)


def _barred(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array, Array]:
    """q, k and v of _SPARE channels more, by which no query finds a key that is not there.

    cuDNN would have the mask as a bias of every query and key, and give its gradient as well.
    """
    wider = lambda x, value: jnp.pad(x, [(0, 0)] * 3 + [(0, _SPARE)], constant_values=value)
    bars = jnp.where(mask, 0.0, -3e4).astype(k.dtype)[..., None, None]
    bars = jnp.broadcast_to(bars, (*k.shape[:3], _SPARE))
    return wider(q, 1e3), jnp.concatenate([k, bars], axis=-1), wider(v, 0.0)


def _dense_attention(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    bias = None if bias is None else bias[:, None]
    mask = None if mask is None else mask[:, None, None]
    weights = jax.nn.softmax(_adjusted(logits, q.shape[-1], mask, bias), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v)


def _block_attention(q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None) -> Array:
    """`attention` of one head and one block of queries at a time.

    Weights are divided by their sum after the product with v, to which they come as one channel
    more: on CPUs the softmax by itself takes longer than all the products.
    """
    batch, queries, heads, width = q.shape
    blocks = -(-queries // _QUERY_BLOCK)
    pad = (0, blocks * _QUERY_BLOCK - queries)
    q = jnp.pad(q, ((0, 0), pad, (0, 0), (0, 0)))
    q = q.reshape(batch, blocks, _QUERY_BLOCK, heads, width).transpose(3, 1, 0, 2, 4)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, 1)], constant_values=1.0)
    k, v = (x.transpose(2, 0, 1, 3) for x in (k, v))  # [h, B, M, d] and [h, B, M, d + 1]
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), pad, (0, 0)))
        bias = bias.reshape(-1, blocks, _QUERY_BLOCK, bias.shape[-1])
        bias = bias.transpose(1, 0, 2, 3)  # [n, B or 1, 256, M]
    mask = None if mask is None else mask[:, None]

    @jax.checkpoint  # in training too, no more than one block's weights are in memory
    def part(q, k, v, bias):
        logits = jnp.einsum("bnd,bmd->bnm", q, k, preferred_element_type=jnp.float32)
        logits = _adjusted(logits, width, mask, bias)
        weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
        weights = weights.astype(v.dtype)
        out = jnp.einsum("bnm,bmd->bnd", weights, v, preferred_element_type=jnp.float32)
        return (out[..., :-1] / out[..., -1:]).astype(v.dtype)

    def head(qkv):
        q, k, v = qkv
        return lax.map(lambda args: part(args[0], k, v, args[1]), (q, bias))

    out = lax.map(head, (q, k, v)).transpose(2, 1, 3, 0, 4)  # [B, n, 256, h, d]
    return out.reshape(batch, blocks * _QUERY_BLOCK, heads, width)[:, :queries]


def _adjusted(logits: Array, width: int, mask: Array | None, bias: Array | None) -> Array:
    """Products of q and k [..] as the softmax takes them; mask and bias are of as many axes."""
    logits *= width**-0.5
    if bias is not None:
        logits += bias
    if mask is not None:
        # Not -inf: where there is no key at all, what comes out is of no interest, but no NaN.
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    return logits
