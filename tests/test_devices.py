"""Both stages of the paper as jobs: on other devices, in several processes, killed and resumed.

Slow, since every run is a process of its own: pytest -m slow tests/test_devices.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO_MODEL, NORMS
from recipes import ROOT

from onedc_jax.checkpoint import save_model
from onedc_jax.models.init import random_params, shapes_of
from onedc_jax.models.onedc import build, param_shapes
from onedc_jax.models.unet import UNet
from onedc_jax.models.vqgan import VQGAN

pytestmark = pytest.mark.slow

STEPS = 20
WIDE = (8, 96)  # so that some arrays are large enough to be cut over the devices
TOKENIZER = dict(widths=(8,) * 5, layers=1, codes=16, features=4, norm_groups=4)
SCORE = NORMS | dict(widths=WIDE, layers=1, attention=(False, False), heads=2)


def random(module, *inputs) -> dict:
    shapes = shapes_of(module, *inputs)
    return random_params(shapes, seed=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The models that the stages start from, with random weights, and XLA's cache."""
    root = tmp_path_factory.mktemp("devices")
    unet = MICRO_MODEL["generator"]["unet"] | dict(widths=WIDE)
    model = MICRO_MODEL | dict(generator=MICRO_MODEL["generator"] | dict(unet=unet))
    save_model(root / "model", model, random_params(param_shapes(build(model)), seed=0))
    image = jnp.zeros((1, 64, 64, 3))
    save_model(
        root / "tokenizer",
        {"tokenizer": TOKENIZER},
        {"tokenizer": random(VQGAN(**TOKENIZER), image)},
    )
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.array([7]), jnp.zeros((1, 1, 8))
    save_model(root / "score", {"unet": SCORE}, {"unet": random(UNet(**SCORE), *inputs)})
    return root


def options(stage: str, folders: Path) -> dict:
    common = {"steps": STEPS, "batch_size": 8, "checkpoint_every": 3, "data.crop": 128}
    # The rates of :full. With faster ones Adam makes steps out of the last bits of gradients that
    # are almost zero, and runs that began alike part within ten steps, on any two machines.
    common |= {"lr": 5e-5 if stage == "stage1" else 1e-6, "warmup": 500, "schedule": "constant"}
    common |= {"model.generator.unet.widths": WIDE}
    if stage == "stage1":
        head = {"width": 16, "pairs": 1, "heads": 2, "window": 2}
        own = {"distillation.tokenizer": folders / "tokenizer", "init.codec": folders / "model"}
        own |= {f"distillation.head.{key}": value for key, value in head.items()}
    else:
        own = {"init.model": folders / "model", "init.teacher": folders / "score"}
        own |= {"realism.width": 8, "realism.norm_groups": 1}
    return common | own


def command(stage: str, workdir: Path, folders: Path, **more) -> list[str]:
    values = options(stage, folders) | more
    return [
        *(
            sys.executable,
            str(ROOT / "launch/train.py"),
            f"--config={ROOT}/tests/recipes.py:{stage}",
        ),
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def environment(folders: Path, devices: int) -> dict:
    flags = "--xla_backend_optimization_level=0"  # compiling is what takes the time
    flags += f" --xla_force_host_platform_device_count={devices}"
    cache = dict(JAX_COMPILATION_CACHE_DIR=str(folders / "xla"))
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return cache | os.environ | dict(JAX_PLATFORMS="cpu", XLA_FLAGS=flags, PYTHONPATH=path)


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    """The losses that a run told of, by step and name: all terms, and what the steps took in."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    names = {"loss", "l1", "lpips", "bpp", "ce", "semantic_mse", "latent", "whiteness"}
    names |= {"generator_loss", "dm", "adversarial", "guidance_loss", "denoising", "realism"}
    return {(line["step"], k): v for line in lines for k, v in line.items() if k in names}


def assert_same(found: dict, wanted: dict, tolerance: float):
    """All losses of all steps agree to `tolerance`, relative; small ones to 1e-6."""
    assert found.keys() == wanted.keys() and max(found)[0] == STEPS
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=1e-6, err_msg=str(key))


def assert_alike(found: dict, wanted: dict, tolerance: float):
    """As `assert_same`, but for a symbol of y that fell to the other side of its rounding step.

    Sums over other devices differ in their last bits. Where one is between two symbols the losses
    of that step jump, by 2e-4 with these few pixels; the steps after it are as if it had not.
    """
    assert found.keys() == wanted.keys() and max(found)[0] == STEPS
    for name in {name for _, name in wanted}:
        pairs = np.array([(found[k], wanted[k]) for k in wanted if k[1] == name])
        off = np.abs(pairs[:, 0] - pairs[:, 1]) - 1e-6
        off /= np.abs(pairs[:, 1])
        assert np.median(off) <= tolerance / 10, name
        assert np.sum(off > tolerance) <= 0.1 * len(off), name
        assert off.max() <= 10 * tolerance, name


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def whole(request, folders) -> tuple[str, dict]:
    """A stage, and what it tells on one device when nothing disturbs it."""
    workdir = folders / f"{request.param}-whole"
    subprocess.run(
        command(request.param, workdir, folders), env=environment(folders, 1), check=True
    )
    return request.param, losses(workdir)


def test_eight_devices_do_what_one_does(whole, folders):
    stage, wanted = whole
    workdir = folders / f"{stage}-eight"
    args = command(stage, workdir, folders, **{"mesh.data": 2, "mesh.fsdp": 4})
    subprocess.run(args, env=environment(folders, 8), check=True)
    assert_alike(losses(workdir), wanted, 1e-4)


def test_two_processes_of_four_devices_do_what_one_does(whole, folders):
    stage, wanted = whole
    workdir = folders / f"{stage}-cluster"
    launcher = [sys.executable, str(ROOT / "launch" / "local_cluster.py"), "--processes=2"]
    more = {"mesh.data": 2, "mesh.fsdp": 4}
    if stage == "stage1":  # only the first process codes, the others wait for it
        more |= {"coded.images": ROOT / "examples", "coded.metrics": "('psnr',)", "coded.limit": 1}
    own = command(stage, workdir, folders, **more)
    env = environment(folders, 4)
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    subprocess.run([*launcher, "--devices=4", "--", *own], env=env, check=True)
    assert_alike(losses(workdir), wanted, 1e-4)


def test_five_times_killed_it_goes_on_as_if_nothing_had_happened(whole, folders):
    stage, wanted = whole
    workdir = folders / f"{stage}-killed"
    args = command(stage, workdir, folders)
    ends = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
    for step, end in zip((3, 6, 9, 12, 15), ends, strict=True):
        process = subprocess.Popen(args, env=environment(folders, 1))
        wait_for(workdir / "metrics.jsonl", step)
        process.send_signal(end)
        assert process.wait(timeout=120) == (0 if end == signal.SIGTERM else -signal.SIGKILL)
    subprocess.run(args, env=environment(folders, 1), check=True)
    assert_same(losses(workdir), wanted, 1e-5)


def wait_for(metrics: Path, step: int, seconds: float = 600) -> None:
    """Until a run tells of a step."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if any(line.startswith(f'{{"step": {step},') for line in lines):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {metrics}")


def test_half_the_devices_go_on_with_what_eight_began(whole, folders):
    stage, wanted = whole
    workdir = folders / f"{stage}-halved"
    for devices, mesh in ((8, (2, 4)), (4, (2, 2))):
        shape = {"mesh.data": mesh[0], "mesh.fsdp": mesh[1]}
        steps = STEPS // 2 if devices == 8 else STEPS
        args = command(stage, workdir, folders, **shape, steps=steps)
        subprocess.run(args, env=environment(folders, devices), check=True)
    assert_alike(losses(workdir), wanted, 1e-4)
