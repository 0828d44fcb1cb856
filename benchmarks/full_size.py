"""The full-size generator and VAE decoder against PyTorch: python benchmarks/full_size.py

    pip install torch diffusers
    python benchmarks/full_size.py --sizes 512x512 768x512

Both sides have random weights of the released shapes: Stable Diffusion 1.5's U-Net, which sees
features of 320 channels and tokens of 768, and Stable Diffusion 2.1's VAE decoder. They run by
turns in processes of their own, with as many threads as there are cores; the best of each counts.
PyTorch is run as it comes, and compiled where that works. On Linux both have the C library ask for
huge pages, as both otherwise wait for the kernel to clear small ones: --small-pages leaves it.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from machine import heading, table

TOKENS = 768
FEATURES = 320
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def jax_runner(width: int, height: int):
    """One program from features to pixels, as in the codec."""
    import jax
    import jax.numpy as jnp

    from onedc_jax.coding.networks import to_uint8
    from onedc_jax.models.generator import Generator
    from onedc_jax.models.init import random_params
    from onedc_jax.models.vae import VAE
    from onedc_jax.models.winograd import on_cpu

    shape = jax.ShapeDtypeStruct
    generator, vae = Generator(), VAE()
    x_hat = shape((1, height // 8, width // 8, FEATURES), jnp.float32)
    tokens = shape((1, height // 64 * (width // 64), TOKENS), jnp.float32)
    latent = shape((1, height // 8, width // 8, 4), jnp.float32)
    key = jax.random.key(0)
    params = dict(
        generator=jax.eval_shape(generator.init, key, x_hat, tokens)["params"],
        vae=jax.eval_shape(lambda k, x: vae.init(k, x, method=VAE.decode), key, latent)["params"],
    )
    params = jax.device_put(random_params(params, 0))

    def decode(params, x_hat, tokens):
        with on_cpu():
            x0 = generator.apply({"params": params["generator"]}, x_hat, tokens)["x0"]
            image = vae.apply({"params": params["vae"]}, x0, method=VAE.decode)
        return to_uint8(jnp.clip(image, -1, 1))

    inputs = [jax.random.normal(key, x.shape) for x in (x_hat, tokens)]
    program = jax.jit(decode).lower(params, *inputs).compile()
    return lambda: jax.block_until_ready(program(params, *inputs))


def torch_runner(width: int, height: int, compiled: bool):
    """diffusers' modules of the same shapes."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=TOKENS, in_channels=FEATURES).eval()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    x_hat = torch.randn(1, FEATURES, height // 8, width // 8)
    tokens = torch.randn(1, height // 64 * (width // 64), TOKENS)

    def decode(x_hat, tokens):
        eps = unet(x_hat, 999, tokens).sample
        image = vae.decode((x_hat[:, :4] - eps) / 0.18215).sample
        return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    run = torch.compile(decode) if compiled else decode

    def once():
        with torch.inference_mode():
            return run(x_hat, tokens)

    return once


def child(side: str, width: int, height: int) -> None:
    """Answers each line of input with the seconds of one run."""
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    if side == "jax":
        run = jax_runner(width, height)
    else:
        run = torch_runner(width, height, side == "torch.compile")
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - start), flush=True)


def main(sizes: list[str], sides: list[str], rounds: int, pages: dict[str, str]) -> None:
    rows = []
    for size in sizes:
        children = {}
        for side in sides:
            command = [sys.executable, __file__, "--child", side, "--sizes", size]
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, text=True, env=os.environ | pages
            )
            if process.stdout.readline().strip() == "ready":
                children[side] = process
            else:
                print(f"{side}: does not run here", file=sys.stderr)
        times = {side: [] for side in children}
        for _ in range(rounds):
            for side, process in children.items():
                process.stdin.write("\n")
                process.stdin.flush()
                times[side].append(json.loads(process.stdout.readline()))
        for process in children.values():
            process.stdin.close()
            process.wait()
        best = {side: min(found) for side, found in times.items()}
        peer = min((t for side, t in best.items() if side != "jax"), default=float("nan"))
        for side, found in best.items():
            rows.append([size, side, f"{found:.2f}", f"{best['jax'] / found:.2f}"])
        print(f"{size}: jax takes {best['jax'] / peer:.2f} of PyTorch's time", file=sys.stderr)
    print(heading(), end="\n\n")
    print(table(["size", "", "seconds", "jax / this"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x512", "768x512"], metavar="WxH")
    parser.add_argument("--sides", nargs="+", default=["jax", "torch", "torch.compile"])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--small-pages", action="store_true", help="ask for no huge pages")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, *map(int, arguments.sizes[0].split("x")))
    else:
        pages = {} if arguments.small_pages else HUGE_PAGES
        main(arguments.sizes, arguments.sides, arguments.rounds, pages)
