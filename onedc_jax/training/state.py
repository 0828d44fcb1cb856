"""Training state: arrays only. Which parameters train is a matter of their paths."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from onedc_jax.errors import OneDCError

Array = jax.Array
Tree = Any


class TrainState(struct.PyTreeNode):
    """What a step changes. `params` and `ema` have None where a parameter is frozen."""

    step: Array  # int32 []
    params: Tree
    opt_state: Tree
    ema: Tree


class Stage(NamedTuple):
    """What the loop knows of a training stage.

    `init() -> (state, frozen)`; `update(state, frozen, batch, key) -> (state, metrics)`, pure and
    jittable; `panel(state, frozen, batch) -> {name: image [B, H, W, 3] in [-1, 1]}`, to look at;
    `export(state, frozen) -> params` and `model` (its configuration) make the model directory.
    """

    init: Callable
    update: Callable
    panel: Callable
    export: Callable
    model: dict


def paths(tree: Tree) -> list[str]:
    """The "/"-joined paths of a tree's leaves, in the tree's order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def partition(params: Tree, trainable: str) -> tuple[Tree, Tree]:
    """Splits by whether a path matches the regular expression (from its beginning).

    Returns two trees of the same structure with None in each other's places. Raises OneDCError when
    nothing matches.
    """
    matches = [bool(re.match(trainable, path)) for path in paths(params)]
    if not any(matches):
        raise OneDCError(f"trainable={trainable!r} matches no parameter, e.g. {paths(params)[0]!r}")
    mask = jax.tree.unflatten(jax.tree.structure(params), matches)
    select = lambda wanted: jax.tree.map(lambda x, m: x if m is wanted else None, params, mask)
    return select(True), select(False)


def merge(params: Tree, others: Tree) -> Tree:
    """The inverse of `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, params, others, is_leaf=lambda x: x is None
    )


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping.

    The rate warms up, then stays constant or decays as a cosine until `config.steps`.
    """
    if config.schedule == "constant":
        rate = optax.linear_schedule(0.0, config.lr, config.warmup)
    elif config.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, config.lr, config.warmup, config.steps, config.lr * config.final_lr
        )
    else:
        raise OneDCError(f"schedule={config.schedule!r}: expected constant or cosine")
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, b1=0.9, b2=config.b2, weight_decay=config.weight_decay),
    )


def init_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0; `params` are the trainable ones."""
    params, average = (jax.tree.map(jnp.array, params) for _ in range(2))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def gradient_update(
    loss: Callable, optimizer: optax.GradientTransformation, ema: float
) -> Callable:
    """The update of a stage with one loss.

    `loss(params, frozen, batch, key, step) -> (scalar, metrics)`, params as in the state. The
    moving average has decay min(ema, (1 + step) / (10 + step)), so that it forgets the start.
    """

    def update(state: TrainState, frozen: Tree, batch: dict, key: Array):
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, frozen, batch, key, state.step)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), state.ema, params)
        metrics = metrics | dict(grad_norm=optax.tree.norm(grads))
        return TrainState(state.step + 1, params, opt_state, average), metrics

    return update
