"""The full-size generator and VAE decoder against PyTorch: python benchmarks/full_size.py

    pip install torch diffusers
    python benchmarks/full_size.py --sizes 512x512 768x512
    python benchmarks/full_size.py --dtype bfloat16 --sizes 512x512 1024x1024 --batches 1 8   # GPU

Both sides have random weights of the released shapes, drawn on the device: Stable Diffusion 1.5's
U-Net, which sees features of 320 channels and tokens of 768, and Stable Diffusion 2.1's VAE
decoder. Each is a process with one set of weights for all sizes and batches. They get ready
together, jax with several compilations at once, and then run by turns, on CPUs with as many threads
as there are cores; the best of each counts. PyTorch is run as it comes, with channels last on a
GPU, and compiled where that works. On Linux both have the C library ask for huge pages, as both
otherwise wait for the kernel to clear small ones: --small-pages leaves it.

Two floors stand beside the seconds: of the products, at the rate at which large matrices multiply
here, and of the bytes that XLA counts (on a GPU without those of library calls), at the rate at
which memory is copied. Memory is PyTorch's peak on a GPU, and what XLA plans a jax program to take.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from machine import copy_rate, heading, matrix_rate, operations, seconds, size, table

TOKENS = 768
FEATURES = 320
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
SIDES = ["jax", "torch", "torch.compile"]
GPU_RUNS, LEAST = 3, 0.3  # at each turn so many and so many seconds; on a CPU one run is enough


class Case(NamedTuple):
    """What is decoded."""

    width: int
    height: int
    batch: int
    dtype: str


class Runner(NamedTuple):
    """A case on one side, warm: `once()` decodes and waits, `release()` leaves memory to others."""

    once: Callable[[], object]
    runs: int  # at each turn
    costs: dict[str, float]  # "memory" in bytes, 0 if not known; "flops" and "bytes", if counted
    release: Callable[[], object] = lambda: None


def jax_side(cases: list[Case]) -> Callable[[Case], Runner]:
    """One program a case, from features to pixels as in the codec; all are compiled from now on."""
    import jax
    import jax.numpy as jnp

    from onedc_jax.models.generator import Generator
    from onedc_jax.models.pixels import to_uint8
    from onedc_jax.models.vae import VAE
    from onedc_jax.models.winograd import on_cpu

    dtype, cpu = cases[0].dtype, jax.default_backend() == "cpu"
    generator, vae, key = Generator(dtype=dtype), VAE(dtype=dtype), jax.random.key(0)

    def inputs(case: Case) -> list[jax.ShapeDtypeStruct]:
        h, w = case.height // 8, case.width // 8
        shapes = (h, w, FEATURES), (h // 8 * (w // 8), TOKENS)
        return [jax.ShapeDtypeStruct((case.batch, *shape), jnp.float32) for shape in shapes]

    def init(x_hat, tokens):
        latent = jnp.zeros((*x_hat.shape[:3], 4))
        params = generator.init(key, x_hat, tokens), vae.init(key, latent, method=VAE.decode)
        return jax.tree.map(lambda x: x.astype(dtype), params)

    def decode(params, x_hat, tokens):
        x0 = generator.apply(params[0], x_hat, tokens)["x0"]
        image = vae.apply(params[1], x0, method=VAE.decode)
        return to_uint8(jnp.clip(image, -1, 1))

    def compiled(case: Case) -> tuple[jax.stages.Compiled, dict[str, float]]:
        with on_cpu():
            program = jax.jit(decode).lower(shapes, *inputs(case)).compile()
        memory, costs = program.memory_analysis(), program.cost_analysis() or {}
        size = memory.argument_size_in_bytes + memory.output_size_in_bytes
        size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        return program, dict(bytes=costs.get("bytes accessed", 0.0), memory=size)

    def counted(case: Case) -> float:
        # Not by XLA, which counts a loop once, and on a GPU nothing of what libraries do. As on a
        # CPU, where attention is made of plain products.
        with jax.default_device(jax.devices("cpu")[0]):
            return operations(jax.make_jaxpr(decode)(shapes, *inputs(case)).jaxpr)

    def weights(noise):
        def leaf(path, x):
            if len(x.shape) == 1:
                return jnp.full(x.shape, path[-1].key == "scale", x.dtype)
            return noise[: x.size].reshape(x.shape) * (x.size // x.shape[-1]) ** -0.5

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    shapes = jax.eval_shape(init, *inputs(cases[0]))
    compiling, counting = ThreadPoolExecutor(4), ThreadPoolExecutor(1)
    programs = {case: compiling.submit(compiled, case) for case in cases}
    flops = {case: counting.submit(counted, case) for case in cases}
    # One draw for all kernels: a thousand draws take XLA minutes to compile.
    largest = max(x.size for x in jax.tree.leaves(shapes))
    params = jax.jit(weights)(jax.random.normal(key, (largest,), dtype))

    def prepare(case: Case) -> Runner:
        program, costs = programs[case].result()
        arguments = params, *(jax.random.normal(key, x.shape, x.dtype) for x in inputs(case))
        once = lambda: jax.block_until_ready(program(*arguments))
        once()
        costs |= dict(flops=flops[case].result())
        return Runner(once, 1 if cpu else GPU_RUNS, costs)

    return prepare


def torch_side(cases: list[Case], compiled: bool) -> Callable[[Case], Runner]:
    """diffusers' modules of the same shapes."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    device, dtype = "cuda" if gpu else "cpu", getattr(torch, cases[0].dtype)
    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=TOKENS, in_channels=FEATURES)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    layout = torch.channels_last if gpu else torch.contiguous_format
    unet, vae = (net.to(dtype).to(memory_format=layout).eval() for net in (unet, vae))

    def decode(x_hat, tokens):
        eps = unet(x_hat, 999, tokens).sample
        image = vae.decode((x_hat[:, :4] - eps) / 0.18215).sample
        return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    if compiled:  # else no more than eight cases are, and the others run as they are
        torch._dynamo.config.recompile_limit = max(8, len(cases))

    def prepare(case: Case) -> Runner:
        h, w = case.height // 8, case.width // 8
        x_hat = torch.randn(case.batch, FEATURES, h, w, device=device, dtype=dtype)
        x_hat = x_hat.to(memory_format=layout)
        tokens = torch.randn(case.batch, h // 8 * (w // 8), TOKENS, device=device, dtype=dtype)
        run = torch.compile(decode, dynamic=False) if compiled else decode

        def once():
            with torch.inference_mode():
                run(x_hat, tokens)
            if gpu:
                torch.cuda.synchronize()

        once()
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        once()
        if not gpu:
            return Runner(once, 1, dict(memory=0))
        costs = dict(memory=torch.cuda.max_memory_allocated())
        torch.cuda.empty_cache()
        return Runner(once, GPU_RUNS, costs, torch.cuda.empty_cache)

    return prepare


def child(side: str, cases: list[Case], limit: float) -> None:
    """Says which cases are ready and what they cost, then times those that are asked for.

    A line each: {"case": index, ...costs} as they get ready, {"done": true}; from then on an index
    is answered with a run's seconds, Infinity if it failed.
    """
    start = time.perf_counter()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    say = lambda what: print(json.dumps(what), flush=True)
    leave_out = lambda case, why: print(f"{side}: not {case}: {why:.200}", file=sys.stderr)
    prepare = jax_side(cases) if side == "jax" else torch_side(cases, side == "torch.compile")
    runners = {}
    for index, case in enumerate(cases):
        # Jax's cases are compiled together: when one is ready, none takes much longer.
        if side != "jax" and time.perf_counter() - start > limit:
            leave_out(case, "no time left")
            continue
        try:
            runners[index] = prepare(case)
            say(dict(case=index) | runners[index].costs)
        except Exception as error:
            leave_out(case, repr(error))
    say(dict(done=True))
    for index in map(int, sys.stdin):
        try:
            say(seconds(runners[index].once, LEAST, runners[index].runs))
        except Exception as error:
            leave_out(cases[index], repr(error))
            say(float("inf"))
        runners[index].release()


def ready(side: str, process: subprocess.Popen) -> dict[int, dict]:
    """The costs of each case that a side can run, by the case's index, when it has said all."""
    found = {}
    while line := process.stdout.readline():
        said = json.loads(line)
        if "done" in said:
            return found
        found[said.pop("case")] = said
    print(f"{side}: does not run here", file=sys.stderr)
    return {}


def answer(process: subprocess.Popen, index: int) -> float:
    """The seconds of a case's run, infinite if it fails."""
    if process.poll() is not None:
        return float("inf")
    print(index, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline() or "Infinity")


def main(cases: list[Case], sides: list[str], rounds: int, limit: float, env: dict) -> None:
    rows = []
    # First and in a process of its own: it needs the device alone, and then leaves it to the sides.
    command = [sys.executable, __file__, "--rates", "--dtype", cases[0].dtype]
    rates = json.loads(subprocess.check_output(command, env=env))
    with ExitStack() as stack:
        processes = {}
        for side in sides:
            command = [sys.executable, __file__, "--child", side, json.dumps(cases)]
            command += ["--prepare-seconds", str(limit)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
            processes[side] = stack.enter_context(process)
        costs = {side: ready(side, process) for side, process in processes.items()}
        for index, case in enumerate(cases):
            best = {side: float("inf") for side in sides if index in costs[side]}
            for side in rounds * list(best):
                best[side] = min(best[side], answer(processes[side], index))
            found = {side: took for side, took in best.items() if took < float("inf")}
            ours = costs.get("jax", {}).get(index, {})
            for side, took in found.items():
                memory = costs[side][index]["memory"]
                ratio = f"{found['jax'] / took:.2f}" if "jax" in found else ""
                row = [f"{case.width}×{case.height}", case.batch, side, f"{1e3 * took:.1f}"]
                row += [f"{case.batch / took:.2f}", ratio]
                row += [f"{memory / 2**30:.2f}" if memory else ""]
                # What is to be done is the same for all, and XLA counts it.
                floors = [ours.get(name, 0.0) / rates[name] for name in ("flops", "bytes")]
                row += [f"{1e3 * floor:.1f}" for floor in floors]
                rows.append([*row, f"{100 * floors[0] / took:.0f}%"])
                print(*rows[-1], file=sys.stderr)
    print(f"{rates['heading']}; {cases[0].dtype} matrices multiply at", end=" ")
    print(f"{rates['flops'] / 1e9:,.0f} GFLOP/s, memory is copied at", end=" ")
    print(f"{rates['bytes'] / 1e9:,.0f} GB/s", end="\n\n")
    columns = ["size", "images", "", "ms", "images/s", "jax / this", "peak GiB"]
    columns += ["FLOP floor, ms", "byte floor, ms", "of the matrix rate"]
    print(table(columns, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [(512, 512), (768, 512)]
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="WxH")
    parser.add_argument("--batches", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    waits = dict(type=float, default=float("inf"), metavar="S")
    parser.add_argument("--prepare-seconds", **waits, help="PyTorch begins no case after so long")
    parser.add_argument("--small-pages", action="store_true", help="ask for no huge pages")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rates", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, cases = arguments.child
        child(side, [Case(*case) for case in json.loads(cases)], arguments.prepare_seconds)
    elif arguments.rates:
        rates = dict(flops=matrix_rate(arguments.dtype), bytes=copy_rate(), heading=heading())
        print(json.dumps(rates))
    else:
        # Each side takes what it needs of a GPU's memory, and no more.
        env = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        cases = [Case(*s, b, arguments.dtype) for s in arguments.sizes for b in arguments.batches]
        pages = {} if arguments.small_pages else HUGE_PAGES
        main(cases, arguments.sides, arguments.rounds, arguments.prepare_seconds, env | pages)
