"""The text encoder of CLIP (Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", 2021), as Stable Diffusion 1.5 uses it: captions for the scores of stage 2.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from onedc_jax.models.attention import attention
from onedc_jax.models.layers import Dense

Array = jax.Array


class SelfAttention(nn.Module):
    """Attention among x [B, N, C], with `bias` [1, N, N] on the logits -> [B, N, C]."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> Array:
        dense = partial(Dense, x.shape[-1], dtype=self.dtype)
        q, k, v = (
            dense(name=name)(x).reshape(*x.shape[:2], self.heads, -1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        return dense(name="out_proj")(attention(q, k, v, bias=bias).reshape(x.shape))


class Perceptron(nn.Module):
    """The last axis through a hidden layer with x·sigmoid(1.702·x), a quick stand-in for GELU."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y * nn.sigmoid(1.702 * y))


class Layer(nn.Module):
    """Attention and perceptron, each normalised before, residual."""

    heads: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, bias: Array) -> Array:
        norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=x.dtype)
        y = norm(name="layer_norm1")(x)
        x += SelfAttention(self.heads, self.dtype, name="self_attn")(y, bias)
        y = norm(name="layer_norm2")(x)
        return x + Perceptron(self.hidden, self.dtype, name="mlp")(y)


class TextEncoder(nn.Module):
    """Token ids -> features. Defaults are those of CLIP ViT-L/14.

    Fields:
      vocabulary: how many tokens there are; the last is the end of the text.
      length: the most tokens of a text.
      width, layers, heads: of the transformer.
      hidden: width of the perceptrons inside.
      dtype: in which products are computed.
    """

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Array) -> tuple[Array, Array]:
        """Ids, int [B, N], N at most `length` -> features [B, N, width] and [B, width], float32.

        The features of a token depend on it and those before. The second output is the features of
        the first token with the highest id: the end of the text, which also fills up the rest.
        """
        length = ids.shape[1]
        if length > self.length:
            raise ValueError(f"a text has at most {self.length} tokens; got {length}")
        positions = nn.Embed(self.length, self.width, name="position_embedding")(jnp.arange(length))
        x = nn.Embed(self.vocabulary, self.width, name="token_embedding")(ids) + positions[None]
        x = x.astype(self.dtype)
        past = jnp.tril(jnp.ones((1, length, length), bool))
        bias = jnp.where(past, 0.0, -jnp.inf)
        for i in range(self.layers):
            x = Layer(self.heads, self.hidden, self.dtype, name=f"layers_{i}")(x, bias)
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="final_layer_norm")
        x = norm(x.astype(jnp.float32))
        end = jnp.argmax(ids, axis=1)
        return x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


def empty_caption(vocabulary: int, length: int) -> Array:
    """The ids of no words, int32 [length]: a beginning, then ends; the vocabulary's last two."""
    return jnp.full(length, vocabulary - 1, jnp.int32).at[0].set(vocabulary - 2)
