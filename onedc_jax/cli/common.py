"""What the subcommands share."""

import argparse
import functools
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unicodedata import category

import onedc_jax

SOME_FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def say(message: str) -> None:
    """One line on the error output."""
    print(f"onedc: {shown(message)}", file=sys.stderr)


def shown(text: str) -> str:
    """Fit for a terminal: what a file's name may tell it to do is written as an escape."""
    return "".join(ascii(c)[1:-1] if category(c)[0] == "C" else c for c in text)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str):
        self.exit(USER_ERROR, f"{self.prog}: {shown(message)} ({self.prog} --help tells more)\n")


def command(
    commands, name: str, run: Callable, help: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """Adds a subcommand; `run(arguments)` returns the exit code, `parser` is its parser."""
    child = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    child.set_defaults(run=run, parser=child)
    return child


def count(text: str, least: int = 1) -> int:
    """A type of arguments: a whole number from `least`, 0 or 1, on."""
    if not text.isdecimal() or int(text) < least:
        bound = "above 0" if least else "from 0 on"
        raise argparse.ArgumentTypeError(f"{text} is no whole number {bound}")
    return int(text)


def name(text: str) -> str:
    """A type of arguments: a name or path as it is. An empty one would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name (of a variable that is not set?)")
    return text


def path(text: str) -> Path:
    """A type of arguments: a path, likewise."""
    return Path(name(text))


def quiet() -> None:
    """Keeps the libraries' own remarks (no GPU found, ...) off the user's screen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax", "absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)


def loader(model: str, prepared: Callable = lambda codec: codec) -> Callable:
    """Returns a function that loads the codec when first called: what `prepared` makes of it.

    There is a copy for each device, and each thread is given one of them.
    """
    lock, turns = threading.Lock(), itertools.count()
    mine = threading.local()

    @functools.cache
    def copies() -> list:
        from onedc_jax.compilation import enable_compilation_cache

        quiet()
        folder = enable_compilation_cache()
        codecs = prepared(onedc_jax.load(model)).replicas()
        if sys.stderr.isatty():
            _tell_of_compiling(folder)
        return codecs

    def load():
        if not hasattr(mine, "codec"):
            with lock:
                codecs = copies()
            mine.codec = codecs[next(turns) % len(codecs)]
        return mine.codec

    return load


def _tell_of_compiling(folder: Path | None) -> None:
    """Says once, when a program is compiled, why nothing more is seen for a while."""
    from jax import monitoring
    from tqdm import tqdm

    from onedc_jax.coding.programs import COMPILING

    often = f"once (kept in {folder})" if folder else "at each run (no folder keeps it)"
    lines = iter([f"onedc: compiling for this size, {shown(often)}"])

    def listen(event: str, **_) -> None:
        if event == COMPILING:
            for line in lines:
                tqdm.write(line, file=sys.stderr)

    monitoring.register_event_listener(listen)
