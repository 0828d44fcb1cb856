"""What the subcommands share."""

import argparse
import functools
import itertools
import logging
import os
import sys
import threading
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


def count(text: str) -> int:
    """A type of arguments: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def quiet() -> None:
    """Keeps the libraries' own remarks (no GPU found, ...) off the user's screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax", "absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def loader(model: str, loaded: Callable = lambda codec: None) -> Callable:
    """Returns a function that loads the codec when first called, and tells `loaded` of it.

    There is a copy for each device, and each thread is given one of them.
    """
    lock, turns = threading.Lock(), itertools.count()
    mine = threading.local()

    @functools.cache
    def copies() -> list:
        from onedc_jax.compilation import enable_compilation_cache

        quiet()
        enable_compilation_cache()
        codec = onedc_jax.load(model)
        loaded(codec)
        return codec.replicas()

    def load():
        if not hasattr(mine, "codec"):
            with lock:
                codecs = copies()
            mine.codec = codecs[next(turns) % len(codecs)]
        return mine.codec

    return load
