"""Whether windows show in an even sky: python benchmarks/seams.py [--picture sky.jpg]

The sky of the sample photograph, enlarged until it takes several windows, is coded and restored.
Printed is how much pixels differ across each line where two windows meet, and how much they do
across the same line when one window sees both sides of it: what windows add is the ratio. The
picture shows what was restored, and below it, 16 times as strong, how it departs from its own
surroundings; windows meet at the marks.
"""

import argparse
from pathlib import Path

import numpy as np
from machine import PHOTO, heading, table
from PIL import Image, ImageDraw, ImageFilter

import onedc_jax
from onedc_jax.coding.networks import Networks
from onedc_jax.coding.windows import BLOCK, SHAPES, Window
from onedc_jax.compilation import enable_compilation_cache

SKY = (234, 0, 534, 150)  # left, top, right, bottom, in the photograph
GAIN = 16
MARGIN = 24  # pixels around the pictures, for the marks


def seams(windows: list[Window]) -> tuple[list[int], list[int]]:
    """The rows and the columns of blocks at which windows meet."""
    axes = zip(*windows, strict=True)
    return tuple(sorted({span.first for span in spans} - {0}) for spans in axes)


def step(image: np.ndarray, line: int) -> float:
    """The mean difference, of 255, of the columns of pixels on both sides of a line."""
    return float(np.abs(image[:, line].astype(float) - image[:, line - 1]).mean())


def around(line: int, axis: int, blocks: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of blocks that one window sees at once, with a line in its middle."""
    most = SHAPES[-1]
    start = min(max(line - most[axis] // 2, 0), blocks[axis] - most[axis])
    found = [slice(0, min(side, length)) for side, length in zip(most, blocks, strict=True)]
    found[axis] = slice(start, start + most[axis])
    return tuple(found)


def cut(x: np.ndarray, region: tuple[slice, slice], scale: int) -> np.ndarray:
    """Of a map with `scale` positions along a block's side."""
    return x[tuple(slice(scale * side.start, scale * side.stop) for side in region)]


def measured(networks: Networks, y_hat, tokens, place, restored) -> list[list[str]]:
    """Rows of the table."""
    found = []
    axes = zip(("row", "column"), seams(networks.cover(*tokens.shape)[1]), strict=True)
    for axis, (name, lines) in enumerate(axes):
        for line in lines:
            region = around(line, axis, tokens.shape)
            part = cut(y_hat, region, 4), cut(tokens, region, 1)
            alone = networks.reconstruct(*part, place, tuple(side.start for side in region))
            at = BLOCK * (line - region[axis].start)
            pair = cut(restored, region, BLOCK), alone
            across, in_one = (step(np.moveaxis(image, axis, 1), at) for image in pair)
            found.append([f"{name} {BLOCK * line}", across, in_one, across / in_one])
    return [[name, *(f"{x:.3f}" for x in numbers)] for name, *numbers in found]


def picture(restored: np.ndarray, rows: list[int], columns: list[int]) -> Image.Image:
    """The restored image above what it is less a blur of it, with marks at the seams."""
    image = Image.fromarray(restored)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(24)), np.float32)
    detail = np.clip(128 + GAIN * (restored - blurred), 0, 255).astype(np.uint8)
    height, width, _ = restored.shape
    sheet = Image.new("RGB", (width + 2 * MARGIN, 2 * height + 3 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for top, part in ((MARGIN, image), (height + 2 * MARGIN, Image.fromarray(detail))):
        sheet.paste(part, (MARGIN, top))
        for x in (BLOCK * column for column in columns):
            for y in (top - MARGIN, top + height):
                draw.rectangle((MARGIN + x - 2, y + 2, MARGIN + x + 2, y + MARGIN - 2), "black")
        for y in (BLOCK * row for row in rows):
            for x in (0, MARGIN + width):
                draw.rectangle((x + 2, top + y - 2, x + MARGIN - 2, top + y + 2), "black")
    return sheet.reduce(2)


def main(model: str, width: int, quality: int, path: Path | None) -> None:
    enable_compilation_cache()
    codec = onedc_jax.load(model)
    with Image.open(PHOTO) as photo:
        sky = photo.convert("RGB").crop(SKY)
    height = width * sky.height // sky.width
    sky = np.asarray(sky.resize((width, height), Image.Resampling.BICUBIC))
    y, tokens = codec.analyse(sky)
    place = np.array([quality / 100], np.float32)
    y_hat = np.rint(codec.networks.gained(y, place))
    restored = codec.networks.reconstruct(y_hat, tokens, place)
    cells = measured(codec.networks, y_hat, tokens, place, restored)
    print(heading(), f"{width}×{height}, quality {quality}", sep="\n", end="\n\n")
    print(table(["seam", "across it", "in one window", "ratio"], cells))
    if path:
        rows, columns = seams(codec.networks.cover(*tokens.shape)[1])
        picture(restored[:height, :width], rows, columns).save(path, quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--width", type=int, default=2560, metavar="PIXELS")
    parser.add_argument("--quality", type=int, default=75, metavar="0..100")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    main(arguments.model, arguments.width, arguments.quality, arguments.picture)
