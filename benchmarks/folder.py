"""A folder at a time against one image after the other: python benchmarks/folder.py [--images DIR]

Both read image files, encode and write, and back, in one process, with programs that are compiled
already, run after run by turns; the best of each counts. Beside them, a command for each image.
"""

import argparse
import tempfile
import time
from pathlib import Path

from machine import PHOTO, heading, run_onedc, seconds, table
from PIL import Image

import onedc_jax
from onedc_jax import folders, transcode
from onedc_jax.cli.files import workers
from onedc_jax.compilation import enable_compilation_cache

_COMMANDS = 6  # of the images, so many are given a command each: what that takes hardly differs


def samples(folder: Path, count: int) -> None:
    """Crops of the sample photograph, 768×512, as PNG."""
    with Image.open(PHOTO) as photo:
        for i in range(count):
            larger = photo.resize((768 + 8 * i, 512 + 8 * i))
            larger.crop((4 * i, 4 * i, 768 + 4 * i, 512 + 4 * i)).save(folder / f"{i:03}.png")


def measure(direction, jobs: list, load, rounds: int) -> list[tuple[float, float]]:
    """By one worker and by as many as `onedc` has: seconds for all jobs, and cores kept busy."""

    def run(count: int) -> None:
        work = lambda file, place: direction.work(load, file, place, True)
        folders.for_each(jobs, work, print, count)

    def once(count: int) -> tuple[float, float]:
        busy = time.process_time()
        taken = seconds(lambda: run(count), least=0, runs=1)
        return taken, (time.process_time() - busy) / taken

    run(1)  # compiles
    found = [(once(1), once(workers())) for _ in range(rounds)]
    return [min(side) for side in zip(*found, strict=True)]


def by_commands(command: str, jobs: list, model: str) -> float:
    """Images a second where each is a command of its own, `onedc encode` say, one by one."""
    options = ["--model", model, "--overwrite"]
    taken = [run_onedc(command, str(file), str(place), *options)[0] for file, place in jobs]
    return len(taken) / sum(taken)


def main(images: Path | None, model: str, rounds: int) -> None:
    enable_compilation_cache()
    codec = onedc_jax.load(model)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        source, small, back = (Path(scratch, name) for name in ("source", "small", "back"))
        source.mkdir()
        if images is None:
            samples(source, 24)
        for command, direction, start, end in (
            ("encode", transcode.ENCODE, images or source, small),
            ("decode", transcode.DECODE, small, back),
        ):
            files = folders.find(start, direction.suffixes)
            places = folders.targets(files, start, end, direction.target_suffix)
            jobs = list(zip(files, places, strict=True))
            (alone, few), (together, many) = measure(direction, jobs, lambda: codec, rounds)
            each = by_commands(command, jobs[:_COMMANDS], model)
            rates = [f"{x:.2f}" for x in (each, len(jobs) / alone, len(jobs) / together)]
            ratio, cores = f"{alone / together:.2f}", f"{few:.2f} and {many:.2f}"
            rows.append([direction.verb, len(jobs), *rates, ratio, cores])
    print(heading(), model, sep="\n", end="\n\n")
    ways = ["a command each, images/s", "one by one, images/s", "as a folder, images/s"]
    print(table(["", "images", *ways, "ratio", "busy cores"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: made of the sample")
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    main(arguments.images, arguments.model, arguments.rounds)
