"""The full-size generator and VAE decoder against PyTorch: python benchmarks/full_size.py

    pip install torch diffusers
    python benchmarks/full_size.py --sizes 512x512 768x512
    python benchmarks/full_size.py --dtype bfloat16 --sizes 512x512 1024x1024 --batches 1 8   # GPU

Both sides have random weights of the released shapes: Stable Diffusion 1.5's U-Net, which sees
features of 320 channels and tokens of 768, and Stable Diffusion 2.1's VAE decoder. They run by
turns in processes of their own, on CPUs with as many threads as there are cores; the best of each
counts. PyTorch is run as it comes, with channels last on a GPU, and compiled where that works. On
Linux both have the C library ask for huge pages, as both otherwise wait for the kernel to clear
small ones: --small-pages leaves it.

Two floors stand beside the seconds: of the operations, at the rate at which large matrices multiply
here, and of the bytes that XLA counts, at the rate at which memory is copied.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from machine import copy_rate, heading, matrix_rate, table

TOKENS = 768
FEATURES = 320
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SIDES = ["jax", "torch", "torch.compile"]


class Case(NamedTuple):
    """What is decoded."""

    width: int
    height: int
    batch: int
    dtype: str


class Runner(NamedTuple):
    """One side: `once()` decodes and waits; `memory()` is the peak in bytes, 0 if not known."""

    once: Callable[[], object]
    memory: Callable[[], int]
    costs: Mapping[str, float] = MappingProxyType({})  # "flops" and "bytes", where they are counted


def jax_runner(case: Case) -> Runner:
    """One program from features to pixels, as in the codec."""
    import jax
    import jax.numpy as jnp

    from onedc_jax.coding.networks import to_uint8
    from onedc_jax.models.generator import Generator
    from onedc_jax.models.init import random_params
    from onedc_jax.models.vae import VAE
    from onedc_jax.models.winograd import on_cpu

    shape = jax.ShapeDtypeStruct
    generator, vae = Generator(dtype=case.dtype), VAE(dtype=case.dtype)
    h, w = case.height // 8, case.width // 8
    x_hat = shape((case.batch, h, w, FEATURES), jnp.float32)
    tokens = shape((case.batch, h // 8 * (w // 8), TOKENS), jnp.float32)
    latent = shape((case.batch, h, w, 4), jnp.float32)
    key = jax.random.key(0)
    params = dict(
        generator=jax.eval_shape(generator.init, key, x_hat, tokens)["params"],
        vae=jax.eval_shape(lambda k, x: vae.init(k, x, method=VAE.decode), key, latent)["params"],
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, case.dtype), random_params(params, 0))

    def decode(params, x_hat, tokens):
        with on_cpu():
            x0 = generator.apply({"params": params["generator"]}, x_hat, tokens)["x0"]
            image = vae.apply({"params": params["vae"]}, x0, method=VAE.decode)
        return to_uint8(jnp.clip(image, -1, 1))

    inputs = [jax.random.normal(key, x.shape) for x in (x_hat, tokens)]
    program = jax.jit(decode).lower(params, *inputs).compile()
    costs = program.cost_analysis() or {}
    costs = dict(flops=costs.get("flops", 0.0), bytes=costs.get("bytes accessed", 0.0))
    memory = lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return Runner(lambda: jax.block_until_ready(program(params, *inputs)), memory, costs)


def torch_runner(case: Case, compiled: bool) -> Runner:
    """diffusers' modules of the same shapes."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device, dtype = "cuda" if gpu else "cpu", getattr(torch, case.dtype)
    unet = UNet2DConditionModel(cross_attention_dim=TOKENS, in_channels=FEATURES).eval()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    layout = torch.channels_last if gpu else torch.contiguous_format
    unet, vae = (net.to(device, dtype).to(memory_format=layout) for net in (unet, vae))
    h, w = case.height // 8, case.width // 8
    x_hat = torch.randn(case.batch, FEATURES, h, w).to(device, dtype, memory_format=layout)
    tokens = torch.randn(case.batch, h // 8 * (w // 8), TOKENS).to(device, dtype)

    def decode(x_hat, tokens):
        eps = unet(x_hat, 999, tokens).sample
        image = vae.decode((x_hat[:, :4] - eps) / 0.18215).sample
        return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    run = torch.compile(decode) if compiled else decode

    def once():
        with torch.inference_mode():
            run(x_hat, tokens)
        if gpu:
            torch.cuda.synchronize()

    return Runner(once, torch.cuda.max_memory_allocated if gpu else lambda: 0)


def child(side: str, case: Case) -> None:
    """Says what it costs when it is ready, then answers each line of input with a run's seconds."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    runner = jax_runner(case) if side == "jax" else torch_runner(case, side == "torch.compile")
    for _ in range(2):
        runner.once()
    print(json.dumps(dict(runner.costs) | dict(memory=runner.memory())), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        runner.once()
        print(json.dumps(time.perf_counter() - start), flush=True)


def measure(case: Case, sides: list[str], rounds: int, env: dict[str, str]) -> dict[str, dict]:
    """The costs and the best seconds of each side that runs, by turns."""
    processes, found = {}, {}
    for side in sides:
        command = [sys.executable, __file__, "--child", side, json.dumps(case)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        if ready := process.stdout.readline():
            processes[side], found[side] = process, json.loads(ready) | dict(seconds=float("inf"))
        else:
            print(f"{side}: does not run here with {case}", file=sys.stderr)
    for _ in range(rounds):
        for side, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            seconds = json.loads(process.stdout.readline())
            found[side]["seconds"] = min(found[side]["seconds"], seconds)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return found


def main(cases: list[Case], sides: list[str], rounds: int, env: dict[str, str]) -> None:
    rows = []
    # In a process of its own: this one holds no device that the sides need.
    rates = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--rates", "--dtype", cases[0].dtype],
            env=env,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    )
    for case in cases:
        found = measure(case, sides, rounds, env)
        ours = found.get("jax", {})
        for side, of in found.items():
            seconds, memory = of["seconds"], of["memory"]
            ratio = f"{ours['seconds'] / seconds:.2f}" if ours else ""
            row = [f"{case.width}×{case.height}", case.batch, side, f"{1e3 * seconds:.1f}"]
            row += [f"{case.batch / seconds:.2f}", ratio]
            row += [f"{memory / 2**30:.2f}" if memory else ""]
            # What is to be done is the same for all, and XLA counts it.
            floors = [ours.get(name, 0.0) / rates[name] for name in ("flops", "bytes")]
            row += [f"{1e3 * floor:.1f}" for floor in floors]
            rows.append([*row, f"{100 * floors[0] / seconds:.0f}%"])
            print(*rows[-1], file=sys.stderr)
    print(f"{rates['heading']}; {cases[0].dtype} matrices multiply at", end=" ")
    print(f"{rates['flops'] / 1e9:,.0f} GFLOP/s, memory is copied at", end=" ")
    print(f"{rates['bytes'] / 1e9:,.0f} GB/s", end="\n\n")
    columns = ["size", "images", "", "ms", "images/s", "jax / this", "peak GiB"]
    columns += ["FLOP floor, ms", "byte floor, ms", "of the matrix rate"]
    print(table(columns, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x512", "768x512"], metavar="WxH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--small-pages", action="store_true", help="ask for no huge pages")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], Case(*json.loads(arguments.child[1])))
    elif arguments.rates:
        rates = dict(flops=matrix_rate(arguments.dtype), bytes=copy_rate(), heading=heading())
        print(json.dumps(rates))
    else:
        # Each side takes what it needs of a GPU's memory, and no more.
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        sizes = [map(int, size.split("x")) for size in arguments.sizes]
        cases = [Case(*s, b, arguments.dtype) for s in map(tuple, sizes) for b in arguments.batches]
        pages = {} if arguments.small_pages else HUGE_PAGES
        main(cases, arguments.sides, arguments.rounds, env | pages)
