"""Whether windows show in an even sky: python benchmarks/seams.py [--picture sky.jpg]

The sky of the sample photograph, enlarged until it takes several windows, is coded and restored.
Printed is how much pixels differ across each line where two windows meet, against the mean of the
32 lines on either side; and the mean of the same ratio at the lines of blocks in between, where no
windows meet: what the model makes of its own blocks. The picture shows what was restored, and below
it, 16 times as strong, how it departs from its own surroundings; windows meet at the marks.
"""

import argparse
from pathlib import Path

import numpy as np
from machine import heading, table
from PIL import Image, ImageDraw, ImageFilter

import onedc_jax
from onedc_jax.coding.windows import BLOCK, Window
from onedc_jax.compilation import enable_compilation_cache

PHOTO = Path(__file__).resolve().parent.parent / "examples" / "valley.jpg"
SKY = (234, 0, 534, 150)  # left, top, right, bottom, in the photograph
BESIDE = 32
GAIN = 16
MARGIN = 24  # pixels around the pictures, for the marks


def seams(windows: list[Window]) -> tuple[list[int], list[int]]:
    """The rows and the columns of pixels at which windows meet."""
    starts = [sorted({axis.first for axis in spans} - {0}) for spans in zip(*windows, strict=True)]
    return tuple([BLOCK * start for start in found] for found in starts)


def measured(image: np.ndarray, name: str, lines: list[int]) -> list[list[str]]:
    """Rows of the table, of the columns `lines` of an image."""
    steps = np.abs(np.diff(image.astype(np.float32), axis=1)).mean((0, 2))

    def across(line: int) -> tuple[float, float]:
        """Mean difference, of 255, of the pixels on its two sides, and of those beside them."""
        beside = [*steps[line - 1 - BESIDE : line - 1], *steps[line : line + BESIDE]]
        return steps[line - 1], float(np.mean(beside))

    between = [x for x in range(BLOCK, len(steps) - BESIDE, BLOCK) if x not in lines]
    usual = np.mean([np.divide(*across(line)) for line in between])
    found = [(line, *across(line)) for line in lines]
    return [
        [f"{name} {line}", f"{a:.3f}", f"{b:.3f}", f"{a / b:.3f}", f"{usual:.3f}"]
        for line, a, b in found
    ]


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
        for x in columns:
            for y in (top - MARGIN, top + height):
                draw.rectangle((MARGIN + x - 2, y + 2, MARGIN + x + 2, y + MARGIN - 2), "black")
        for y in rows:
            for x in (0, MARGIN + width):
                draw.rectangle((x + 2, top + y - 2, x + MARGIN - 2, top + y + 2), "black")
    return sheet.reduce(2)


def main(model: str, width: int, quality: int, path: Path | None) -> None:
    enable_compilation_cache()
    codec = onedc_jax.load(model)
    with Image.open(PHOTO) as photo:
        sky = photo.convert("RGB").crop(SKY)
    height = width * sky.height // sky.width
    sky = sky.resize((width, height), Image.Resampling.BICUBIC)
    restored = codec.decode(codec.encode(np.asarray(sky), quality=quality))
    blocks = (-(-height // BLOCK), -(-width // BLOCK))
    rows, columns = seams(codec.networks.cover(*blocks)[1])
    cells = measured(restored, "column", columns)
    cells += measured(restored.swapaxes(0, 1), "row", rows)
    print(heading(), f"{width}×{height}, quality {quality}", sep="\n", end="\n\n")
    print(table(["seam", "across it", "beside it", "ratio", "between seams"], cells))
    if path:
        picture(restored, rows, columns).save(path, quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--width", type=int, default=2560, metavar="PIXELS")
    parser.add_argument("--quality", type=int, default=75, metavar="0..100")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    main(arguments.model, arguments.width, arguments.quality, arguments.picture)
