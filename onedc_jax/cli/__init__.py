"""The command `onedc`. Each subcommand imports what it needs when it runs: --help needs nothing."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

import onedc_jax
from onedc_jax import folders
from onedc_jax.cli import evaluation, export, files, models, quantize
from onedc_jax.cli.common import INTERRUPTED, SOME_FAILED, USER_ERROR, Parser, say

_EXAMPLES = """\
examples:
  onedc encode photo.jpg                 photo.onedc, beside it
  onedc decode photo.onedc               photo.png
  onedc encode photos/ small/            every image below photos/
  onedc info photo.onedc                 what is in it, without a model
  onedc eval --images photos/ --out R    R/index.html: against JPEG, WebP, AVIF, JPEG 2000

`onedc COMMAND --help` tells more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's own) and returns the exit code.

    0: done; 1: some files of a folder failed; 2: the command failed, and one line on the error
    output says why; 130: interrupted.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before this began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    with suppress(AttributeError):  # a file's name may not be text: print it all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _arguments(argv)
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
        return SOME_FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        message = folders.explain(error)
        if message is None:
            raise
        say(message)
        return USER_ERROR


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What a command line says. argparse takes no OUTPUT that an option parts from INPUT."""
    arguments, rest = _parser().parse_known_args(argv)
    lacking = vars(arguments).get("output", rest) is None
    if lacking and len(rest) == 1 and not rest[0].startswith("-"):
        arguments.output = rest.pop()
    if rest:
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="onedc",
        description="Compresses photos to a few kilobytes with a neural codec, and restores them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onedc {onedc_jax.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (files, models, quantize, export, evaluation):
        group.add(commands)
    return parser
