"""The page of a report: its data, put into `page.html`, which does the rest in the browser."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from onedc_jax.evaluation.rate import METRICS, nearest, present
from onedc_jax.evaluation.results import label
from onedc_jax.log import plain

_TEMPLATE = Path(__file__).with_name("page.html")
_SORTERS = ("lpips_vgg", "dists", "lpips_alex", "ms_ssim", "psnr")  # the first that there is
_ALWAYS = ("codec", "quality", "bytes", "bpp", "encode_s", "decode_s", "images")


def render(data: dict) -> bytes:
    """The page, as UTF-8, of what `page_data` gives."""
    text = json.dumps(plain(data), ensure_ascii=True, allow_nan=False)
    # Within a script only "<" could end it; as an escape it means the same to JSON.
    return _TEMPLATE.read_text().replace("@DATA@", text.replace("<", "\\u003c")).encode()


def shown_rows(rows: Sequence[dict], models: Sequence[str]) -> list[dict]:
    """Of one image's rows those to look at: at each rate of a model, each codec's nearest.

    All rows of the models are shown, first. Without a model the rate is the lowest of the first
    codec. Nearness is of the logarithms of the rates.
    """
    own = [row for row in rows if row["codec"] in models]
    targets = [row["bpp"] for row in own] or [
        min((row["bpp"] for row in rows if row["codec"] == rows[0]["codec"]), default=1.0)
    ]
    shown = list(own)
    for codec in dict.fromkeys(row["codec"] for row in rows if row["codec"] not in models):
        of_codec = [row for row in rows if row["codec"] == codec]
        shown += [row for row in of_codec if any(row is nearest(of_codec, t) for t in targets)]
    return shown


def page_data(
    images: Sequence[tuple[str, str, list[tuple[dict, str]]]],
    points: Sequence[dict],
    *,
    models: Sequence[str],
    anchor: str | None,
    deltas: Sequence[dict],
    equals: Sequence[dict],
    plots: Sequence[dict],
    notes: Sequence[str],
    failed: Sequence[str],
    made_by: str,
) -> dict:
    """What the page shows, JSON-able once infinities are words.

    `images`: (name, path of the original's picture, [(row, path of its decoded picture)]).
    `points`, `deltas`, `equals`: of `rate`. `plots`: {"label", "png", "svg"}.
    """
    names = present(points)
    metrics = [
        {"name": name, "label": METRICS[name].label, "higher": METRICS[name].higher_is_better}
        for name in names
    ]
    reference = next(
        (point for point in points if point["codec"] in models), points[0] if points else None
    )
    rate = reference["bpp"] if reference else None
    codecs = dict.fromkeys(point["codec"] for point in points)
    at_rate = [nearest((p for p in points if p["codec"] == codec), rate) for codec in codecs]
    sorter = next((name for name in _SORTERS if name in names), None)
    if sorter:
        sign = METRICS[sorter].sign
        at_rate.sort(key=lambda point: -sign * point.get(sorter, -sign * math.inf))
    looked = f"{reference['codec']}'s file of the image" if models and reference else "the lowest"
    return {
        "about": _about(images, points),
        "gallery_about": f"Each codec at the rate nearest to {looked}. A pixel of the image is a "
        "pixel of the page; choose a picture to lay it over the original.",
        "metrics": metrics,
        "models": list(models),
        "anchor": anchor,
        "images": [_image(*image, names) for image in images],
        "points": [_row(point, names) for point in points],
        "nearest": [_row(point, names) for point in at_rate],
        "sorted_by": f"sorted by {METRICS[sorter].label}" if sorter else "unsorted",
        "reference": reference["codec"] if reference else None,
        "rate": rate,
        "bd": list(deltas),
        "equal": [_named(row) for row in equals if row["codec"] in models],
        "plots": list(plots),
        "notes": list(notes),
        "failed": list(failed),
        "made_by": made_by,
    }


def _about(images, points) -> str:
    count = len(images)
    codecs = len({point["codec"] for point in points})
    kinds = f"{count} image{'s' * (count != 1)}, {codecs} codec{'s' * (codecs != 1)}"
    return f"{kinds}, {len(points)} operating points. Rates are of whole files, headers included."


def _image(name: str, original: str, shown: list[tuple[dict, str]], names) -> dict:
    width, height = shown[0][0]["width"], shown[0][0]["height"]
    rows = [_row(row, names) | {"picture": picture} for row, picture in shown]
    facts = {"name": name, "width": width, "height": height, "original": original}
    return facts | {"crop": [50, 50], "shown": rows}


def _row(row: dict, names: Sequence[str]) -> dict:
    return _named({name: row.get(name) for name in (*_ALWAYS, *names) if name in row})


def _named(row: dict) -> dict:
    return row | {"quality": label(row["quality"])}
