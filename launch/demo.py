"""Encodes the photos in examples/, decodes them and shows both: python launch/demo.py [FOLDER].

Writes, for each, the compressed file, the restored image and a picture with the original beside it.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import onedc_jax
from onedc_jax import folders, images
from onedc_jax.compilation import enable_compilation_cache
from onedc_jax.errors import OneDCError

ROOT = Path(__file__).resolve().parent.parent
CAPTION = 32  # pixels below the pictures


def side_by_side(original: np.ndarray, restored: np.ndarray, captions: tuple[str, str]):
    """Two uint8 images [H, W, 3] -> one of [H + CAPTION, 2 W + 8, 3], a caption below each."""
    height, width, _ = original.shape
    sheet = Image.new("RGB", (2 * width + 8, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(18)
    for x, image, caption in zip((0, width + 8), (original, restored), captions, strict=True):
        sheet.paste(Image.fromarray(image), (x, 0))
        draw.text((x + 8, height + 4), caption, fill="black", font=font)
    return np.asarray(sheet)


def timed(function, *arguments):
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def main(folder: Path, out: Path) -> None:
    files = folders.find(folder, images.READ_SUFFIXES)
    if not files:
        raise OneDCError(f"{folder}: no image in it")
    enable_compilation_cache()
    print("loading the embedded model; the first photo of a size includes compiling ...")
    codec = onedc_jax.load("tiny")
    row = "{:<16}{:>11}{:>11}{:>9}{:>8}{:>11}{:>11}".format
    print(row("photo", "size", "original", "bytes", "bpp", "encode s", "decode s"))

    def show(path: Path, target: Path) -> None:
        image, _ = images.read(path)
        height, width, _ = image.shape
        data, encode_seconds = timed(codec.encode, image)
        restored, decode_seconds = timed(codec.decode, data)
        bpp = 8 * len(data) / (width * height)
        times = f"{encode_seconds:.2f}", f"{decode_seconds:.2f}"
        before, after = f"{path.stat().st_size:,}", f"{len(data):,}"
        print(row(path.name, f"{width}x{height}", before, after, f"{bpp:.4f}", *times))
        captions = (
            f"{path.name}: {before} bytes",
            f"OneDC {codec.name}: {after} bytes, {bpp:.3f} bpp",
        )
        images.atomic_write(target, data, overwrite=True)
        images.write(target.with_suffix(".png"), restored, overwrite=True)
        sheet = side_by_side(image, restored, captions)
        images.write(target.with_name(f"{target.stem}_both.png"), sheet, overwrite=True)

    targets = folders.targets(files, folder, out, ".onedc")
    folders.for_each(zip(files, targets, strict=True), show, print)
    print(f"\nSide by side, original and restored: {out}/*_both.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = ROOT / "examples"
    parser.add_argument("folder", type=Path, nargs="?", default=folder, help="default: %(default)s")
    try:
        main(parser.parse_args().folder, ROOT / "demo")
    except (OneDCError, OSError) as error:
        print(f"demo: {folders.explain(error)}", file=sys.stderr)
        sys.exit(2)
