"""A stage's updates as compiled programs, one for each shape of batch, and how fast they run."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from onedc_jax.distributed import meet
from onedc_jax.sharding import batch_sharding, replicated, shard_by_shape
from onedc_jax.training.state import Stage

# Dense bf16 matrix products, FLOP/s of one device, as its maker states them.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 61e12,  # a device is one of the chip's two cores
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class Programs:
    """The updates of a stage on a mesh.

    `state` and `frozen` may be arrays or shapes: only their shapes are looked at. `say` is told of
    each compilation, which happens once for each update and shape of batch.
    """

    def __init__(self, stage: Stage, mesh, state, frozen, say: Callable[[str], None] = print):
        self.state_shardings = shard_by_shape(mesh, state)
        self.frozen_shardings = shard_by_shape(mesh, frozen)
        self._stage, self._mesh, self._say = stage, mesh, say
        self._programs = {}  # update and shapes -> the program, and its operations

    def update(self, name: str, state, frozen, batch: dict, key, good=True):
        """Runs an update: (state, metrics, good). The state that went in is gone.

        Of the first update whose numbers are not all finite, and of those after it, which are told
        by `good`, bool [], the state comes back as it went in: to be looked at, once it is known.
        """
        return self.compiled(name, state, frozen, batch, key)(state, frozen, batch, key, good)

    def compiled(self, name: str, state, frozen, batch: dict, key) -> jax.stages.Compiled:
        """The program of an update for such a batch; arguments may be shapes."""
        shapes = _shapes(name, batch)
        if shapes not in self._programs:
            start = time.perf_counter()
            whole = replicated(self._mesh)
            where = {k: batch_sharding(self._mesh, v.shape) for k, v in batch.items()}
            program = jax.jit(
                _while_good(self._stage.updates[name]),
                in_shardings=(self.state_shardings, self.frozen_shardings, where, whole, whole),
                out_shardings=(self.state_shardings, whole, whole),
                donate_argnums=0,
            )
            with jax.set_mesh(self._mesh):
                good = jax.ShapeDtypeStruct((), bool)
                program = program.lower(state, frozen, batch, key, good).compile()
            self._programs[shapes] = program, flops(program)  # XLA counts anew when asked
            meet(f"compiled {shapes}")  # not all compile as fast
            seconds = time.perf_counter() - start
            size = "×".join(map(str, batch["image"].shape))
            self._say(f"compiled the update of {name} for a batch of {size} in {seconds:.0f} s")
        return self._programs[shapes][0]

    def flops(self, name: str, batch: dict) -> float:
        """Floating point operations of an update, once compiled, on one device: see `flops`."""
        return self._programs[_shapes(name, batch)][1]


def _while_good(update: Callable) -> Callable:
    """An update as `Programs.update` runs it."""

    def guarded(state, frozen, batch, key, good):
        new, metrics = update(state, frozen, batch, key)
        good &= jnp.stack([jnp.isfinite(x).all() for x in metrics.values()]).all()
        good &= metrics["finite"].all()
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), metrics, good

    return guarded


def _shapes(name: str, batch: dict) -> tuple:
    """What a program is for."""
    return (name, *sorted((k, v.shape) for k, v in batch.items()))


def flops(compiled: jax.stages.Compiled) -> float:
    """Floating point operations of a program on one device, by XLA's count; 0 if it has none.

    XLA counts one pass of a loop, such as that over the parts of a batch.
    """
    costs = compiled.cost_analysis()
    return float((costs or {}).get("flops", 0.0))


def place(mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process' rows of a batch -> the global batch on the mesh."""
    count = jax.process_count()

    def put(x: np.ndarray) -> jax.Array:
        shape = len(x) * count, *x.shape[1:]
        return jax.make_array_from_process_local_data(batch_sharding(mesh, shape), x, shape)

    return {name: put(x) for name, x in batch.items()}


class Meter:
    """Counts what was done since it was last read."""

    def __init__(self):
        self._start()

    def _start(self) -> None:
        self._since, self._steps, self._images, self._flops = time.perf_counter(), 0, 0, 0.0

    def step(self, images: int, flops: float) -> None:
        """Counts a step of so many images (of all devices) and operations (of one device)."""
        self._steps += 1
        self._images += images
        self._flops += flops

    def read(self) -> dict[str, float]:
        """Rates since the last reading; peak_share and memory where they are known."""
        seconds = time.perf_counter() - self._since
        rates = dict(
            steps_per_s=self._steps / seconds,
            images_per_s=self._images / seconds,
            device_tflop_per_s=self._flops / seconds / 1e12,
        )
        device = jax.local_devices()[0]
        peak = next((v for k, v in PEAKS.items() if device.device_kind.startswith(k)), None)
        if peak:
            rates["peak_share"] = self._flops / seconds / peak
        memory = device.memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            rates["device_peak_gib"] = memory["peak_bytes_in_use"] / 2**30
        self._start()
        return rates
