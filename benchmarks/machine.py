"""What the benchmarks share: how they name the machine, measure, and print tables."""

import datetime
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).resolve().parent.parent / "examples" / "valley.jpg"
"""What they code, in all sizes."""


def size(text: str) -> tuple[int, int]:
    """768x512 -> (768, 512), for argparse."""
    width, height = text.split("x")
    return int(width), int(height)


def photo(width: int, height: int) -> np.ndarray:
    """`PHOTO` in this size, uint8 [H, W, 3]."""
    with Image.open(PHOTO) as image:
        return np.asarray(image.convert("RGB").resize((width, height)))


def heading() -> str:
    """The machine, the libraries' versions and the date, in a line."""
    import jax

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        name = next(lines, f": {name}").partition(":")[2].strip()
    device = jax.devices()[0]
    if device.platform != "cpu":
        name = f"{device.device_kind}, {name}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, jax {jax.__version__}, {datetime.date.today()}"


def seconds(work: Callable[[], object], least: float = 1.0, runs: int = 3) -> float:
    """The fastest of at least so many runs, which take at least so long together."""
    found, start = [], time.perf_counter()
    while len(found) < runs or time.perf_counter() - start < least:
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return min(found)


def run_onedc(*arguments: str) -> tuple[float, float]:
    """Seconds, and GiB of memory at the most, of a command in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "onedc_jax.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - start, most_memory(usage) / 2**30


def most_memory(usage) -> int:
    """The most bytes that a process with this usage, as of `resource`, had in memory."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def matrix_rate(dtype: str = "float32") -> float:
    """FLOP/s of large matrix products in jax: what this device's peak is taken to be."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / seconds(lambda: jax.block_until_ready(product(a, a)))


def operations(jaxpr) -> float:
    """Floating-point operations of a jaxpr's products, of loops as often as they run."""
    from jax.extend.core import jaxprs_in_params

    total = 0.0
    for equation in jaxpr.eqns:
        results = sum(2 * math.prod(x.aval.shape) for x in equation.outvars)
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            total += results * math.prod(equation.invars[0].aval.shape[axis] for axis in summed)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += results * math.prod(kernel) / features
        inner = sum(map(operations, jaxprs_in_params(equation.params)))
        total += inner * equation.params.get("length", 1)
    return total


def copy_rate() -> float:
    """Bytes/s that are read and written when an array larger than any cache is gone through."""
    import jax
    import jax.numpy as jnp

    a = jnp.zeros(1 << 28, jnp.float32)  # 1 GiB
    program = jax.jit(lambda a: a + 1, donate_argnums=0)

    def once() -> None:
        nonlocal a
        a = jax.block_until_ready(program(a))

    once()
    return 2 * a.nbytes / seconds(once)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
