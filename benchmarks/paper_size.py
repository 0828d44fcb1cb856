"""The paper's size, as the codec runs it: python benchmarks/paper_size.py --sizes 1920x1024

The whole model at its published sizes with random weights, on pixels of the sample photograph:
milliseconds of the encoder's network, of the path from tokens to y (with symbols that are all
zero), and of the decoder's network, from NumPy to NumPy; and the most memory that each size took,
of the device on a GPU or TPU and of the process on a CPU, which it only tells of what is larger
than all before. Weights and compiling come first and are not counted. On two CPU cores 512x512
takes five minutes and 9 GiB.

    python benchmarks/paper_size.py --target h200

With --target nothing is run: the programs are compiled for a device that need not be here
(`pip install "jax[cuda12]"` for GPUs, `"jax[tpu]"` for TPUs), and the table has what they are
planned to take of its memory.
"""

import argparse
import resource
import sys
from functools import partial

import jax
import numpy as np
from machine import heading, most_memory, photo, seconds, size, table

from onedc_jax.coding import proof
from onedc_jax.coding.networks import Networks, halved
from onedc_jax.coding.path import IntegerPath
from onedc_jax.coding.stream import TOKEN_PIXELS
from onedc_jax.errors import OneDCError
from onedc_jax.models.folding import fold, folded
from onedc_jax.models.init import random_params
from onedc_jax.models.onedc import build, param_shapes
from onedc_jax.targets import HELP, shapes_on, target_devices

_GIB = 2**30


def main(sizes: list[tuple[int, int]]) -> None:
    device, model = jax.local_devices()[0], build({})
    params = random_params(param_shapes(model), 0)
    networks = Networks.of(folded(model), fold(model, params), device)
    del params  # those on the device are enough
    path = IntegerPath.of(proof.made_up_integers(networks.model.codec.channels))
    rows = []
    for width, height in sorted(sizes, key=np.prod):
        windows, *times = timed(networks, path, photo(width, height))
        times = [f"{1000 * time:.1f}" for time in times]
        rows.append([f"{width}×{height}", windows, *times, f"{peak(device) / _GIB:.2f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    print(heading(), end="\n\n")
    columns = ["size", "windows", "encoder, ms", "tokens to y, ms", "decoder, ms", "peak GiB"]
    print(table(columns, rows))


def timed(
    networks: Networks, path: IntegerPath, image: np.ndarray
) -> tuple[int, float, float, float]:
    """How many windows cover an image, and the seconds of the three parts."""
    _, z_indices = networks.analyse(image)
    none = lambda levels: np.zeros(levels.shape, np.int32)
    y_hat = np.clip(path.dequantise(none, z_indices), -8, 8)
    networks.reconstruct(y_hat, z_indices, None)
    parts = (
        lambda: networks.analyse(image),
        lambda: path.dequantise(none, z_indices),
        lambda: networks.reconstruct(y_hat, z_indices, None),
    )
    windows = networks.cover(*z_indices.shape)[1]
    return len(windows), *(seconds(part, 0.0, 2) for part in parts)


def peak(device: jax.Device) -> int:
    """The most bytes that this process has had at once: on the device, if that says so."""
    stats = device.memory_stats() or {}
    held = most_memory(resource.getrusage(resource.RUSAGE_SELF))
    return stats.get("peak_bytes_in_use", held)


class Planned:
    """In the place of `Programs`, of programs that cannot run: compiles one and says what it takes.

    Attributes:
      memory: bytes beside the weights, by what `Networks` calls the program.
    """

    def __init__(self, device: jax.Device):
        self._device = device
        self.memory = {}

    def get(self, key, function, of: str, *args) -> int:
        del of
        if key not in self.memory:
            args = shapes_on(self._device, args)
            found = jax.jit(function).lower(*args).compile().memory_analysis()
            parts = ("temp_size", "output_size", "generated_code_size")
            self.memory[key] = sum(getattr(found, f"{part}_in_bytes") for part in parts)
            print(*key, f"{self.memory[key] / _GIB:.2f} GiB", file=sys.stderr, flush=True)
        return self.memory[key]


def plan(sizes: list[tuple[int, int]], target: str) -> None:
    """The table of a device to compile for."""
    device, model = target_devices(target)[0], folded(build({}))
    programs = Planned(device)
    params = jax.eval_shape(partial(halved, dtype="bfloat16"), param_shapes(model))
    networks = Networks(model, params, "bfloat16", programs)
    weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    rows = []
    for width, height in sorted(sizes, key=np.prod):
        shape, windows = networks.cover(-(-height // TOKEN_PIXELS), -(-width // TOKEN_PIXELS))
        with jax.default_device(device):  # attention asks what there is
            taken = [networks.analysis(shape), networks.reconstruction(shape)]
        gib = [f"{x / _GIB:.2f}" for x in (*taken, weights + sum(taken))]
        rows.append([f"{width}×{height}", len(windows), *gib])
    print(f"{device.device_kind}, compiled only, weights {weights / _GIB:.2f} GiB; {heading()}\n")
    print(table(["size", "windows", "encoder, GiB", "decoder, GiB", "with weights, GiB"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [(512, 512), (1024, 1024), (1920, 1024), (4096, 4096)]
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="WxH")
    parser.add_argument("--target", help=f"only compile, for: {HELP}")
    arguments = parser.parse_args()
    if arguments.target:
        jax.config.update("jax_platforms", "cpu")
        try:
            plan(arguments.sizes, arguments.target)
        except OneDCError as error:
            parser.error(str(error))
    else:
        main(arguments.sizes)
