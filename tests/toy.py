"""A stage that compiles in no time, for what the loop does with any stage.

As a script it trains: python tests/toy.py WORKDIR KEY=VALUE ... [--coordinator=.. etc.]
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from onedc_jax import checkpoint
from onedc_jax.errors import OneDCError
from onedc_jax.training import loop
from onedc_jax.training.optimizer import make_optimizer
from onedc_jax.training.state import (
    Stage,
    gradient_update,
    init_state,
    measured,
)

EXAMPLES = Path(__file__).parent.parent / "examples"


def make(config) -> Stage:
    """Learns the mean colour of images through a matrix; with noise, so that keys matter."""
    optimizer = make_optimizer(config)

    def init():
        params = dict(a=dict(matrix=jnp.eye(256)), colour=jnp.zeros(3))
        return init_state(params, optimizer, config.ema), dict(target=config.target * jnp.ones(3))

    def loss(params, frozen, batch, key, step):
        image = batch["image"].astype(jnp.float32) / 255  # [B, H, W, 3]
        noise = 0.01 * jax.random.normal(key, image.shape[:1])
        mean = image.mean((1, 2)) + noise[:, None]
        spread = jnp.square(params["a"]["matrix"]).mean()
        distance = jnp.square(mean - params["colour"][None]).mean() + spread
        bad = jnp.where(step == config.bad_step, jnp.nan, 1.0)
        total = distance * jnp.where(params["colour"].sum() > 1e9, 1.0, bad)
        return total, dict(loss=total, brightness=mean.mean())

    def panel(state, frozen, batch):
        return dict(original=batch["image"] / 127.5 - 1.0)

    def export(state, frozen):
        return dict(toy=state.averaged)

    def rare(*args):
        return 0.0 * loss(*args)[0], dict(rare=args[-1] + 1.0)

    updates = dict(model=gradient_update(loss, optimizer, config.ema, config.accumulate))
    due = lambda step, name: True
    if config.rare:
        updates = dict(rare=_without_step(gradient_update(rare, optimizer, 0.0, 1))) | updates
        due = lambda step, name: name == "model" or step % config.rare == 0

    def check():
        if config.lacks:
            raise OneDCError("nothing to begin with")
        return []

    known = {"toy": {}}, due, measured(loss), config.block, check
    return Stage(init, updates, panel, export, *known)


def _without_step(update):
    """An update that leaves the state as it is."""
    return lambda state, *args: (state, update(state, *args)[1])


def recipe(**changes):
    config = config_dict.create(
        stage="toy",
        seed=0,
        steps=6,
        batch_size=8,
        accumulate=1,
        trainable=".*",
        model={},
        bad_step=-1,
        block=1,
        lacks=False,
        target=1.0,  # a frozen weight
        rare=0,  # every so many steps there is a second update
        ema=0.9,
        lr=0.05,
        schedule="constant",
        final_lr=1.0,
        warmup=2,
        muon=0.0,
        weight_decay=0.0,
        b2=0.999,
        clip=1.0,
        mesh=dict(data=-1, fsdp=1),
        data=dict(
            root=str(EXAMPLES),
            validation=str(EXAMPLES),
            keep={},
            crop=64,
            scale=(0.5, 1.0),
            crops_per_image=1,
            threads=1,
            workers=0,
            cache_gib=0.1,
            captions="",
        ),
        log_every=1,
        checkpoint_every=2,
        keep_last=2,
        best="",
        validation_batches=0,
        tensorboard=False,
        panel_images=2,
    )
    config.update_from_flattened_dict(changes)
    return config


def full(*args, **options):
    """A disk that has no space left for what is not the state."""
    raise OSError("No space left on device")


loop.STAGES["toy"] = make


if __name__ == "__main__":
    from onedc_jax.distributed import initialize

    options = dict(a.lstrip("-").split("=") for a in sys.argv[2:])
    place = {k: options.pop(k) for k in ("coordinator", "processes", "process") if k in options}
    if place:
        initialize(place["coordinator"], int(place["processes"]), int(place["process"]))
    broken = options.pop("broken", "")
    if broken and jax.process_index() == 0:
        setattr(*{"picture": (loop, "save_panel"), "model": (checkpoint, "_replace")}[broken], full)
    values = {k: float(v) if "." in v else int(v) for k, v in options.items()}
    try:
        loop.train(recipe(**values), sys.argv[1])
    except (OneDCError, OSError) as error:
        sys.exit(f"toy: {error}")
