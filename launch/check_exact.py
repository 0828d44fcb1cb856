"""Asks this device for the digests of the integer path: python launch/check_exact.py

Exit code 0 if all are as they must be on every device, 1 if any differs, 2 if there is no such
device or model. docs/exactness.md says what they mean. With --model, prints the digest of a model's
own integers as well, to compare between machines.

    python launch/check_exact.py --target v5e:2x2

compiles for a device that is not here, as `pip install "jax[tpu]"` or `"jax[cuda12]"` can, and
counts the types of numbers in the programs: exit code 1 if there is any that rounds.
"""

import argparse
import os
import re
import sys
from collections import Counter

import jax

from onedc_jax import checkpoint
from onedc_jax.coding import proof
from onedc_jax.errors import OneDCError
from onedc_jax.models import integer
from onedc_jax.targets import HELP, shapes_on, target_devices


def main(cases: list[str], model: str | None) -> int:
    device = _device()
    entropy = _integers(model) if model else None
    print(f"{device.platform} ({device.device_kind}), jax {jax.__version__}")
    if flags := os.environ.get("XLA_FLAGS"):
        print(f"XLA_FLAGS={flags}")
    run, differ = jax.jit(proof.predictions), 0
    for name in cases:
        expected = proof.stored()[name]
        found = proof.digest(run(*jax.device_put(proof.case(name))))
        differ += found != expected
        print(f"{name:8} {found} {'OK' if found == expected else f'DIFFERENT from {expected}'}")
    if entropy:
        segments = jax.device_put(integer.segments(entropy))
        channels = segments[0]["prior"]["reduction"]["bias"].size
        inputs = jax.device_put(proof.inputs(channels, 1, 2, 3))
        for i, segment in enumerate(segments):
            rate = integer.RATES * (2 * i + 1) // (2 * len(segments))  # the middle of it
            found = run(segment, *inputs, rate=rate)
            print(f"{proof.digest(found)} {model}, segment {i + 1} of {len(segments)}")
    return int(differ > 0)


def compiled(cases: list[str], target: str) -> int:
    """The exit code of the cases' programs as they are compiled for a target."""
    device, rounding = target_devices(target)[0], 0
    print(f"{device.platform} ({device.device_kind}), compiled only, jax {jax.__version__}")
    for name in cases:
        program = jax.jit(proof.predictions).lower(*shapes_on(device, proof.case(name))).compile()
        types = Counter(re.findall(r"\b(pred|[a-z]+[0-9]+\w*)\[", program.as_text()))
        found = [kind for kind in types if not re.fullmatch(r"pred|[su]\d+", kind)]
        rounding += bool(found)
        counts = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
        print(f"{name:8} {f'ROUNDS: {found}' if found else 'OK'} of {counts}", flush=True)
    return int(rounding > 0)


def _device() -> jax.Device:
    try:
        return jax.devices()[0]
    except (AssertionError, RuntimeError) as error:  # jax has both for a platform that is not there
        raise OneDCError(f"{jax.config.jax_platforms}: no such device here") from error


def _integers(model: str):
    _, params = checkpoint.load_model(checkpoint.resolve(model))
    if "entropy" not in params:
        raise OneDCError(f"{model}: has no integers; onedc quantize makes them")
    return params["entropy"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    help = "which, of: %(choices)s (default: all)"
    choices = [*proof.CASES]
    parser.add_argument("--case", choices=choices, action="append", dest="cases", help=help)
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="also a model's own integers")
    parser.add_argument("--platform", metavar="NAME", help="cpu, cuda, rocm or tpu")
    parser.add_argument("--target", help=f"only compile, for: {HELP}")
    arguments = parser.parse_args()
    if arguments.target and (arguments.platform or arguments.model):
        parser.error("--target runs nothing: --platform and --model go without it")
    if platform := "cpu" if arguments.target else arguments.platform:
        jax.config.update("jax_platforms", platform)
    cases = arguments.cases or choices
    try:
        if arguments.target:
            sys.exit(compiled(cases, arguments.target))
        sys.exit(main(cases, arguments.model))
    except OneDCError as error:
        print(f"check_exact: {error}", file=sys.stderr)
        sys.exit(2)
