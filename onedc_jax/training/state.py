"""Training state: arrays only. Which parameters train is a matter of their paths."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from onedc_jax.errors import OneDCError
from onedc_jax.sharding import gathered
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.trees import map_named, named

Array = jax.Array
Tree = Any


class TrainState(struct.PyTreeNode):
    """What a step changes. `params` and `ema` have None where a parameter is frozen."""

    step: Array  # int32 []
    params: Tree
    opt_state: Tree
    ema: Tree  # None where nothing is averaged

    @property
    def averaged(self) -> Tree:
        """The parameters to look at and to keep: the moving average, if there is one."""
        return self.params if self.ema is None else self.ema


class Stage(NamedTuple):
    """What the loop knows of a training stage.

    `init() -> (state, frozen)`. `updates` are by name, in the order in which a step runs them:
    `update(state, frozen, batch, key) -> (state, metrics)`, pure and jittable; exactly one of those
    that a step runs advances `state.step`. `due(step, name)`, on the host, says whether a step runs
    an update. `panel(state, frozen, batch) -> {name: image [B, H, W, 3] in [-1, 1]}`, to look at;
    `export(state, frozen) -> params` and `model` (its configuration) make the model directory;
    `measure(state, frozen, batch, key) -> metrics` of images that were not trained on. Sides of
    images are multiples of `block` pixels. `check()`, before a run, raises OneDCError where what
    does not train has nothing to come from, and returns what the run goes without, in words.

    A metric is a scalar, but for "finite": whether each gradient of a trainable parameter is, [N].
    Where one of an update is not finite, `Programs` leaves the state as it was.
    """

    init: Callable
    updates: dict[str, Callable]
    panel: Callable
    export: Callable
    model: dict
    due: Callable = lambda step, name: True
    measure: Callable = lambda state, frozen, batch, key: {}
    block: int = 1
    check: Callable = lambda: []


def partition(params: Tree, trainable: str) -> tuple[Tree, Tree]:
    """Splits by whether a path matches the regular expression (from its beginning).

    Returns two trees of the same structure with None in each other's places. Raises OneDCError when
    nothing matches, and where it is no expression.
    """
    try:
        mask = map_named(lambda name, _: bool(re.match(trainable, name)), params)
    except re.error as error:
        raise OneDCError(f"trainable={trainable!r}: no regular expression ({error})") from error
    if not any(jax.tree.leaves(mask)):
        first = next(iter(named(params)))
        raise OneDCError(f"trainable={trainable!r} matches no parameter, e.g. {first!r}")
    select = lambda wanted: jax.tree.map(lambda x, m: x if m is wanted else None, params, mask)
    return select(True), select(False)


def check_begun(
    shapes: Tree, trainable: str, part: str, folder: str = "", option: str = ""
) -> None:
    """Raises OneDCError where not all of a part trains that begins at random.

    `folder` is what it begins as, where config.init.`option` says so.
    """
    _, frozen = partition(shapes, trainable)
    if not folder and jax.tree.leaves(frozen[part]):
        remedy = f"name a folder to begin with, config.init.{option}" if option else "let all train"
        raise OneDCError(
            f"trainable={trainable!r}: not all of {part} trains, and the rest would stay random; "
            f"{remedy}"
        )


def check_adapted(model, trainable: str, remedy: str) -> None:
    """Raises OneDCError where LoRA is to train in a model, a `OneDC`, that has none."""
    if "lora_" in trainable and not model.generator.unet.get("rank"):
        raise OneDCError(f"trainable={trainable!r}: the model has no LoRA; {remedy}")


def merge(params: Tree, others: Tree) -> Tree:
    """The inverse of `partition`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, params, others, is_leaf=lambda x: x is None
    )


def init_state(
    params: Tree, optimizer: optax.GradientTransformation, ema: float = 0.0
) -> TrainState:
    """A state at step 0; `params` are the trainable ones. Without `ema` nothing is averaged.

    What trains is float32, whatever it was read as: in fewer bits small steps, and those of a slow
    average, are lost to rounding.
    """
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    average = jax.tree.map(jnp.array, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def model_params(trainable: Tree, frozen: dict) -> Tree:
    """A model's parameters, of which those that do not train are frozen["model"]."""
    return merge(trainable, frozen["model"])


def one_loss(
    config,
    begin: Callable,
    loss: Callable,
    panel: Callable,
    *,
    model: dict,
    block: int,
    check: Callable,
    params_of: Callable = model_params,
    measure: Callable | None = None,
) -> Stage:
    """The stage that lowers one loss, with the optimizer of its configuration.

    `begin() -> (trainable, frozen)` are the parameters at step 0; `loss` is as in
    `gradient_update`, and so is `measure`, of which only the metrics count, by default `loss`;
    `panel(params, frozen, batch)` sees the model's averaged parameters, which are what is exported;
    `params_of(trainable, frozen)` says which. The rest is as in `Stage`.
    """
    optimizer = make_optimizer(config)

    def init() -> tuple[TrainState, dict]:
        trainable, frozen = begin()
        return init_state(trainable, optimizer, config.ema), frozen

    def export(state: TrainState, frozen: dict) -> Tree:
        return params_of(state.averaged, frozen)

    return Stage(
        init=init,
        updates=dict(model=gradient_update(loss, optimizer, config.ema, config.accumulate)),
        panel=lambda state, frozen, batch: panel(export(state, frozen), frozen, batch),
        export=export,
        model=model,
        measure=measured(measure or loss, config.accumulate),
        block=block,
        check=check,
    )


def gradient_update(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    ema: float = 0.0,
    accumulate: int = 1,
    advance: int = 1,
) -> Callable:
    """The update of a stage with one loss.

    `loss(params, frozen, batch, key, step) -> (scalar, metrics)`, params as in the state. The batch
    is taken in `accumulate` parts, one after the other, whose gradients and metrics are averaged.
    The moving average has decay min(ema, (1 + step) / (10 + step)), so that it forgets the start.
    `advance` is 0 for an update that another one of the same step follows.
    """

    def whole(params, frozen, *args):
        return loss(gathered(params), gathered(frozen), *args)

    gradient = jax.grad(whole, has_aux=True)

    def update(state: TrainState, frozen: Tree, batch: dict, key: Array):
        args = state.params, frozen, batch, key, state.step
        grads, metrics = averaged_over(gradient, accumulate, *args)
        squares = [jnp.square(g).sum() for g in jax.tree.leaves(grads)]
        # Behind a barrier: hundreds of sums fused into one kernel take XLA minutes to compile.
        squares = jnp.stack(jax.lax.optimization_barrier(squares))
        metrics |= dict(grad_norm=jnp.sqrt(squares.sum()), finite=jnp.isfinite(squares))
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        average = state.ema
        if average is not None:
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return TrainState(state.step + advance, params, opt_state, average), metrics

    return update


def measured(loss: Callable, accumulate: int = 1) -> Callable:
    """A stage's `measure`: the metrics of its loss, with the averaged parameters.

    As an update's, the batch is taken in `accumulate` parts, so that it needs no more memory.
    """

    def metrics(params, frozen, *args):
        return loss(gathered(params), gathered(frozen), *args)[1]

    def measure(state: TrainState, frozen: Tree, batch: dict, key: Array) -> dict[str, Array]:
        return averaged_over(metrics, accumulate, state.averaged, frozen, batch, key, state.step)

    return measure


def averaged_over(
    function: Callable, parts: int, params: Tree, frozen: Tree, batch: dict, key: Array, step: Array
) -> Tree:
    """The tree that `function(params, frozen, batch, key, step)` makes, averaged over a batch that
    is taken in parts, one after the other."""
    if parts == 1:
        return function(params, frozen, batch, key, step)
    # Interleaved: each device cuts what it holds, and nothing moves between them.
    split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, inputs):
        part, index = inputs
        out = function(params, frozen, part, jax.random.fold_in(key, index), step)
        return jax.tree.map(lambda a, b: a + b / parts, total, out), None

    batches = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], batches)
    shapes = jax.eval_shape(function, params, frozen, first, key, step)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    return jax.lax.scan(add, zeros, (batches, jnp.arange(parts)))[0]
