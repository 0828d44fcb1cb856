"""eval: codecs over images, and a report to read and to look at."""

import argparse

from onedc_jax.cli.common import SOME_FAILED, USER_ERROR, command, count, path, quiet, say

_EVAL = """\
Codes images with models and with the codecs that everybody has, and writes a report: the numbers
that papers print, their curves, and a page to look at the pictures side by side. It is made of real
files, headers included. The same command again continues; nothing is coded twice.

The folder of the report holds
  index.html                       to open in a browser; needs no network
  results.jsonl, summary.csv       every file coded; the means
  bd_rate.csv, equal_metric.csv    rate saved against the anchor
  curves/, pictures/, files/       what they say"""

_EVAL_EXAMPLES = """\
examples:
  onedc eval --images kodak/ --out report
  onedc eval --images kodak/ --models tiny,RUN --baselines jpeg,webp,avif,jpegxl,jpeg2000 \\
      --anchor jpeg --out report
  onedc eval --images kodak/ --external bpg.toml --limit 6 --out report

A codec of your own is two commands in a small file:
  name = "bpg"
  encode = "bpgenc -q {quality} -o {output} {input}"
  decode = "bpgdec -o {output} {input}"
  qualities = [51, 45, 38, 30]
Both read and write PNG; "suffix", "version" and "timeout" (seconds) may follow."""


_LEARNED = ["lpips_alex", "lpips_vgg", "dists"]


def add(commands) -> None:
    """Adds the subcommand."""
    child = command(commands, "eval", _eval, "a model against other codecs", _EVAL, _EVAL_EXAMPLES)
    child.add_argument(
        "--images",
        type=path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folders of images, or images",
    )
    child.add_argument("--out", type=path, required=True, metavar="DIR", help="the report's folder")
    child.add_argument(
        "--models",
        type=_names,
        default=["tiny"],
        metavar="A,B",
        help="presets or model folders, or none (default: tiny)",
    )
    child.add_argument(
        "--effort",
        type=count,
        metavar="N",
        help="each model once more, named A+N, as onedc encode --effort N codes",
    )
    child.add_argument(
        "--baselines",
        type=_names,
        default=["jpeg", "webp", "avif", "jpeg2000"],
        metavar="A,B",
        help="of jpeg, webp, avif, jpeg2000, jpegxl, hevc, or none (default: the first four)",
    )
    child.add_argument(
        "--external",
        type=path,
        action="append",
        default=[],
        metavar="TOML",
        help="another codec, see below; may be given more than once",
    )
    child.add_argument(
        "--anchor",
        metavar="NAME",
        help="the codec that BD-rates are against (default: avif, else the first baseline)",
    )
    child.add_argument(
        "--metrics",
        type=_names,
        default=_LEARNED,
        metavar="A,B",
        help=f"of {', '.join(_LEARNED)}, or none, beside PSNR and MS-SSIM (default: all; all but "
        "the first are slow on a CPU)",
    )
    child.add_argument("--limit", type=count, metavar="N", help="the first N images only")
    child.add_argument(
        "--inception", type=path, metavar="DIR", help="FID's network, by onedc convert-part"
    )


def _names(text: str) -> list[str]:
    """A type of arguments: names between commas, none of them empty; "none" is none."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        path(name)  # refuses an empty one
    return [name for name in names if name != "none"]


def _eval(arguments: argparse.Namespace) -> int:
    quiet()
    from onedc_jax.compilation import enable_compilation_cache
    from onedc_jax.evaluation import results
    from onedc_jax.evaluation.distances import Distances
    from onedc_jax.evaluation.report import Codecs, report

    # What is wrong with the paths is said before a model is loaded.
    results.find(arguments.images)
    results.check_folder(arguments.out, arguments.images)
    enable_compilation_cache()
    distances = Distances(["psnr", "ms_ssim", *arguments.metrics])
    codecs = Codecs.load(
        arguments.models, arguments.baselines, arguments.external, arguments.effort
    )
    codecs.anchor(arguments.anchor)
    done = report(
        arguments.images,
        arguments.out,
        codecs,
        distances,
        anchor=arguments.anchor,
        limit=arguments.limit,
        inception=arguments.inception,
        say=say,
    )
    if done.points:
        print("\n".join(_table(done.points)))
    compared = len({point["codec"] for point in done.points})
    failed = len(done.failed)
    summary = f"{compared} of {len(codecs.all)} codecs, {failed} failure{'s' * (failed != 1)}"
    print(f"{arguments.out / 'index.html'}: {summary}")
    if not done.points:
        return USER_ERROR
    return SOME_FAILED if done.failed else 0


def _table(points: list[dict]) -> list[str]:
    """The means, a line for each codec and quality."""
    from onedc_jax.evaluation.rate import present
    from onedc_jax.evaluation.results import label

    names = "bpp", *present(points), "encode_s", "decode_s"
    lines = [f"{'codec':20}{'quality':>9}" + "".join(f"{name:>12}" for name in names)]
    for point in points:
        cells = (f"{point[name]:.4f}" if name in point else "-" for name in names)
        text = f"{point['codec'][-20:]:20}{label(point['quality']):>9}"
        lines.append(text + "".join(f"{cell:>12}" for cell in cells))
    return lines
