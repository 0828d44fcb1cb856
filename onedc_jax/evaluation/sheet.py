"""What a README shows of a report: a contact sheet, and a table in Markdown."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from onedc_jax.evaluation.page import shown_rows
from onedc_jax.evaluation.rate import METRICS, nearest, present
from onedc_jax.evaluation.results import label

RATES = 3  # columns of the model: its lowest rate, its highest, and those between
_MOST = 48  # images on a sheet
_WIDTH, _GAP, _LINE = 256, 6, 18  # pixels
_PAPER, _INK = "white", "black"


def contact_sheet(
    root: Path, images: Sequence[tuple[str, str, list[tuple[dict, str]]]], model: str, other: str
) -> bytes:
    """A JPEG file of a row for each image: the original, then `model` and `other` by turns.

    `images` is as in `page.page_data`, with paths below `root`. `other` has the file whose rate is
    nearest; under each picture are its bytes and its rate.
    """
    font = ImageFont.load_default(size=13)
    rows = [_row(original, shown, model, other) for _, original, shown in images[:_MOST]]
    pictures = [[(_small(root / path), text) for path, text in row] for row in rows]
    heights = [max(picture.height for picture, _ in row) + _LINE + _GAP for row in pictures]
    columns = max(map(len, pictures))
    size = columns * (_WIDTH + _GAP) + _GAP, sum(heights) + _GAP
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(pictures, heights, strict=True):
        for column, (picture, text) in enumerate(row):
            left = _GAP + column * (_WIDTH + _GAP)
            sheet.paste(picture, (left, top))
            draw.text((left, top + picture.height + 1), text, _INK, font)
        top += height
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85, optimize=True)
    return file.getvalue()


def table(points: Sequence[dict], models: Sequence[str]) -> str:
    """In Markdown: the points of models and, of each other codec, those nearest to their rates."""
    names = present(points)
    heads = ["codec", "quality", "bpp"]
    for metric in (METRICS[name] for name in names):
        arrow = "↑" if metric.higher_is_better else "↓"
        heads.append(" ".join(filter(None, (metric.label, metric.unit, arrow))))
    lines = [heads, ["---"] * len(heads)]
    for point in shown_rows(points, models):
        values = [
            f"{point[name]:.{METRICS[name].digits}f}" if name in point else "" for name in names
        ]
        lines.append([point["codec"], label(point["quality"]), f"{point['bpp']:.4f}", *values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(original: str, shown: list[tuple[dict, str]], model: str, other: str) -> list[tuple]:
    """The pictures of a row from left to right: (path, what is written below)."""
    of = lambda name: [row for row, _ in shown if row["codec"] == name]
    path = {id(row): name for row, name in shown}
    own = sorted(of(model), key=lambda row: row["bpp"])
    count = min(RATES, len(own))
    picked = [own[round(i * (len(own) - 1) / max(1, count - 1))] for i in range(count)]
    found = [(original, "original")]
    for row in picked:
        for one in (row, *([nearest(of(other), row["bpp"])] if of(other) else [])):
            text = f"{one['codec']}  {one['bytes']:,} B  {one['bpp']:.3f} bpp"
            found.append((path[id(one)], text))
    return found


def _small(path: Path) -> Image.Image:
    with Image.open(path) as image:
        height = max(1, round(image.height * _WIDTH / image.width))
        return image.convert("RGB").resize((_WIDTH, min(height, 3 * _WIDTH)), Image.LANCZOS)
