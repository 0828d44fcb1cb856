"""The numbers of a recipe: what none of them can be."""

import math

from onedc_jax.errors import OneDCError

_FROM_1 = (
    *("steps", "batch_size", "accumulate", "checkpoint_every", "log_every", "keep_last"),
    *("generator_every", "data.crop", "data.crops_per_image", "data.threads"),
)
_FROM_0 = ("seed", "warmup", "panel_images", "validation_batches", "data.workers")
_ABOVE_0 = ("lr", "clip")  # clip=inf clips nothing
_SHARES = ("ema", "b2")  # from 0 to below 1
# Those of jax.checkpoint_policies that are policies; the others make some, of arguments.
_POLICIES = (
    *("everything_saveable", "nothing_saveable", "dots_saveable"),
    "dots_with_no_batch_dims_saveable",
)


def check_numbers(config) -> None:
    """Raises OneDCError for the first value of a recipe that no training can have.

    What a stage's recipe does not have is not looked at.
    """
    flat = _flat(config.to_dict())
    rules = (
        (_FROM_1, lambda x: x >= 1, "1 or more"),
        (_FROM_0, lambda x: x >= 0, "0 or more"),
        (_ABOVE_0, lambda x: x > 0, "above 0"),
        (_SHARES, lambda x: 0 <= x < 1, "from 0 to below 1"),
    )
    for names, holds, wanted in rules:
        for name in names:
            if name in flat and (math.isnan(flat[name]) or not holds(flat[name])):
                raise OneDCError(f"config.{name}={flat[name]}: must be {wanted}")
    scale = flat.get("data.scale", (1, 1))
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise OneDCError(f"config.data.scale={scale}: must be two numbers above 0, in order")
    for name in ("dtype", "frozen_dtype"):
        if flat.get(name, "float32") not in ("float32", "bfloat16"):
            raise OneDCError(f"config.{name}={flat[name]!r}: must be float32 or bfloat16")
    if flat.get("remat", "") not in ("", *_POLICIES):
        raise OneDCError(f"config.remat={flat['remat']!r}: must be one of {', '.join(_POLICIES)}")


def _flat(values: dict, before: str = "") -> dict:
    """Nested values by names with dots."""
    flat = {}
    for name, value in values.items():
        name = f"{before}{name}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
