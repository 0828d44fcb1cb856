"""What a training will need, before any accelerator is at hand: parameters, operations, memory.

    python launch/plan.py --config=configs/stage1.py --devices=32 --config.mesh.data=4 \\
        --config.mesh.fsdp=8 --config.batch_size=32

Lowers and compiles each update of a recipe for a mesh of so many devices that only pretend to be
there, and computes nothing. By default these are CPUs, whose compiler comes with jax: others fuse
and schedule otherwise, so take its memory as an estimate. With the compiler for a TPU or GPU
(`pip install "jax[tpu]"` or `"jax[cuda12]"`; no device is needed) it is what is planned there:

    python launch/plan.py --config=configs/stage1.py --target=v5e:4x8 --config.mesh.fsdp=4
    python launch/plan.py --config=configs/stage1.py --target=h200 --config.batch_size=8

On two cores an update of the paper's size takes a quarter of an hour. Without init paths weights
are random, which changes nothing.
"""

import os
import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from onedc_jax.cli import recipes
from onedc_jax.compilation import enable_compilation_cache
from onedc_jax.data import make_views
from onedc_jax.errors import OneDCError, one_line
from onedc_jax.folders import explain
from onedc_jax.sharding import make_mesh
from onedc_jax.targets import HELP, target_devices
from onedc_jax.training.loop import make_stage, view_options
from onedc_jax.training.programs import Programs, flops

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/stage1.py.")
_DEVICES = flags.DEFINE_integer("devices", 1, "How many CPUs or GPUs to pretend.")
_TARGET = flags.DEFINE_string("target", "cpu", f"What to compile for: cpu, {HELP}.")
flags.mark_flag_as_required("config")

_GIB = 2**30


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every step it takes
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    jax.config.update("jax_platforms", "cpu")
    enable_compilation_cache()
    try:
        if _TARGET.value == "cpu":
            plan(_CONFIG.value, _pretended(_DEVICES.value))
        else:
            devices = target_devices(_TARGET.value, _DEVICES.value)
            with jax.default_device(devices[0]):  # attention asks what there is
                plan(_CONFIG.value, devices)
    except (OneDCError, OSError) as error:
        recipes.fail("plan", explain(error))


def _pretended(count: int) -> list[jax.Device]:
    """So many CPUs."""
    # Of the code that would run nothing is wanted: what it needs is known before it is optimised.
    flags_set = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags_set} --xla_backend_optimization_level=0"
    jax.config.update("jax_num_cpu_devices", count)
    return jax.devices()


def plan(config, devices: list[jax.Device]) -> None:
    """Prints the plan of a recipe on the mesh of devices that it names."""
    mesh = make_mesh(**config.mesh, devices=devices)
    stage = make_stage(config)
    state, frozen = jax.eval_shape(stage.init)
    jax.clear_caches()  # or the random weights that it drew stay in memory as constants
    programs = Programs(stage, mesh, state, frozen, say=lambda message: None)
    across = f"{mesh.shape['data']} × {mesh.shape['fsdp']}"
    print(f"{config.stage} on {across} devices ({devices[0].device_kind})")
    for name, tree in (("trained", state.params), ("frozen", frozen)):
        count = sum(x.size for x in jax.tree.leaves(tree))
        print(f"  {name:8} {count / 1e6:10,.1f} M parameters")
    held = _bytes(state, programs.state_shardings) + _bytes(frozen, programs.frozen_shardings)
    print(f"  weights and optimizer, a device: {held / _GIB:.2f} GiB")
    print(
        "  update      batch                 TFLOP a device    working GiB    in all GiB  compiled"
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    views = make_views(**view_options(config))
    sizes = [(round(config.batch_size * view.batch), view.size) for view in views]
    for count, side in dict.fromkeys(sizes):
        shape = (count, side, side, 3)
        batch = dict(image=jax.ShapeDtypeStruct(shape, np.uint8))
        if config.data.captions:
            batch["caption"] = jax.ShapeDtypeStruct((count, 77), np.int32)
        for name in stage.updates:
            size, start = "×".join(map(str, shape)), time.perf_counter()
            try:
                compiled = programs.compiled(name, state, frozen, batch, key)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"  {name:10}  {size:20}  does not fit: {_sentences(error)}", flush=True)
                continue
            seconds = time.perf_counter() - start
            work = flops(compiled) * config.accumulate
            counted = f"{work / 1e12:.2f}" if work else "not counted"
            working = compiled.memory_analysis().temp_size_in_bytes
            print(
                f"  {name:10}  {size:20}  {counted:>14}"
                f"  {working / _GIB:13.2f}  {(held + working) / _GIB:12.2f}  {seconds:6.0f} s",
                flush=True,
            )


def _sentences(error: Exception, count: int = 3) -> str:
    """The first few that an error says; what follows are lists of arrays."""
    text = one_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
    return ". ".join(text.removesuffix(".").split(". ")[:count])


def _bytes(tree, shardings) -> int:
    """Of a tree on one device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize for x, s in pairs)


if __name__ == "__main__":
    app.run(main, flags_parser=recipes.parser("plan", _CONFIG))
