"""What a training will need, before any accelerator is at hand: parameters, operations, memory.

    python launch/plan.py --config=configs/stage1.py --devices=32 --config.mesh.data=4 \\
        --config.mesh.fsdp=8 --config.batch_size=32

Lowers and compiles each update of a recipe for a mesh of so many devices that only pretend to be
there, and computes nothing. Memory is what XLA plans for a CPU; other backends fuse and schedule
otherwise, so take it as an estimate. Without init paths weights are random, which changes nothing.
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
from onedc_jax.errors import OneDCError
from onedc_jax.folders import explain
from onedc_jax.sharding import make_mesh
from onedc_jax.training.loop import make_stage, view_options
from onedc_jax.training.programs import Programs, flops

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/stage1.py.")
_DEVICES = flags.DEFINE_integer("devices", 1, "How many devices to pretend.")
flags.mark_flag_as_required("config")

_GIB = 2**30


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every step it takes
    # Of the code that would run nothing is wanted: what it needs is known before it is optimised.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    enable_compilation_cache()
    try:
        plan(_CONFIG.value)
    except (OneDCError, OSError) as error:
        recipes.fail("plan", explain(error))


def plan(config) -> None:
    """Prints the plan of a recipe on the mesh that it names."""
    mesh = make_mesh(**config.mesh)
    stage = make_stage(config)
    state, frozen = jax.eval_shape(stage.init)
    jax.clear_caches()  # or the random weights that it drew stay in memory as constants
    programs = Programs(stage, mesh, state, frozen, say=lambda message: None)
    print(f"{config.stage} on {mesh.shape['data']} × {mesh.shape['fsdp']} devices")
    for name, tree in (("trained", state.params), ("frozen", frozen)):
        count = sum(x.size for x in jax.tree.leaves(tree))
        print(f"  {name:8} {count / 1e6:10,.1f} M parameters")
    held = _bytes(state, programs.state_shardings) + _bytes(frozen, programs.frozen_shardings)
    print(f"  weights and optimizer, a device: {held / _GIB:.2f} GiB")
    print(
        "  update      batch                 TFLOP a device    working GiB    in all GiB  compiled"
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    for view in make_views(**view_options(config)):
        count = round(config.batch_size * view.batch)
        shape = (count, view.size, view.size, 3)
        batch = dict(image=jax.ShapeDtypeStruct(shape, np.uint8))
        if config.data.captions:
            batch["caption"] = jax.ShapeDtypeStruct((count, 77), np.int32)
        for name in stage.updates:
            start = time.perf_counter()
            compiled = programs.compiled(name, state, frozen, batch, key)
            seconds = time.perf_counter() - start
            work = flops(compiled) * config.accumulate
            working = compiled.memory_analysis().temp_size_in_bytes
            print(
                f"  {name:10}  {'×'.join(map(str, shape)):20}  {work / 1e12:14.2f}"
                f"  {working / _GIB:13.2f}  {(held + working) / _GIB:12.2f}  {seconds:6.0f} s",
                flush=True,
            )


def _bytes(tree, shardings) -> int:
    """Of a tree on one device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(int(np.prod(s.shard_shape(x.shape))) * x.dtype.itemsize for x, s in pairs)


if __name__ == "__main__":
    app.run(main, flags_parser=recipes.parser("plan", _CONFIG))
