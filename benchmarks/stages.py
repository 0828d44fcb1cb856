"""A model stage by stage: python benchmarks/stages.py [--model NAME_OR_PATH] [--size WxH]

Seconds of each part of encoding and decoding, its operations (as XLA counts them, but of the prior
those of its products alone), and the share of the rate at which this machine multiplies large
matrices.
"""

import argparse
from functools import partial

import jax
import numpy as np
from machine import heading, matrix_rate, operations, photo, seconds, size, table

import onedc_jax
from onedc_jax.coding import stream
from onedc_jax.coding.entropy import SymbolDecoder, encode_steps
from onedc_jax.coding.path import knob_place
from onedc_jax.compilation import enable_compilation_cache
from onedc_jax.models.onedc import OneDC
from onedc_jax.models.prior import STEPS
from onedc_jax.training.programs import flops


def main(model: str, width: int, height: int) -> None:
    enable_compilation_cache()
    codec = onedc_jax.load(model)
    image = photo(width, height)
    data = codec.encode(image)
    y, z_indices = codec.analyse(image)
    rate = stream.inspect(data).header.rate
    steps = codec.quantise(y, z_indices, rate)[0]
    content = stream.unpack(data)
    latents = codec.decode_latents(data)[1]

    def entropy_decode():
        decoder = SymbolDecoder(content.y, content.words)
        for _, levels in steps:
            decoder.decode(levels)

    shape, windows = codec.networks.cover(*z_indices.shape)
    analysis = len(windows) * flops(codec.networks.analysis(shape))
    reconstruction = len(windows) * flops(codec.networks.reconstruction(shape))
    prior = prior_operations(codec, y, z_indices, rate)
    parts = {
        "analysis": (lambda: codec.analyse(image), analysis),
        "prior, encoding": (lambda: codec.quantise(y, z_indices, rate), prior),
        "entropy coder, encoding": (lambda: encode_steps(steps), 0),
        "**encode**": (lambda: codec.encode(image), analysis + prior),
        "entropy coder, decoding": (entropy_decode, 0),
        "prior and entropy coder, decoding": (lambda: codec.decode_latents(data), prior),
        "reconstruction": (lambda: codec.reconstruct(latents), reconstruction),
        "**decode**": (lambda: codec.decode(data), prior + reconstruction),
    }
    peak = matrix_rate()
    rows = []
    for name, (work, count) in parts.items():
        work()
        time = seconds(work)
        cells = [f"{count / 1e9:.1f}", f"{count / time / peak:.0%}"]
        rows.append([name, f"{1000 * time:.1f}", *(cells if count else ["", ""])])
    print(heading(), f"{model}, {width}×{height}, {len(data):,} bytes", sep="\n")
    print(f"matrix products: {peak / 1e9:.0f} GFLOP/s", end="\n\n")
    per_pixel = (analysis + 2 * prior + reconstruction) / 2 / image.shape[0] / image.shape[1]
    print(table(["part", "ms", "GFLOP", "of the matrix rate"], rows))
    print(f"\nboth ways, {per_pixel:,.0f} products and sums a pixel")


def prior_operations(codec, y: np.ndarray, z_indices: np.ndarray, rate: int | None) -> float:
    """Of the path from tokens to y's means and scales, on the whole image."""

    def path(y, z_indices, place):
        apply = partial(codec.model.apply, {"params": codec.params})
        parameters = apply(z_indices, place, method=OneDC.prior_parameters)
        return [apply(k, y, parameters, method=OneDC.prior_step) for k in range(STEPS)]

    return operations(jax.make_jaxpr(path)(y[None], z_indices[None], knob_place(rate)).jaxpr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--size", type=size, default=(768, 512), metavar="WxH")
    arguments = parser.parse_args()
    main(arguments.model, *arguments.size)
