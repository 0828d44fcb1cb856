"""What the subcommands share."""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable

import onedc_jax

SOME_FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def say(message: str) -> None:
    """One line on the error output."""
    print(f"onedc: {message}", file=sys.stderr)


def command(
    commands, name: str, run: Callable, help: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Adds a subcommand; `run(arguments)` returns the exit code."""
    child = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    child.set_defaults(run=run)
    return child


def quiet() -> None:
    """Keeps the libraries' own remarks (no GPU found, ...) off the user's screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax", "absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def loader(model: str) -> Callable:
    """Returns a function that loads the codec when first called, and gives the same one after."""

    @functools.cache
    def load():
        from onedc_jax.compilation import enable_compilation_cache

        quiet()
        enable_compilation_cache()
        return onedc_jax.load(model)

    return load
