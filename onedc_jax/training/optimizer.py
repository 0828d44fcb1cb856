"""What makes steps of gradients: AdamW, or Muon for kernels and AdamW for the rest."""

from typing import Any

import optax

from onedc_jax.errors import OneDCError
from onedc_jax.trees import map_named

Tree = Any

# Muon's step of orthogonalisation (Jordan, 2024). As a list of steps optax makes them a loop; five
# in a row for each of some hundred kernels take XLA minutes to compile.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

# Block transforms begin where they belong: they move less than what begins at random.
_TRANSFORMS, _TRANSFORM_RATE = {"block_transform", "block_inverse"}, 0.1


def make_optimizer(config, updates: int = 0) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping; with `config.muon`, Muon for kernels at that rate.

    Muon (Jordan, 2024) makes each kernel's step orthogonal, so that what all inputs have in common,
    as the brightness of an image, changes by no more than anything else does: Adam's steps add up
    over a kernel's inputs, and networks without norms bear only small ones. The rest's AdamW has
    Nesterov's momentum then, as Muon does. Block transforms take a tenth of either's steps.

    All rates warm up, then stay constant or decay as a cosine until `config.steps`, or the last of
    so many `updates`. Raises OneDCError for another schedule, and for a cosine no longer than its
    warm-up.
    """

    def rate(peak: float):
        if config.schedule == "constant":
            # Without steps, a linear schedule stays where it begins.
            return optax.linear_schedule(0.0 if config.warmup else peak, peak, config.warmup)
        if config.schedule == "cosine":
            last = updates or config.steps
            if last <= config.warmup:
                raise OneDCError(
                    f"steps={config.steps}: of {last} updates, where a cosine schedule needs more "
                    f"than its warm-up, warmup={config.warmup}: choose more steps or a smaller one"
                )
            return optax.warmup_cosine_decay_schedule(
                0.0, peak, config.warmup, last, peak * config.final_lr
            )
        raise OneDCError(f"schedule={config.schedule!r}: expected constant or cosine")

    if config.muon:
        rule = optax.contrib.muon(
            rate(config.muon),
            ns_coeffs=(_NEWTON_SCHULZ,) * 5,
            weight_decay=config.weight_decay,
            adam_learning_rate=rate(config.lr),
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        rule = optax.adamw(rate(config.lr), b1=0.9, b2=config.b2, weight_decay=config.weight_decay)
    slower = optax.masked(optax.scale(_TRANSFORM_RATE), _in_transforms)
    return optax.chain(optax.clip_by_global_norm(config.clip), rule, slower)


def _in_transforms(params: Tree) -> Tree:
    """Which parameters are those of block transforms (`models/transform.py`), booleans."""
    return map_named(lambda name, _: not _TRANSFORMS.isdisjoint(name.split("/")), params)


def _matrices(params: Tree) -> Tree:
    """How kernels are matrices from inputs to outputs, for Muon; None for all other parameters."""
    numbers = optax.contrib.MuonDimensionNumbers

    def matrix(name: str, x):
        # A depthwise kernel [h, w, 1, C] is no matrix, but C filters apart.
        if name.rpartition("/")[2] != "kernel" or x.ndim not in (2, 4) or x.shape[-2] == 1:
            return None
        return numbers(tuple(range(x.ndim - 1)), x.ndim - 1)

    return map_named(matrix, params)
