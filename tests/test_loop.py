"""The loop, with a stage that compiles in no time: resuming, stopping, meshes, processes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from orbax.checkpoint import v1 as ocp

from onedc_jax.checkpoint import load_model
from onedc_jax.errors import OneDCError
from onedc_jax.log import JsonLines
from onedc_jax.training import loop, saving
from onedc_jax.training.loop import train
from onedc_jax.training.saving import open_checkpoints
from onedc_jax.training.state import TrainState, measured

ROOT = Path(__file__).parent.parent


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert len({line["step"] for line in steps}) == len(steps), "a step is told of twice"
    return {line["step"]: line["loss"] for line in steps}


def environment(devices: int) -> dict:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=str(ROOT))


def command(workdir: Path, **options) -> list[str]:
    text = [f"{key}={value}" for key, value in options.items()]
    return [sys.executable, str(ROOT / "tests" / "toy.py"), str(workdir), *text]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An uninterrupted run of 6 steps on one device."""
    workdir = tmp_path_factory.mktemp("loop") / "whole"
    train(toy.recipe(), workdir)
    return workdir


def assert_same(workdir: Path, expected: Path, tolerance: float = 1e-5):
    found, wanted = losses(workdir), losses(expected)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=tolerance)


def test_it_learns_and_leaves_what_it_should(whole):
    found = losses(whole)
    assert list(found) == [1, 2, 3, 4, 5, 6] and found[6] < found[1]
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["4", "6"]
    for name in ("config.json", "model/model.json", "panels/0000002.png"):
        assert (whole / name).is_file()


def test_a_rare_update_is_told_of_once_between_two_lines(tmp_path):
    train(toy.recipe(rare=4, log_every=3, steps=9, checkpoint_every=9), tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    told = {line["step"]: {"loss", "rare"} & line.keys() for line in lines}
    assert told == {1: {"rare"}, 3: {"loss"}, 5: {"rare"}, 6: {"loss"}, 9: {"loss", "rare"}}


def test_a_run_may_take_its_batches_in_parts(whole, tmp_path):
    train(toy.recipe(accumulate=4, steps=2), tmp_path / "run")
    # Without its noise, whose keys differ from part to part, the loss would be the very same.
    assert losses(tmp_path / "run")[2] == pytest.approx(losses(whole)[2], rel=0.05)


def test_what_is_measured_is_taken_in_parts_too():
    sizes = []

    def loss(params, frozen, batch, key, step):
        sizes.append(len(batch["image"]))
        return None, dict(mean=batch["image"].mean())

    state = TrainState(jnp.zeros((), jnp.int32), None, None, None)
    batch = dict(image=jnp.arange(8.0))
    found = measured(loss, 4)(state, {}, batch, jax.random.key(0))
    assert float(found["mean"]) == 3.5 and set(sizes) == {2}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path):
    workdir = tmp_path / "run"
    for steps in (3, 4):  # the last checkpoint may be one that only the end of a run makes
        train(toy.recipe(steps=steps), workdir)
    # What a run tells between its last checkpoint and its death comes again.
    with JsonLines(workdir / "metrics.jsonl") as log:
        log.write(step=5, loss=-1.0)
    train(toy.recipe(), workdir)
    assert_same(workdir, whole)


def test_where_measuring_fails_no_step_is_lost(whole, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop._Examination, "panel", fail)
        train(toy.recipe(), workdir)
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["2"]
    train(toy.recipe(), workdir)
    assert_same(workdir, whole)


def test_a_last_model_that_could_not_be_exported_comes_by_the_same_command(
    whole, tmp_path, monkeypatch
):
    train(toy.recipe(steps=4), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(saving, "save_model", toy.full)
        train(toy.recipe(), tmp_path)
    train(toy.recipe(), tmp_path)
    assert_same(tmp_path, whole)
    found, wanted = (load_model(folder / "model")[1] for folder in (tmp_path, whole))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("broken", ["picture", "model"])
def test_where_the_first_process_alone_fails_all_save_and_end(whole, tmp_path, broken):
    launcher = [sys.executable, str(ROOT / "launch" / "local_cluster.py"), "--processes=2"]
    run = [*launcher, "--devices=1", "--", *command(tmp_path, broken=broken)]
    found = subprocess.run(run, env=environment(1), capture_output=True, text=True, timeout=120)
    assert found.returncode == 1 and "toy: No space left on device" in found.stderr
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    train(toy.recipe(), tmp_path)
    assert_same(tmp_path, whole, 1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_the_same_command_goes_on(whole, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir, steps=1_000_000, checkpoint_every=1_000_000), env=environment(1)
    )
    deadline = time.time() + 120
    metrics = workdir / "metrics.jsonl"
    while time.time() < deadline and not (metrics.exists() and metrics.read_bytes().count(b"\n")):
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert saved == [max(losses(workdir))]
    train(toy.recipe(steps=saved[0] + 2), workdir)
    found, wanted = losses(workdir), losses(whole)
    common = found.keys() & wanted.keys()
    np.testing.assert_allclose([found[s] for s in common], [wanted[s] for s in common], rtol=1e-5)
    assert max(found) == saved[0] + 2


def test_the_best_checkpoint_outlives_later_ones(tmp_path):
    # The loss falls, so by the highest loss the first checkpoint is the best one.
    workdir, options = tmp_path / "run", dict(best="-loss", validation_batches=1, keep_last=1)
    for steps in (2, 4, 6):  # each goes on from the one before
        train(toy.recipe(steps=steps, **options), workdir)
        if steps == 2:
            first = load_model(workdir / "model")[1]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    measured = [d["validation_loss"] for d in map(json.loads, lines) if "validation_loss" in d]
    assert len(measured) == 3 and measured[0] == max(measured)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "6"]
    last, best = (load_model(workdir / name)[1] for name in ("model", "model_best"))
    jax.tree.map(np.testing.assert_array_equal, best, first)
    different = jax.tree.map(np.any, jax.tree.map(np.not_equal, last, first))
    assert any(jax.tree.leaves(different))


def test_the_last_model_is_the_best_where_it_is(tmp_path):
    train(toy.recipe(best="loss", validation_batches=1), tmp_path)
    told = (tmp_path / "metrics.jsonl").read_text()
    train(toy.recipe(best="loss", validation_batches=1), tmp_path)  # done: nothing comes again
    assert (tmp_path / "metrics.jsonl").read_text() == told
    last, best = (load_model(tmp_path / name)[1] for name in ("model", "model_best"))
    jax.tree.map(np.testing.assert_array_equal, best, last)


def test_a_checkpoint_that_lacks_the_metric_is_the_worst(tmp_path):
    """A run may go on by another metric than it began with."""
    with open_checkpoints(tmp_path, every=1, keep=1, best="new") as checkpointer:
        found = [{"old": 0.0}, {"new": 1.0}, {"new": math.nan}, {"new": 3.0}]
        for step, metrics in enumerate(found):
            checkpointer.save(step, {"x": np.zeros(1)}, metrics=metrics)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]


def test_a_best_that_nothing_measures_is_refused(tmp_path):
    with pytest.raises(OneDCError, match=r"best='-lpisp': not measured .* there are .*loss"):
        train(toy.recipe(best="-lpisp", validation_batches=1), tmp_path / "run")
    with pytest.raises(OneDCError, match=r"best='loss': not measured .* nothing is"):
        train(toy.recipe(best="loss"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_finite_stops_the_run_with_a_diagnosis(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(OneDCError, match=r"step 4, .* loss not finite.*a/matrix, colour") as caught:
        train(toy.recipe(bad_step=3), workdir)
    folder = workdir / "diagnosis" / "0000004"
    assert str(folder) in str(caught.value)
    assert not (workdir / "checkpoints" / "4").exists()
    # It is the state before that step, though more were begun before it was known.
    train(toy.recipe(steps=3), tmp_path / "before")
    saved, before = ocp.load(folder), load_model(tmp_path / "before" / "model")[1]["toy"]
    assert saved["step"] == 3
    jax.tree.map(np.testing.assert_array_equal, saved["ema"], before)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 6, "accumulate": 4}, "does not divide into 4 parts"),
        ({"mesh.fsdp": 3}, "does not fit 1 devices"),
        ({"data.validation": "no/such"}, "config.data.validation: no/such: no such folder"),
        ({"stage": "stage9"}, "expected one of"),
        ({"lacks": True}, "nothing to begin with"),
        ({"keep_last": 0}, "config.keep_last=0: must be 1 or more"),
        ({"clip": -1.0}, "config.clip=-1.0: must be above 0"),
        ({"ema": 1.5}, "config.ema=1.5: must be from 0 to below 1"),
        ({"data.workers": -1}, "config.data.workers=-1: must be 0 or more"),
        ({"data.scale": (0.5, 0.1)}, "must be two numbers above 0, in order"),
        ({"block": 48}, "crops of 64 pixels: must be multiples of 48"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(tmp_path, changes, words):
    with pytest.raises(OneDCError, match=words):
        train(toy.recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_whose_configuration_is_damaged_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"stage": "to')
    with pytest.raises(OneDCError, match=r"config\.json: not the configuration of a run"):
        train(toy.recipe(), tmp_path)


def test_other_frozen_weights_do_not_take_the_place_of_a_run_s(tmp_path):
    train(toy.recipe(steps=2), tmp_path)
    with pytest.raises(OneDCError, match="its run had other frozen weights"):
        train(toy.recipe(steps=4, target=2.0), tmp_path)


def test_an_image_s_bands_belong_to_one_process(tmp_path):
    """Two processes would give their parts of different images for one."""
    workdir, options = tmp_path / "run", {"mesh.data": 1, "mesh.fsdp": 4, "batch_size": 2}
    launcher = [sys.executable, str(ROOT / "launch" / "local_cluster.py"), "--processes=2"]
    own = command(workdir, **options, **{"data.crop": 256})
    run = [*launcher, "--devices=2", "--", *own]
    found = subprocess.run(run, env=environment(1), capture_output=True, text=True)
    assert found.returncode == 1 and "of which a process has 2" in found.stderr
    assert not workdir.exists()


def test_a_bucket_is_to_be_mounted():
    with pytest.raises(OneDCError, match="mount it"):
        train(toy.recipe(), "gs://bucket/run")


def test_eight_devices_and_then_four_do_what_one_does(whole, tmp_path):
    workdir = tmp_path / "run"
    options = {"mesh.fsdp": 4, "steps": 4}
    subprocess.run(command(workdir, **options), env=environment(8), check=True)
    subprocess.run(command(workdir, **{"mesh.fsdp": 2}), env=environment(4), check=True)
    assert_same(workdir, whole, 1e-4)


def test_two_processes_do_what_one_does(whole, tmp_path):
    workdir = tmp_path / "run"
    launcher = [sys.executable, str(ROOT / "launch" / "local_cluster.py"), "--processes=2"]
    own = command(workdir, **{"mesh.fsdp": 4})
    subprocess.run([*launcher, "--devices=4", "--", *own], env=environment(1), check=True)
    assert_same(workdir, whole, 1e-4)
    assert (workdir / "model" / "model.json").is_file()
