"""The training loop of every stage: mesh, data, steps, checkpoints, metrics, pictures.

The state at step k and the data of step k depend on (configuration, k) alone, so a run that was
killed continues as if nothing had happened when the same command is given again.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from onedc_jax.checkpoint import save_model
from onedc_jax.data import ImageFolder, batches
from onedc_jax.errors import OneDCError
from onedc_jax.log import JsonLines, save_panel
from onedc_jax.sharding import batch_sharding, make_mesh, replicated, shard_by_shape
from onedc_jax.training import autoencoder, stage1
from onedc_jax.training.state import Stage

STAGES = {"vae": autoencoder.make, "stage1": stage1.make}


def train(config, workdir: str | Path) -> None:
    """Trains `config.stage` for `config.steps` steps in `workdir`, or continues there.

    Leaves config.json, metrics.jsonl, panels/, checkpoints/ and, at every checkpoint, model/: a
    model directory with the averaged weights. Raises OneDCError before anything is compiled where
    the configuration, the data or the workdir do not fit; FloatingPointError with the step where
    the loss is no longer finite.
    """
    from orbax.checkpoint import v1 as ocp

    if config.stage not in STAGES:
        raise OneDCError(f"stage={config.stage!r}: expected one of {', '.join(STAGES)}")
    workdir = Path(workdir).absolute()
    mesh = make_mesh(**config.mesh)
    source = ImageFolder(
        config.data.root, keep=config.data.keep.to_dict(), cache_gib=config.data.cache_gib
    )
    validation = ImageFolder(config.data.validation)
    stage = STAGES[config.stage](config)
    fixed = next(_batches(config.data, validation, 0, 0, config.panel_images))
    state, frozen = stage.init()
    _claim(workdir, config)
    shardings, frozen_shardings = shard_by_shape(mesh, state), shard_by_shape(mesh, frozen)
    state, frozen = jax.device_put((state, frozen), (shardings, frozen_shardings))
    batch = batch_sharding(mesh)
    update = jax.jit(
        stage.update,
        in_shardings=(shardings, frozen_shardings, batch, replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    panel = jax.jit(stage.panel)

    policies = ocp.training.save_decision_policies, ocp.training.preservation_policies
    with ocp.training.Checkpointer(
        workdir / "checkpoints",
        save_decision_policy=policies[0].FixedIntervalPolicy(config.checkpoint_every),
        preservation_policy=policies[1].LatestN(2),
    ) as checkpointer:
        if checkpointer.latest is not None:
            state = checkpointer.load(None, _abstract(state, shardings))
        start = int(state.step)
        data = _batches(config.data, source, config.seed, start, config.batch_size)
        log = JsonLines(workdir / "metrics.jsonl")
        progress = tqdm(initial=start, total=config.steps, unit="step", dynamic_ncols=True)
        pending = None
        for step in range(start, config.steps):
            local = jax.make_array_from_process_local_data(batch, next(data)["image"])
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            state, metrics = update(state, frozen, dict(image=local), key)
            # A step's metrics are fetched after the next is dispatched: the device never waits.
            if pending and step % config.log_every == 0:
                _write(log, progress, *pending)
            pending = (step + 1, metrics)
            progress.update()
            done = step + 1
            if checkpointer.save_async(done, state, force=done == config.steps):
                _check_finite(*pending)
                _export(workdir, stage, state, frozen)
                _save_images(workdir, done, panel(state, frozen, fixed))
        if pending:
            _write(log, progress, *pending)
        progress.close()


def _claim(workdir: Path, config) -> None:
    """Writes the configuration into a new workdir; refuses one that another configuration made."""
    path, text = workdir / "config.json", config.to_json_best_effort(indent=2)
    if path.exists():
        before, now = json.loads(path.read_text()), json.loads(text)
        # A longer or more talkative run continues a shorter one; another model or stage does not.
        for key in ("stage", "model", "trainable", "seed", "batch_size"):
            if before.get(key) != now.get(key):
                raise OneDCError(
                    f"{workdir}: holds a run with another {key}; choose another --workdir"
                )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _batches(data, source: ImageFolder, seed: int, start: int, batch_size: int):
    return batches(
        source,
        seed=seed,
        batch_size=batch_size,
        crop=data.crop,
        scale=tuple(data.scale),
        start=start,
        crops_per_image=data.crops_per_image,
        threads=data.threads,
        workers=data.workers,
    )


def _abstract(tree, shardings):
    leaf = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(leaf, tree, shardings)


def _write(log: JsonLines, progress: tqdm, step: int, metrics: dict) -> None:
    values = {k: float(v) for k, v in metrics.items()}
    _check_finite(step, values)
    log.write(step=step, time=round(time.time(), 1), **values)
    progress.set_postfix({k: f"{v:.4g}" for k, v in values.items()})


def _check_finite(step: int, metrics: dict) -> None:
    bad = [k for k, v in metrics.items() if not np.isfinite(v)]
    if bad:
        raise FloatingPointError(f"step {step}: {', '.join(bad)} not finite")


def _export(workdir: Path, stage: Stage, state, frozen) -> None:
    save_model(workdir / "model", stage.model, stage.export(state, frozen), overwrite=True)


def _save_images(workdir: Path, step: int, images: dict) -> None:
    """One row for each image, one column for each kind, the original first."""
    images = sorted(images.items(), key=lambda item: item[0] != "original")
    columns = [np.asarray((x + 1) * 127.5).clip(0, 255).round().astype(np.uint8) for _, x in images]
    save_panel(workdir / "panels" / f"{step:07d}.png", list(zip(*columns, strict=True)))
