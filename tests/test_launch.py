"""The scripts of launch/: what they make, and what a cluster's script does when its time ends."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import yaml
from PIL import Image

from onedc_jax import folders
from onedc_jax.checkpoint import load_model, save_model
from onedc_jax.errors import ModelError, OneDCError
from onedc_jax.targets import target_devices

LAUNCH = Path(__file__).parent.parent / "launch"
POINTS = np.array([[0.0], [1.0]], np.float32)
CODEC = dict(
    knob=dict.fromkeys(("gain", "inverse", "bias"), POINTS),
    synthesis=dict.fromkeys(("rate_in", "rate_out"), POINTS),
)


def script(name: str):
    return runpy.run_path(str(LAUNCH / f"{name}.py"))


def test_embedding_halves_weights_and_keeps_integers(tmp_path, capsys):
    params = dict(
        vae=dict(kernel=np.array([1.0, 1e-3], np.float32)),
        entropy=dict(kernel=np.array([300, -7], np.int16)),
    )
    save_model(tmp_path / "run" / "model", {}, params)
    main = script("embed")["main"]
    main.__globals__["PRESETS"] = tmp_path / "presets"
    main(tmp_path / "run", "small")
    _, found = load_model(tmp_path / "presets" / "small")
    np.testing.assert_array_equal(found["vae"]["kernel"], np.array([1.0, 1e-3], jnp.bfloat16))
    np.testing.assert_array_equal(found["entropy"]["kernel"], params["entropy"]["kernel"])
    assert found["entropy"]["kernel"].dtype == np.int16
    assert "0.00 M parameters" in capsys.readouterr().out


def test_stretching_makes_a_model_and_refuses_integers(tmp_path, capsys):
    main = script("stretch")["main"]
    save_model(tmp_path / "run", {}, dict(codec=CODEC))
    main(tmp_path / "run", 0.5, tmp_path / "longer")
    _, found = load_model(tmp_path / "longer")
    np.testing.assert_allclose(found["codec"]["knob"]["gain"][-1], 1.5)
    save_model(tmp_path / "exact", {}, dict(codec=CODEC, entropy=dict(a=np.ones(1))))
    with pytest.raises(ModelError, match="has integers"):
        main(tmp_path / "exact", 0.5, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert "by 0.5 of the step" in capsys.readouterr().out


def test_a_plan_has_a_line_for_each_update(capsys):
    plan = script("plan")
    plan["plan"](toy.recipe(rare=2), jax.devices()[:1])
    printed = capsys.readouterr().out
    assert "toy on 1 × 1 devices" in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["rare", "model"]
    with pytest.raises(SystemExit, match="2"):
        plan["recipes"].parser("plan", plan["_CONFIG"])(["plan"])
    err = capsys.readouterr().err
    assert err.startswith("plan: flag --config") and err.count("\n") == 1


def test_a_plan_goes_on_after_what_does_not_fit(capsys):
    class Full:
        state_shardings, frozen_shardings = {}, {}

        def __init__(self, *args, **options): ...

        def compiled(self, name, *args):
            error = "Ran out of memory (48.00G) of 15.75G. a. b. Largest arrays: ..."
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {error}")

    plan = script("plan")["plan"]
    plan.__globals__.update(Programs=Full, _bytes=lambda *args: 0)
    plan(toy.recipe(rare=2), jax.devices()[:1])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in lines] == ["rare", "model"]
    assert all(line.endswith("fit: Ran out of memory (48.00G) of 15.75G. a. b") for line in lines)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_exact", ["--model", "nothing"]),
        ("demo", ["nothing"]),
        ("local_cluster", ["--", "nothing"]),
    ],
)
def test_what_is_not_there_is_said_at_once(capsys, monkeypatch, name, arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(LAUNCH / f"{name}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert out == "" and err.lower().startswith(f"{name}: nothing: no ") and err.count("\n") == 1


def test_a_device_that_is_not_there_is_said(monkeypatch):
    def devices():
        raise AssertionError  # as jax does

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(OneDCError, match="no such device"):
        script("check_exact")["main"]([], None)


def test_a_program_that_could_round_is_found(capsys):
    compiled = script("check_exact")["compiled"]
    compiled.__globals__["target_devices"] = lambda target: jax.devices("cpu")
    compiled.__globals__["proof"] = SimpleNamespace(
        case=lambda name: (np.zeros(3, np.int32 if name == "whole" else np.float32),),
        predictions=lambda x: x + x,
    )
    assert compiled(["whole"], "this") == 0
    assert compiled(["whole", "real"], "this") == 1
    assert "real     ROUNDS: ['f32']" in capsys.readouterr().out


def test_a_target_that_is_not_there_is_said():
    with pytest.raises(OneDCError, match="v9: no such target; choose t4, a100"):
        target_devices("v9")


def test_the_demo_shows_all_of_a_folder_but_what_is_unreadable(tmp_path, capsys):
    (tmp_path / "photos" / "b").mkdir(parents=True)
    for name in ("a.jpg", "a.png", "b/a.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "bad.png").write_bytes(b"nonsense")
    codec = SimpleNamespace(
        name="none", encode=lambda image: b"", decode=lambda data: np.zeros((8, 8, 3), np.uint8)
    )
    main = script("demo")["main"]
    main.__globals__["onedc_jax"] = SimpleNamespace(load=lambda name: codec)
    main.__globals__["enable_compilation_cache"] = lambda: None
    main(tmp_path / "photos", tmp_path / "demo")
    found = folders.find(tmp_path / "demo", (".onedc",))
    assert [path.relative_to(tmp_path / "demo").as_posix() for path in found] == [
        *("a.jpg.onedc", "a.png.onedc", "b/a.onedc"),
    ]
    assert (tmp_path / "demo" / "a.png_both.png").is_file()
    assert "bad.png: not a PNG" in capsys.readouterr().out


# What SLURM does: srun answers SIGTERM by killing its task, scancel sends it to the task alone.
SLURM = dict(
    srun="""
bash -c 'trap "exit 0" TERM; echo $$ > "$FAKES/task"; for _ in {1..2000}; do sleep 0.01; done' &
task=$!
trap 'kill -KILL "$task"' TERM
wait "$task"
""",
    scancel="""[[ "$*" == "--signal=TERM 7" ]] && kill -TERM "$(cat "$FAKES/task")" """,
    scontrol="""echo "$*" >> "$FAKES/asked" """,
)


def test_slurm_s_time_limit_lets_a_run_save_and_queues_it_again(tmp_path):
    for name, script in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FAKES": str(tmp_path), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch")], env=environment)
    try:
        while not (tmp_path / "task").exists():
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == 0
    finally:
        job.kill()
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize("asked", [True, False])
def test_a_preempted_host_of_gke_does_not_end_as_one_that_is_done(tmp_path, asked):
    """Its run saves and ends with 0, as one does that is done."""
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    naps = 2000 if asked else 1
    (tmp_path / "python").write_text(f"""#!/usr/bin/env bash
trap 'echo saved > "$FAKES/saved"; exit 0' TERM
echo "$@" > "$FAKES/begun"
for _ in {{1..{naps}}}; do sleep 0.01; done
""")
    (tmp_path / "python").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FAKES": str(tmp_path)}
    host = subprocess.Popen(pod["containers"][0]["command"], env=environment)
    try:
        while asked and not (tmp_path / "begun").exists():
            assert host.poll() is None
            time.sleep(0.01)
        if asked:
            host.terminate()
        assert host.wait(20) == (143 if asked else 0)
    finally:
        host.kill()
    assert (tmp_path / "begun").read_text().startswith("launch/train.py --config=")
    assert (tmp_path / "saved").exists() == asked
