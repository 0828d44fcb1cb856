"""What a run leaves in its workdir: its configuration, checkpoints, the model, a diagnosis."""

import contextlib
import functools
import hashlib
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from onedc_jax.checkpoint import copy_model, refuse_existing, save_model
from onedc_jax.distributed import failing_together
from onedc_jax.errors import OneDCError
from onedc_jax.images import atomic_write
from onedc_jax.training.state import Stage, TrainState
from onedc_jax.trees import named

_MODELS = "model", "model_best"  # of the last checkpoint, and of the best

# What may not change between two runs in one workdir. A longer, more talkative or faster run
# continues a shorter one; another model or stage does not.
_IDENTITY = ("stage", "model", "trainable", "seed", "batch_size")
_MEASURES = ("lpips", "texture")  # frozen weights that may: only losses have them


def claim(workdir: Path, config, frozen) -> None:
    """Writes the configuration into a workdir, and clears away what a killed run left unfinished.

    `frozen` are the weights that do not train, on the host: checkpoints do not hold them. Raises
    OneDCError if the workdir holds the run of another configuration or beside other such weights.
    """
    known, digest = workdir / "frozen.txt", _digest(frozen)
    if known.exists() and known.read_text() != digest:
        raise OneDCError(
            f"{workdir}: its run had other frozen weights: what config.init names, or a tokenizer, "
            "has changed; choose another --workdir"
        )
    for name in _MODELS:
        refuse_existing(workdir / name, overwrite=True)
    path, text = workdir / "config.json", config.to_json_best_effort(indent=2)
    if path.exists():
        now = json.loads(text)
        try:
            before = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise OneDCError(f"{path}: not the configuration of a run; remove it") from error
        for key in _IDENTITY:
            if before.get(key) != now.get(key):
                raise OneDCError(
                    f"{workdir}: holds a run with another {key}; choose another --workdir"
                )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        # Other processes may be reading what a run before has left.
        atomic_write(path, text.encode(), overwrite=True)
        atomic_write(known, digest.encode(), overwrite=True)
        # Of a run that was killed as it wrote one.
        unfinished = (folder for name in _MODELS for folder in workdir.glob(f".{name}.*"))
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)


def _digest(frozen: dict) -> str:
    digest = hashlib.blake2b(digest_size=16)
    tree = {name: part for name, part in frozen.items() if name not in _MEASURES}
    for path, x in named(tree).items():
        digest.update(f"{path} {x.dtype} {list(x.shape)}\n".encode())
        digest.update(np.ascontiguousarray(x).view(np.uint8))
    return digest.hexdigest()


def open_checkpoints(
    workdir: Path, *, every: int, keep: int, best: str
) -> ocp.training.Checkpointer:
    """Orbax's checkpoints of a run: the last `keep`, and the best by the measured metric `best`.

    A metric whose name begins with "-" is better the higher it is; "" keeps the last ones only.
    Saving is asynchronous and atomic.
    """
    decide, preserve = ocp.training.save_decision_policies, ocp.training.preservation_policies
    policy = preserve.LatestN(keep)
    if best:
        # It keeps the last of the ascending order, so the best must have the highest value.
        best_one = preserve.BestN(get_metric_fn=functools.partial(_merit, best), n=1)
        policy = preserve.AnyPreservationPolicy([policy, best_one])
    return ocp.training.Checkpointer(
        workdir / "checkpoints",
        save_decision_policy=decide.FixedIntervalPolicy(every),
        preservation_policy=policy,
    )


@contextlib.contextmanager
def saved_on_failure(checkpointer: ocp.training.Checkpointer, step: int, state):
    """Saves `state` as the checkpoint of a step, unmeasured, where what is done meanwhile fails.

    What is measured at a checkpoint runs for the first time after hours, and may want more memory
    or disk than there is.
    """
    try:
        yield
    except Exception:
        checkpointer.save(step, state, force=True)
        raise


def keep_model(workdir: Path, checkpointer, best: str, metrics: dict) -> None:
    """Copies `workdir`/model to model_best if a checkpoint with these metrics would be the best.

    To be called before that is saved, by one process: a run that is killed in between comes here
    again.
    """
    if not best:
        return
    before = (_merit(best, saved.metrics or {}) for saved in checkpointer.checkpoints)
    if _merit(best, metrics) >= max(before, default=-math.inf):
        copy_model(workdir / "model", workdir / "model_best")


def _merit(best: str, metrics: dict) -> float:
    """A checkpoint's rank, the higher the better, by the metric that `best` names.

    One that was saved when this was not measured, or not finite, is the worst.
    """
    value = metrics.get(best.lstrip("-"), math.nan)
    if not math.isfinite(value):
        return -math.inf
    return value if best.startswith("-") else -value


def restore(checkpointer: ocp.training.Checkpointer, state, shardings):
    """The latest state, placed as `shardings` say, whatever mesh it was saved from.

    Raises OneDCError where the checkpoint's tree is another one than `state`'s.
    """
    leaf = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    abstract = jax.tree.map(leaf, state, shardings)
    try:
        return checkpointer.load(None, abstract)
    except Exception as error:  # Orbax raises many kinds
        raise OneDCError(
            f"{checkpointer.directory}: its checkpoint {checkpointer.latest.step} cannot be read "
            f"as a state of this stage ({type(error).__name__}); choose another --workdir, take "
            "back what another muon or ema turned on or off, or remove what is damaged"
        ) from error


def export(workdir: Path, stage: Stage, state: TrainState, frozen) -> dict:
    """Writes `workdir`/model, the model folder of a state, and returns the model's parameters."""
    params = stage.export(state, frozen)
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    with failing_together(f"exporting the model of step {int(state.step)}"):
        save_model(workdir / "model", stage.model, params, overwrite=True)
    return params


def check_finite(workdir: Path, step: int, update: str, metrics: dict, state: TrainState) -> None:
    """Raises OneDCError, after saving `state`, where a step's numbers were not finite.

    An update that meets a number that is not finite changes nothing, so `state` is the one before.
    """
    finite = np.asarray(metrics["finite"])
    bad = [name for name, value in metrics.items() if name != "finite" and not np.isfinite(value)]
    if finite.all() and not bad:
        return
    names = trained_paths(state, update)
    tensors = [name for name, good in zip(names, finite, strict=True) if not good]
    folder = workdir / "diagnosis" / f"{step:07d}"
    if not folder.exists():
        ocp.save(folder, state)
    first = ", ".join(tensors[:3]) + (f" and {len(tensors) - 3} more" if len(tensors) > 3 else "")
    raise OneDCError(
        f"step {step}, update of {update}: {', '.join(bad) or 'no metric'} not finite; gradients "
        f"not finite: {first or 'none'}. The state before it is in {folder}"
    )


def trained_paths(state: TrainState, update: str) -> list[str]:
    """The paths of what an update trains: one of several players, or all there is."""
    params = state.params
    players = isinstance(params, dict) and update in params
    return list(named(params[update] if players else params))
