"""Compiled programs, kept from one run to the next.

jax's own compilation cache spares compiling; these are loaded ready to run, and nothing is traced
either, which takes as long.
"""

import functools
import os
import pickle
import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jaxlib
import numpy as np
from jax.experimental import serialize_executable

from onedc_jax import kept

COMPILING = "/onedc_jax/compiling"
"""The event of `jax.monitoring` that a program is about to be compiled."""

_MOST = 32  # so many of a network are kept: a few models' in all sizes


class Programs:
    """The programs of a model on a device: each is made once, by whichever thread is first.

    Models that differ in nothing but their parameters' values may share them. A copy has none.
    """

    def __init__(self):
        self._made: dict[Any, jax.stages.Compiled] = {}
        self._locks: dict[Any, threading.Lock] = {}

    def __reduce__(self):
        return Programs, ()  # of another process, or device, programs are of no use

    def get(self, key: Any, function: Callable, of: str, *args) -> jax.stages.Compiled:
        """`ready` of the other arguments, the first time that this key is asked for."""
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._made:
                self._made[key] = ready(function, of, *args)
            return self._made[key]


def ready(function: Callable, of: str, *args) -> jax.stages.Compiled:
    """`function` compiled for arguments as `args`, arrays or shapes, and for the arrays' device.

    `of` says all that it depends on beside its arguments' shapes and the code of this package.
    """
    device = _device(args)
    file = _file(function.__name__, of, args, device)
    if file:
        # Another jax or machine may have written it after all; then it is made anew.
        with suppress(Exception):
            return _read(kept.read(file), device)
    jax.monitoring.record_event(COMPILING)
    with _unknown_to_jax:
        compiled = jax.jit(function).lower(*args).compile()
    if file:
        with suppress(Exception):  # a full disk, a device that cannot: it only takes longer then
            data = pickle.dumps(serialize_executable.serialize(compiled))
            _try(_read(data, device), args)
            kept.write(file, data, _MOST)
    return compiled


def _device(args: tuple) -> jax.Device:
    arrays = (leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array))
    return next((min(x.devices(), key=lambda d: d.id) for x in arrays), jax.devices()[0])


def _read(data: bytes | memoryview, device: jax.Device) -> jax.stages.Compiled:
    parts, client = pickle.loads(data), device.client
    return serialize_executable.deserialize_and_load(*parts, client, execution_devices=[device])


class _UnknownToJax:
    """Keeps programs out of jax's cache: what comes from there cannot be written once more.

    The setting is that of all threads: the first of them takes it, the last puts it back.
    """

    _NAME = "jax_persistent_cache_min_compile_time_secs"

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._before = getattr(jax.config, self._NAME)
                jax.config.update(self._NAME, 1e9)
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                jax.config.update(self._NAME, self._before)


_unknown_to_jax = _UnknownToJax()


def _try(program: jax.stages.Compiled, args: tuple) -> None:
    """Runs a program that was read back, on zeros where there are shapes; raises if it cannot."""
    fill = lambda x: x if hasattr(x, "__array__") else np.zeros(x.shape, x.dtype)
    jax.block_until_ready(program(*jax.tree.map(fill, args)))


def _file(name: str, of: str, args: tuple, device: jax.Device) -> Path | None:
    """Where a program is kept, or None."""
    leaves, tree = jax.tree.flatten(args)
    shapes = [(x.shape, str(x.dtype)) for x in leaves]
    where = f"{device} {device.device_kind} {device.client.platform_version}"
    return kept.file(name, of, str(tree), str(shapes), where, *_here())


def _here() -> tuple[str, ...]:
    """What programs differ by: this package's code, jax, the processor, flags and settings."""
    return (
        kept.CODE,
        jax.__version__,
        jaxlib.__version__,
        _processor(),
        _flags("XLA_FLAGS"),
        _flags("LIBTPU_INIT_ARGS"),
        f"{jax.config.jax_enable_x64} {jax.config.jax_default_matmul_precision}",
        str(jax.config.read("jax_disable_most_optimizations")),
    )


def _flags(variable: str) -> str:
    """The flags that a variable of the environment holds, or the file that it names."""
    value = os.environ.get(variable, "")
    if value and not value.startswith("-"):
        with suppress(OSError):
            return Path(value).read_text(errors="surrogateescape")
    return value


@functools.cache
def _processor() -> str:
    """The processor with all that it can do, as far as the system says."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        return "\n".join(line for line in lines if line.startswith(wanted))
    return f"{platform.machine()} {platform.processor()}"
