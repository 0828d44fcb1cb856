"""The training loop of every stage: mesh, data, steps, checkpoints, metrics, pictures.

The state at step k and the data of step k depend on (configuration, k) alone, so a run that was
killed continues as if nothing had happened when the same command is given again, on as many
devices and processes as there are then.
"""

import functools
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from onedc_jax.captions import load_tokenizer
from onedc_jax.data import batches, check_divides, make_views, open_source
from onedc_jax.distributed import Preemption, failing_together
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation.checkpoints import Coded
from onedc_jax.log import JsonLines, TensorBoard, save_panel
from onedc_jax.models.pixels import to_uint8
from onedc_jax.sharding import batch_sharding, make_mesh, replicated
from onedc_jax.training import autoencoder, saving, stage1, stage2, teacher, tokenizer
from onedc_jax.training.checks import check_numbers
from onedc_jax.training.programs import Meter, Programs, place
from onedc_jax.training.state import Stage

STAGES = {
    "vae": autoencoder.make,
    "tokenizer": tokenizer.make,
    "teacher": teacher.make,
    "stage1": stage1.make,
    "stage2": stage2.make,
}


def make_stage(config) -> Stage:
    """The stage of a configuration; raises OneDCError where there is none, or as it does."""
    if config.stage not in STAGES:
        raise OneDCError(f"stage={config.stage!r}: expected one of {', '.join(STAGES)}")
    return STAGES[config.stage](config)


def train(config, workdir: str | Path) -> None:
    """Trains `config.stage` for `config.steps` steps in `workdir`, or continues there.

    Leaves config.json, metrics.jsonl, panels/, checkpoints/ and, at every checkpoint, model/: a
    model directory with the averaged weights; model_best/ is the best one's where `config.best`
    names a metric. On SIGTERM, and on the first Ctrl-C of a single process, it saves and returns.
    Raises OneDCError before anything is compiled where the configuration, the data or the workdir
    do not fit; and, after saving a diagnosis, with the step and the tensors where a number is no
    longer finite.
    """
    if "://" in str(workdir):
        raise OneDCError(f"{workdir}: mount it, and name a folder that all processes see")
    workdir = Path(workdir).absolute()
    check_numbers(config)
    mesh = make_mesh(**config.mesh)
    data, validation = (_source(config.data, key) for key in ("root", "validation"))
    _check_alike(len(data), len(validation))
    coded = _coded(config)
    stage = make_stage(config)
    _check_batches(config, mesh, stage.block)
    lacks = stage.check()
    # On the host: what the devices hold together may be too much for the first of them.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        state, frozen = jax.device_get(stage.init())
    examination = _Examination(config, stage, mesh, validation, coded)
    examination.refuse_unmeasured(config.best, state, frozen)
    with failing_together("taking the workdir"):
        saving.claim(workdir, config, frozen)
    progress = tqdm(total=config.steps, unit="step", disable=jax.process_index() > 0)
    for line in lacks if jax.process_index() == 0 else ():
        progress.write(line)
    programs = Programs(stage, mesh, state, frozen, say=progress.write)
    with (
        Preemption() as preemption,
        saving.open_checkpoints(
            workdir, every=config.checkpoint_every, keep=config.keep_last, best=config.best
        ) as checkpointer,
    ):
        if checkpointer.latest is not None:
            state = saving.restore(checkpointer, state, programs.state_shardings)
        else:
            state = jax.device_put(state, programs.state_shardings)
        frozen = jax.device_put(frozen, programs.frozen_shardings)
        start = int(state.step)
        progress.update(start)
        options = dict(start=start, workers=config.data.workers) | view_options(config)
        stream = _batches(config, data, config.batch_size, **options)
        with closing(_Run(config, workdir, stage, programs, progress, start)) as run:
            examined = functools.partial(run.examine, examination, checkpointer)
            # What comes after the last step may have failed; then that was saved unmeasured.
            if start == config.steps and not checkpointer.latest.metrics:
                examined(start, state, frozen)
            for step in range(start, config.steps):
                batch = place(mesh, next(stream))
                state = run.step(step, state, frozen, batch)
                done, stop = step + 1, preemption.reached(step)
                last = done == config.steps
                if stop and not last:
                    run.check(state)
                    checkpointer.save(done, state, force=True)  # first: there may be little time
                    saving.export(workdir, stage, state, frozen)
                    progress.write(f"asked to stop: step {done} is saved, the same command goes on")
                    break
                if last or done % config.checkpoint_every == 0:
                    run.check(state)
                    with saving.saved_on_failure(checkpointer, done, state):
                        measured = examined(done, state, frozen)
                    checkpointer.save_async(done, state, force=last, metrics=measured or None)


class _Run:
    """The steps of a run, and what they leave to read."""

    def __init__(self, config, workdir: Path, stage: Stage, programs, progress, start: int):
        self._config, self._workdir, self._stage = config, workdir, stage
        self._programs, self._progress, self._meter = programs, progress, Meter()
        # A run that was killed may have told of steps after its last checkpoint: they come again.
        self._log = JsonLines(workdir / "metrics.jsonl", keep=lambda line: line["step"] <= start)
        self._board = TensorBoard(workdir / "tensorboard") if config.tensorboard else None
        self._pending = []  # (step, name of the update, its metrics), still on the device
        self._good = True  # whether all numbers were finite until now, on the device too
        self._postfix = {}  # the last known metrics, beside the progress bar

    def step(self, step: int, state, frozen, batch: dict):
        """Runs the updates that are due and returns the new state."""
        key = jax.random.fold_in(jax.random.key(self._config.seed), step)
        due = [name for name in self._stage.updates if self._stage.due(step, name)]
        pending, work = [], 0.0
        for index, name in enumerate(due):
            args = state, frozen, batch, jax.random.fold_in(key, index), self._good
            state, metrics, self._good = self._programs.update(name, *args)
            pending.append((step + 1, name, metrics))
            work += self._programs.flops(name, batch) * self._config.accumulate
        # A step's metrics are fetched after the next is dispatched: the device never waits.
        self.check(state)
        self._pending = pending
        self._meter.step(batch["image"].shape[0], work)
        self._progress.update()
        return state

    def check(self, state) -> None:
        """Fetches the metrics of the last step; OneDCError where they are not finite."""
        told = {}
        for step, name, metrics in self._pending:
            metrics = jax.device_get(metrics)
            saving.check_finite(self._workdir, step, name, metrics, state)
            if self._tells(step, name):
                told |= {k: float(v) for k, v in metrics.items() if k != "finite"}
        if told:
            self._write(self._pending[0][0], told)
        self._pending = []

    def _tells(self, step: int, name: str) -> bool:
        """Whether an update runs for the last time before the next step that is logged, or there.

        So a rare one is told of too, and what is told depends on the step alone: a line never
        repeats what an earlier step has found.
        """
        end = -(-step // self._config.log_every) * self._config.log_every
        return not any(self._stage.due(later, name) for later in range(step, end))

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._log.write(step=step, time=round(time.time(), 1), **values, **self._meter.read())
        if self._board:
            self._board.scalars(step, values)
        self._postfix |= {k: f"{v:.4g}" for k, v in values.items()}
        self._progress.set_postfix(self._postfix, refresh=False)

    def examine(self, examination: "_Examination", checkpointer, step: int, state, frozen) -> dict:
        """Exports, measures and shows the state after a step, and returns what was measured."""
        # Not by name: the parameters would stay in memory beside what the pictures need.
        coded = examination.coded(step, saving.export(self._workdir, self._stage, state, frozen))
        measured = examination.measure(state, frozen) | coded
        images = examination.panel(state, frozen)
        with failing_together(f"keeping what was found at step {step}"):
            if jax.process_index() == 0:
                saving.keep_model(self._workdir, checkpointer, self._config.best, measured)
                self._report(step, measured, images)
        return measured

    def _report(self, step: int, measured: dict, images: dict) -> None:
        """Writes what was measured on validation images, and a panel of pictures."""
        if measured:
            self._log.write(step=step, **{f"validation_{k}": v for k, v in measured.items()})
        if images:
            columns = [_pixels(x) for _, x in _original_first(images)]
            rows = list(zip(*columns, strict=True))
            save_panel(self._workdir / "panels" / f"{step:07d}.png", rows)
        if self._board:
            self._board.scalars(step, {f"validation/{k}": v for k, v in measured.items()})
            self._board.images(step, {k: _pixels(x) for k, x in images.items()})

    def close(self) -> None:
        self._log.close()
        if self._board:
            self._board.close()
        self._progress.close()


class _Examination:
    """What is looked at on validation images, the same ones each time."""

    def __init__(self, config, stage: Stage, mesh, source, coded: Coded | None):
        whole = replicated(mesh)
        self._panel = jax.jit(stage.panel, out_shardings=whole)
        self._measure = jax.jit(stage.measure, out_shardings=whole)
        # Every process holds all of the pictures: they need not divide among the devices.
        self._few = None
        if count := config.panel_images:
            few = next(_batches(config, source, count, shard=(0, 1), **_plain(config)))
            self._few = jax.device_put(few, whole)
        stream = _batches(config, source, config.batch_size, **_plain(config))
        self._many = [place(mesh, next(stream)) for _ in range(config.validation_batches)]
        self._coded, self._model, self._mesh = coded, stage.model, mesh

    def refuse_unmeasured(self, best: str, state, frozen) -> None:
        """OneDCError where the metric that a run keeps its best checkpoint by is none of these."""
        if not best:
            return
        names = [f"coded_{name}" for name in self._coded.names] if self._coded else []
        if self._many:
            names += self._measure.eval_shape(state, frozen, self._many[0], jax.random.key(0))
        if best.lstrip("-") not in names:
            told = f"there are {', '.join(sorted(names))}" if names else "nothing is"
            raise OneDCError(
                f'best={best!r}: not measured on validation images; {told} ("" keeps the last '
                "checkpoints only)"
            )

    def panel(self, state, frozen) -> dict[str, np.ndarray]:
        """What the stage draws of a few images; {} if none are wanted."""
        if not self._few:
            return {}
        with jax.set_mesh(self._mesh):
            return jax.device_get(self._panel(state, frozen, self._few))

    def measure(self, state, frozen) -> dict[str, float]:
        """The means of the stage's metrics over the validation batches; {} if there are none."""
        keys = jax.random.split(jax.random.key(0), max(len(self._many), 1))
        pairs = zip(self._many, keys, strict=False)
        with jax.set_mesh(self._mesh):
            found = jax.device_get([self._measure(state, frozen, batch, k) for batch, k in pairs])
        return {k: float(np.mean([m[k] for m in found])) for k in (found[0] if found else ())}

    def coded(self, step: int, params) -> dict[str, float]:
        """What files of the images of config.coded cost and lose, the same on every process.

        `params` are those that the stage exports at this step.
        """
        if self._coded is None:
            return {}
        measured = dict.fromkeys(self._coded.names, 0.0)
        with failing_together(f"coding images at step {step}"):
            if jax.process_index() == 0:
                measured = self._coded(self._model, params)
        measured = multihost_utils.broadcast_one_to_all(measured)
        return {f"coded_{name}": float(value) for name, value in measured.items()}


def _coded(config) -> Coded | None:
    """What a recipe wants measured through bytes; only a whole codec can be."""
    wanted = config.get("coded")
    if not wanted or not wanted.images:
        if "coded_" in config.best:
            raise OneDCError(f"best={config.best!r}: name images to code, config.coded.images")
        return None
    return Coded(Path(wanted.images), wanted.limit, wanted.metrics)


def _source(data, key: str):
    """The images of config.data's "root" or "validation"."""
    try:
        return open_source(data[key], keep=data.keep.to_dict(), cache_gib=data.cache_gib)
    except OneDCError as error:
        raise OneDCError(f"config.data.{key}: {error}") from error


def _check_alike(*lengths: int) -> None:
    """Raises OneDCError where processes see other data: step k would not be the same for all."""
    found = np.asarray(multihost_utils.process_allgather(np.array(lengths)))
    if (found != np.array(lengths)[None]).any():
        counts = ", ".join(" and ".join(map(str, counts)) for counts in found)
        raise OneDCError(f"config.data: processes see other images, root and validation: {counts}")


def _check_batches(config, mesh, block: int) -> None:
    """Raises OneDCError where images do not divide into blocks, or a batch into its parts."""
    views = make_views(**view_options(config))
    for size in (config.data.crop, *(view.size for view in views)):
        if size % block:
            raise OneDCError(f"crops of {size} pixels: must be multiples of {block} here")
    for view in views:
        check_divides(config.batch_size, view, jax.process_count())
    shapes = [(round(config.batch_size * view.batch), view.size) for view in views]
    if config.validation_batches:
        shapes.append((config.batch_size, config.data.crop))
    for count, size in shapes:
        batch_sharding(mesh, (count, size, size, 3))
        if count % config.accumulate:
            raise OneDCError(
                f"a batch of {count} images does not divide into {config.accumulate} parts "
                "(config.accumulate)"
            )


def _batches(config, source, batch_size: int, **options) -> Iterator[dict]:
    data = config.data
    return batches(
        source,
        seed=config.seed,
        batch_size=batch_size,
        tokenize=load_tokenizer(data.captions) if data.captions else None,
        threads=data.threads,
        **options,
    )


def _plain(config) -> dict:
    """What is shown of a validation image: one shape, whatever the mixture of training."""
    return dict(crop=config.data.crop, scale=tuple(config.data.scale), flip=False)


def view_options(config) -> dict:
    """What is shown of a training image."""
    keys = ("crop", "scale", "crops_per_image", "views", "source_crop")
    return {key: config.data[key] for key in keys if key in config.data}


def _original_first(images: dict) -> list:
    return sorted(images.items(), key=lambda item: item[0] != "original")


def _pixels(images) -> np.ndarray:
    return np.asarray(to_uint8(jnp.clip(images, -1, 1)))
