"""The paper's size, as the codec runs it: python benchmarks/paper_size.py --sizes 1920x1024

The whole model at its published sizes with random weights, on pixels of the sample photograph:
milliseconds of the encoder's network, of the path from tokens to y (with symbols that are all
zero), and of the decoder's network, from NumPy to NumPy; and the most memory that each size took,
of the device on a GPU or TPU and of the process on a CPU, which it only tells of what is larger
than all before. Weights and compiling come first and are not counted. On two CPU cores 512x512
takes five minutes and 9 GiB.
"""

import argparse
import resource
import sys

import jax
import numpy as np
from machine import heading, most_memory, photo, seconds, size, table

from onedc_jax.coding import proof
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.path import IntegerPath
from onedc_jax.models.folding import fold, folded
from onedc_jax.models.init import random_params
from onedc_jax.models.onedc import build, param_shapes


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
        rows.append([f"{width}×{height}", windows, *times, f"{peak(device) / 2**30:.2f}"])
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [(512, 512), (1024, 1024), (1920, 1024), (4096, 4096)]
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="WxH")
    arguments = parser.parse_args()
    main(arguments.sizes)
