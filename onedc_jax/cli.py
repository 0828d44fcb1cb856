"""The command `onedc`. Each subcommand imports what it needs when it runs: --help needs nothing."""

import argparse
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import onedc_jax
from onedc_jax import folders
from onedc_jax.errors import OneDCError

_PRESETS = Path(__file__).parent / "presets"
_SOME_FAILED, _USER_ERROR, _INTERRUPTED = 1, 2, 130

_EXAMPLES = """\
examples:
  onedc encode photo.jpg                 photo.onedc, beside it
  onedc decode photo.onedc               photo.png
  onedc encode photos/ small/            every image below photos/
  onedc info photo.onedc                 what is in it, without a model

`onedc COMMAND --help` tells more."""

_ENCODE = """\
Compresses an image (PNG, JPEG, WebP, TIFF, BMP, GIF), or every image in a folder and below.

Photos are turned upright as their camera says; transparency is put on white; of an animation the
first frame is taken. Decoding needs the same model."""

_ENCODE_EXAMPLES = """\
examples:
  onedc encode photo.jpg                 writes photo.onedc
  onedc encode photo.jpg out/p.onedc     writes out/p.onedc
  onedc encode photos/ small/            the same subfolders in small/, made as needed; goes on
                                         past a bad file, sums up, and returns 1 if any failed
  onedc encode photo.jpg --model RUN     with a model that you trained or converted"""

_DECODE = (
    "Restores an image from a compressed file, or from every .onedc file in a folder and below."
)

_DECODE_EXAMPLES = """\
examples:
  onedc decode photo.onedc               writes photo.png
  onedc decode photo.onedc photo.jpg     the extension chooses the format
  onedc decode small/ restored/          PNG files, in the same subfolders"""

_INFO_EXAMPLES = """\
examples:
  onedc info photo.onedc
  onedc info --json small/*.onedc        one JSON object a line"""

_CONVERT = """\
Turns released PyTorch weights (safetensors or .bin) into a model folder for --model. Every tensor
must find its place and every parameter its tensor."""

_CONVERT_EXAMPLES = """\
example:
  onedc convert --codec model_1.safetensors --generator model.safetensors --vae sd21/vae --out big
  onedc encode photo.jpg --model big

`onedc convert-part` converts one network that training starts from: a diffusion U-Net, a VAE, a
text encoder, a tokenizer, LPIPS."""

_CONVERT_PART = """\
Turns one network that others released (safetensors, .bin or .pth) into a model folder for training
to start from. Every tensor must find its place and every parameter its tensor.

KIND, and where training takes what becomes of it:
  unet       Stable Diffusion 1.5's U-Net              stage 2  --config.init.teacher
             DMD2's one-step generator                 stage 1  --config.init.unet
  vae        Stable Diffusion 2.1's                    stage 1  --config.init.vae
  text       CLIP's text encoder, with its tokenizer   stage 2  --config.init.text
  tokenizer  MaskGIT's VQGAN                           stage 1  --config.distillation.tokenizer
  lpips      torchvision's VGG16 (with --heads)        stage 2  --config.init.lpips"""

_CONVERT_PART_EXAMPLES = """\
examples:
  onedc convert-part unet sd15 --out models/sd15
  onedc convert-part lpips vgg16.pth --heads lpips/vgg.pth --out models/lpips"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's own) and returns the exit code.

    0: done; 1: some files of a folder failed; 2: the command failed, and one line on the error
    output says why; 130: interrupted.
    """
    with suppress(AttributeError):  # a file's name may not be text: print it all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = arguments.run(arguments)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Whoever read our output has left, as in `onedc info *.onedc | head`. Python flushes once
        # more when it exits, and must not complain then.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SOME_FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except Exception as error:
        message = folders.explain(error)
        if message is None:
            raise
        _say(message)
        return _USER_ERROR


def _say(message: str) -> None:
    print(f"onedc: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onedc",
        description="Compresses photos to a few kilobytes with a neural codec, and restores them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onedc {onedc_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable, help: str, description: str, epilog: str):
        child = commands.add_parser(
            name,
            help=help,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        child.set_defaults(run=run)
        return child

    def transcode(name: str, run: Callable, help: str, description: str, epilog: str):
        child = command(name, run, help, description, epilog)
        child.add_argument("input", type=Path, metavar="INPUT", help="a file, or a folder")
        child.add_argument(
            "output",
            type=Path,
            nargs="?",
            metavar="OUTPUT",
            help="a file (for a folder: a folder, made as needed); by default beside the input",
        )
        child.add_argument(
            "--model",
            default="tiny",
            metavar="NAME_OR_PATH",
            help="an embedded preset or a model folder (default: %(default)s)",
        )
        child.add_argument("--overwrite", action="store_true", help="replace files that exist")

    transcode("encode", _encode, "images to small files", _ENCODE, _ENCODE_EXAMPLES)
    transcode("decode", _decode, "small files to images", _DECODE, _DECODE_EXAMPLES)

    help = "what a compressed file holds"
    child = command("info", _info, help, "Says " + help + ", without a model.", _INFO_EXAMPLES)
    child.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a .onedc file")
    child.add_argument("--json", action="store_true", help="one JSON object a line")

    def stored_type(child):
        child.add_argument(
            "--dtype",
            choices=("float32", "bfloat16"),
            default="float32",
            help="the type that weights are stored in (default: %(default)s)",
        )

    child = command("convert", _convert, "released weights to a model", _CONVERT, _CONVERT_EXAMPLES)
    for name, metavar, help in (
        ("--codec", "FILE", "the codec's tensors"),
        ("--generator", "FILE", "the one-step U-Net's tensors"),
        ("--vae", "DIR", "the VAE's folder or file"),
        ("--out", "CKPT", "the model folder to make"),
    ):
        child.add_argument(name, type=Path, required=True, metavar=metavar, help=help)
    child.add_argument(
        "--config", type=Path, metavar="JSON", help="the model's widths, if not the released ones"
    )
    child.add_argument(
        "--merge-lora", action="store_true", help="add the low-rank updates to their base weights"
    )
    stored_type(child)

    help = "one released network to train from"
    child = command("convert-part", _convert_part, help, _CONVERT_PART, _CONVERT_PART_EXAMPLES)
    kinds = ("unet", "vae", "text", "tokenizer", "lpips")
    child.add_argument("kind", choices=kinds, metavar="KIND", help="what it is, see above")
    child.add_argument(
        "source", type=Path, metavar="SOURCE", help="a file, its folder or that of a pipeline"
    )
    for name, metavar, help in (
        ("--out", "DIR", "the model folder to make"),
        ("--heads", "FILE", "lpips: the weights of its layers"),
        ("--tokenizer", "DIR", "text: vocab.json and merges.txt, if not beside the source"),
        ("--config", "JSON", "the network's widths, if not the released ones"),
    ):
        child.add_argument(name, type=Path, required=name == "--out", metavar=metavar, help=help)
    stored_type(child)
    return parser


def _quiet() -> None:
    """Keeps the libraries' own remarks (no GPU found, ...) off the user's screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax", "absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _loader(model: str) -> Callable:
    """Returns a function that loads the codec when first called, and gives the same one after."""

    @functools.cache
    def load():
        from onedc_jax.compilation import enable_compilation_cache

        _quiet()
        enable_compilation_cache()
        return onedc_jax.load(model)

    return load


def _encode(arguments: argparse.Namespace) -> int:
    from onedc_jax import transcode

    return _transcode(transcode.ENCODE, arguments)


def _decode(arguments: argparse.Namespace) -> int:
    from onedc_jax import transcode

    return _transcode(transcode.DECODE, arguments)


def _transcode(direction, arguments: argparse.Namespace) -> int:
    source, target = arguments.input, arguments.output
    load = _loader(arguments.model)
    if source.is_dir():
        return _transcode_folder(direction, source, target or source, load, arguments.overwrite)
    source.stat()  # before anything else, to say that there is no such file
    beside = source.with_suffix(direction.target_suffix)
    target = target or beside
    if target.is_dir():
        target = target / beside.name
    if not target.parent.is_dir():
        raise OneDCError(f"{target.parent}: no such folder")
    if target.exists() and target.samefile(source):
        raise OneDCError(f"{target}: is the input itself")
    done = direction.work(load, source, target, arguments.overwrite)
    for note in done.notes:
        _say(f"{source}: {note}")
    print(f"{source} -> {target}  {done}")
    return 0


def _transcode_folder(
    direction, source: Path, target: Path, load: Callable, overwrite: bool
) -> int:
    from tqdm import tqdm

    if target.exists() and not target.is_dir():
        raise OneDCError(f"{target}: is a file; for a folder the output is a folder")
    files = folders.find(source, direction.suffixes)
    if not files:
        raise OneDCError(f"{source}: no {', '.join(direction.suffixes)} file in it")
    places = folders.targets(files, source, target, direction.target_suffix)

    # disable=None: no bar where the error output is no terminal.
    with tqdm(total=len(files), unit="file", disable=None) as bar:

        def say(message: str) -> None:
            bar.write(f"onedc: {message}", file=sys.stderr)

        def work(file: Path, place: Path):
            try:
                done = direction.work(load, file, place, overwrite)
            finally:
                bar.update()
            for note in done.notes:
                say(f"{file}: {note}")
            return done

        results, failed = folders.for_each(zip(files, places, strict=True), work, say)
    total = f"{len(results)} {direction.verb}, {failed} failed"
    if results:
        mean = sum(done.bpp for done in results) / len(results)
        total += f"  {sum(done.size for done in results):,} bytes  {mean:.3f} bpp on average"
    print(total)
    return _SOME_FAILED if failed else 0


def _info(arguments: argparse.Namespace) -> int:
    from onedc_jax.transcode import read_stream

    code = 0
    for file in arguments.files:
        try:
            _, info = read_stream(file)
        except (OneDCError, OSError) as error:  # the other files can still be told about
            _say(folders.explain(error))
            code = _USER_ERROR
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
            "header_bytes": info.header_bytes,
            "z_bytes": info.z_bytes,
            "y_bytes": info.y_bytes,
            "checksum_bytes": info.checksum_bytes,
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
    rows |= {part: f"{facts[part + '_bytes']:,} bytes" for part in ("header", "z", "y", "checksum")}
    return "\n".join([facts["file"], *(f"  {name:<11} {value}" for name, value in rows.items())])


def _preset_of(fingerprint: int) -> str | None:
    """The name of the embedded preset whose model.json states this fingerprint."""
    for path in sorted(_PRESETS.glob("*/model.json")):
        if json.loads(path.read_text()).get("fingerprint") == fingerprint:
            return path.parent.name
    return None


def _convert(arguments: argparse.Namespace) -> int:
    config = _json_of(arguments.config)
    _quiet()
    from onedc_jax.convert import convert

    convert(
        arguments.codec,
        arguments.generator,
        arguments.vae,
        arguments.out,
        config=config,
        merge_lora=arguments.merge_lora,
        dtype=arguments.dtype,
    )
    print(f"{arguments.out}: use it with --model {arguments.out}")
    return 0


def _convert_part(arguments: argparse.Namespace) -> int:
    fields = _json_of(arguments.config)
    _quiet()
    from onedc_jax.convert_parts import convert_part

    options = {name: getattr(arguments, name) for name in ("heads", "tokenizer", "dtype")}
    convert_part(arguments.kind, arguments.source, arguments.out, fields=fields, **options)
    print(f"{arguments.out}: the {arguments.kind}, for training to start from")
    return 0


def _json_of(file: Path | None) -> dict | None:
    """The widths that a file states; None without one."""
    if file is None:
        return None
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise OneDCError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise OneDCError(f"{file}: not a JSON object of the model's widths")
    for key in ("format", "fingerprint", "seal"):  # a model folder's model.json serves as well
        config.pop(key, None)
    return config


if __name__ == "__main__":
    sys.exit(main())
