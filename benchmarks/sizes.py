"""Seconds and memory by the size of the image: python benchmarks/sizes.py

Each is a process of its own, `onedc encode` and `onedc decode` of one file: what a user waits for,
and the most memory that it had at once. The image is the sample photograph, enlarged.
"""

import argparse
import tempfile
from pathlib import Path

from machine import PHOTO, heading, run_onedc, table
from PIL import Image
from tqdm import tqdm


def main(sizes: list[float], model: str) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        big, small, back = (str(Path(folder, name)) for name in ("a.png", "a.onedc", "b.png"))
        options = ["--model", model, "--overwrite"]

        def run(megapixels: float) -> tuple[int, list[float]]:
            """The image's side, and seconds and GiB of encoding and of decoding it."""
            side = round(megapixels**0.5 * 1024)
            with Image.open(PHOTO) as photo:
                photo.resize((side, side), Image.Resampling.BICUBIC).save(big, compress_level=1)
            encoded = run_onedc("encode", big, small, *options)
            return side, [*encoded, *run_onedc("decode", small, back, *options)]

        for megapixels in {min(x, 4) for x in sizes}:
            run(megapixels)  # compiles what is not compiled yet: larger ones have the same programs
        for megapixels in tqdm(sizes):
            side, found = run(megapixels)
            cells = (f"{x:.{digits}f}" for x, digits in zip(found, (1, 2, 1, 2), strict=True))
            rows.append([f"{side}×{side}", f"{side * side / 2**20:g}", *cells])
    print(heading(), model, sep="\n", end="\n\n")
    columns = ["encode, s", "GiB", "decode, s", "GiB"]
    print(table(["pixels", "2²⁰ pixels", *columns], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--megapixels", type=float, nargs="+", default=[0.25, 1, 4, 16, 64], metavar="N"
    )
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    arguments = parser.parse_args()
    main(arguments.megapixels, arguments.model)
