"""quantize: makes a model's streams exact on every device."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from onedc_jax import folders
from onedc_jax.cli.common import SOME_FAILED, command, count, name, path, quiet, shown
from onedc_jax.errors import OneDCError

_SIDE = 512  # of the crops that are looked at: one size, one program

_QUANTIZE = """\
Gives a model integers in place of the floating-point numbers that its streams' probabilities come
from: streams of a model with integers decode on every device, bit for bit.

The images say which values occur; any varied photos will do, some thirty are enough. The model's
weights stay as they are. Streams that it made before are another model's afterwards."""

_EXAMPLES = """\
examples:
  onedc quantize CKPT --images photos/
  onedc quantize RUN --images photos/ --out exact
  onedc encode photo.jpg --model exact"""


def add(commands) -> None:
    """Adds the subcommand."""
    help = "streams that decode on every device"
    child = command(commands, "quantize", _quantize, help, _QUANTIZE, _EXAMPLES)
    help = "a model folder, training run or preset"
    child.add_argument("model", type=name, metavar="MODEL", help=help)
    child.add_argument(
        "--images", type=path, required=True, metavar="DIR", help="a folder of photos"
    )
    child.add_argument(
        "--out", type=path, metavar="DIR", help="the model folder to make (default: add to MODEL)"
    )
    child.add_argument(
        "--limit",
        type=count,
        default=32,
        metavar="N",
        help="at most so many (default: %(default)s)",
    )
    child.add_argument("--overwrite", action="store_true", help="replace what exists already")


def _quantize(arguments: argparse.Namespace) -> int:
    files = _pick(arguments.images, arguments.limit)
    quiet()
    import numpy as np
    from tqdm import tqdm

    from onedc_jax import checkpoint, images
    from onedc_jax.coding.loading import load
    from onedc_jax.coding.path import IntegerPath
    from onedc_jax.coding.stream import rate_of
    from onedc_jax.compilation import enable_compilation_cache
    from onedc_jax.quantization import Calibration

    if not arguments.out and arguments.model in checkpoint.presets():
        raise OneDCError(f"{arguments.model}: a preset stays as it is; name the --out to make")
    source = checkpoint.resolve(arguments.model)
    out = arguments.out or source
    if arguments.out:
        if (out / "model.json").is_file() and not arguments.overwrite:
            raise OneDCError(f"{out}: exists already; --overwrite replaces it")
        checkpoint.refuse_existing(out, arguments.overwrite)
    config, params = checkpoint.load_model(source)
    if not arguments.out and "entropy" in params and not arguments.overwrite:
        raise OneDCError(f"{source}: has integers already; --overwrite makes them anew")
    enable_compilation_cache()
    codec = load(source, "float")
    calibration = Calibration(codec.model.codec, codec.params["codec"])
    qualities = (0, 50, 100) if codec.has_knob else (None,)
    latents = []

    with tqdm(total=2 * len(files), unit="image", disable=None) as bar:

        def look(file: Path, _) -> None:
            bar.update()
            y, z_indices = codec.analyse(_crop(images.read(file)[0]))
            calibration.add(z_indices[None], y[None])
            latents.append((y, z_indices))

        say = lambda message: bar.write(f"onedc: {shown(message)}", file=sys.stderr)
        _, failed = folders.for_each(((file, file) for file in files), look, say)
        if not latents:
            raise OneDCError(f"{arguments.images}: none of its images could be read")
        entropy = calibration.integers()
        codecs = replace(codec, path=IntegerPath.of(entropy)), codec
        sizes = np.zeros((len(qualities), len(codecs)), int)
        for held in latents:
            for i, quality in enumerate(qualities):
                rate = None if quality is None else rate_of(quality)
                sizes[i] += [_size(of.quantise(*held, rate)[0]) for of in codecs]
            bar.update()

    checkpoint.save_model(out, config, params | {"entropy": entropy}, overwrite=True)
    print(f"{out}: has integers now; in bytes, y of {len(latents)} images takes")
    for quality, (now, before) in zip(qualities, sizes, strict=True):
        at = "" if quality is None else f" at quality {quality}"
        print(f"  {now:,}{at}, {100 * (now / before - 1):+.2f} % to {before:,} in floating point")
    return SOME_FAILED if failed else 0


def _pick(folder: Path, limit: int) -> list[Path]:
    """At most `limit` images, evenly from all in the folder and below."""
    from onedc_jax.images import READ_SUFFIXES

    if not folder.is_dir():
        raise OneDCError(f"{folder}: no such folder")
    files = folders.find(folder, READ_SUFFIXES)
    if not files:
        raise OneDCError(f"{folder}: no image in it")
    wanted = min(limit, len(files))
    return [files[i * len(files) // wanted] for i in range(wanted)]


def _crop(image):
    """The middle of an image, in whole blocks and at most _SIDE a side where it is large enough."""
    sides = [min(_SIDE, side // 64 * 64 or side) for side in image.shape[:2]]
    top, left = ((side - new) // 2 for side, new in zip(image.shape, sides, strict=False))
    return image[top : top + sides[0], left : left + sides[1]]


def _size(steps: list) -> int:
    from onedc_jax.coding.entropy import encode_steps

    return len(encode_steps(steps)[0])
