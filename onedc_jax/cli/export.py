"""export: the decoder's network as a file for other programs."""

import argparse
import re

from onedc_jax.cli.common import command, loader, name, path
from onedc_jax.errors import OneDCError
from onedc_jax.sizes import MAX_SIDE

_EXPORT = """\
Writes the decoder's network for images of one size, with its weights, as one file that jax runs
without this package: StableHLO from jax.export, and how to call it, in a ZIP archive."""

_EXAMPLES = """\
examples:
  onedc export tiny --size 768x512 --out decode.zip
  onedc export CKPT --size 1920x1080 --out decode.zip --platforms cuda

In Python, after `from onedc_jax import export`, export.load("decode.zip") gives the function. The
archive's run.py says how to call it, and does so with jax alone."""


def add(commands) -> None:
    """Adds the subcommand."""
    help = "the decoder's network for other programs"
    child = command(commands, "export", _export, help, _EXPORT, _EXAMPLES)
    help = "a preset, model folder or training run"
    child.add_argument("model", type=name, metavar="MODEL", help=help)
    child.add_argument(
        "--size", type=_size, required=True, metavar="WxH", help="of the images, in pixels"
    )
    child.add_argument("--out", type=path, required=True, metavar="FILE", help="the file to write")
    child.add_argument(
        "--platforms",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="of cpu, cuda, rocm, tpu (default: all)",
    )
    child.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        raise argparse.ArgumentTypeError(f"{text} is no size such as 768x512")
    return int(match[1]), int(match[2])


def _export(arguments: argparse.Namespace) -> int:
    import jax

    from onedc_jax import images
    from onedc_jax.coding.stream import check_size
    from onedc_jax.export import PLATFORMS, export

    check_size(*arguments.size)
    images.check_free(arguments.out, arguments.overwrite)
    platforms = arguments.platforms or PLATFORMS
    if unknown := set(platforms) - set(PLATFORMS):
        raise OneDCError(f"--platforms {min(unknown)}: there are {', '.join(PLATFORMS)}")
    try:
        import flatbuffers  # noqa: F401
    except ImportError as error:
        raise OneDCError("export needs flatbuffers: pip install flatbuffers") from error
    # Elsewhere than on a CPU the decoder's kernels are rounded as they are loaded.
    jax.config.update("jax_platforms", "cpu")
    data = export(loader(arguments.model)(), *arguments.size, platforms)
    images.atomic_write(arguments.out, data, arguments.overwrite)
    width, height = arguments.size
    print(
        f"{arguments.out}: decodes {width}x{height} on {', '.join(platforms)}  {len(data):,} bytes"
    )
    return 0
