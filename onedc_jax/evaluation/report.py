"""Everything that `onedc eval` does: codecs over images, tables, curves and a page."""

import csv
import io
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

import onedc_jax
from onedc_jax import images
from onedc_jax.errors import OneDCError
from onedc_jax.evaluation import baselines, distributions, page, plots, rate, results
from onedc_jax.evaluation.codecs import Codec, Model
from onedc_jax.evaluation.distances import Distances
from onedc_jax.evaluation.external import read_external
from onedc_jax.evaluation.results import Folder, Picture, label
from onedc_jax.evaluation.run import run
from onedc_jax.evaluation.sheet import contact_sheet, table

DEFAULT_ANCHOR = "avif"


@dataclass
class Report:
    """What came of it. `points` are the means; `failed` and `notes` are lines for the user."""

    points: list[dict] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Codecs:
    """What is compared; `missing` are lines on what was asked for and is not installed here."""

    all: list[Codec]
    models: list[str]
    missing: list[str]

    @classmethod
    def load(
        cls,
        models: Iterable[str],
        baseline: Iterable[str],
        external: Iterable[Path],
        effort: int | None = None,
    ) -> "Codecs":
        """By models' names or folders, baselines' names, and files as `read_external` reads.

        With `effort` each model is there twice, without it and with it.

        Raises OneDCError for one that there is not, two of one name, or none at all.
        """
        others, missing = baselines.available(dict.fromkeys(baseline))
        others += [read_external(file) for file in external]
        efforts = [0, effort] if effort else [0]
        own = [Model(name, steps) for name in dict.fromkeys(models) for steps in efforts]
        names = [codec.name for codec in (*own, *others)]
        for name in names:
            if names.count(name) > 1:
                raise OneDCError(f"{name}: two codecs have this name")
        if not names:
            raise OneDCError("; ".join(["no codec to measure", *missing]))
        return cls([*own, *others], [codec.name for codec in own], missing)

    def anchor(self, name: str | None) -> str | None:
        """The codec that others are compared with: by name, else avif, else any baseline."""
        names = [codec.name for codec in self.all]
        if name is not None:
            if name not in names:
                raise OneDCError(f"{name}: no such anchor; it must be one of {', '.join(names)}")
            return name
        rest = [other for other in names if other not in self.models]
        return DEFAULT_ANCHOR if DEFAULT_ANCHOR in rest else next(iter(rest), None)


def report(
    sources: Sequence[Path],
    out: Path,
    codecs: Codecs,
    distances: Distances,
    *,
    anchor: str | None = None,
    limit: int | None = None,
    inception: Path | None = None,
    say: Callable[[str], object] = print,
) -> Report:
    """Measures and writes the whole report into `out`; what it holds already is not done again.

    `inception`: the folder of FID's network. `say` is told, line by line, of what fails.
    Raises OneDCError where nothing can be done.
    """
    anchor = codecs.anchor(anchor)
    pictures = results.find(sources, limit)
    network = distributions.Features(inception) if inception else None
    done = Report(notes=[*codecs.missing, *distances.missing])
    if network is None:
        done.notes.append(f"without FID and KID: {distributions.HOW_TO_GET}, --inception DIR")
    for note in codecs.missing + distances.missing:
        say(note)
    with Folder(out, sources) as folder:
        rows = _rows(codecs, pictures, distances, folder, done, say)
        done.points = rate.points(rows)
        compared = rate.comparable(rows)
        if network and rows:
            compared |= _distributions(done, rows, codecs, pictures, network, folder, say)
        done.notes += _left_out(rows, compared)
        _write(folder, done, rows, compared, codecs, pictures, anchor, say)
    return done


def _rows(codecs: Codecs, pictures, distances, folder: Folder, done: Report, say) -> list[dict]:
    total = len(pictures) * sum(len(codec.qualities) for codec in codecs.all)
    rows = []
    with tqdm(total=total, unit="file", disable=None) as bar:
        found = run(codecs.all, pictures, distances, distances.names, folder, bar.update)
        for row in found:
            if "error" in row:
                _fail(done, row, row["error"], say)
            else:
                rows.append(row)
    return rows


def _fail(done: Report, row: dict, error: str, say) -> None:
    what = " ".join(filter(None, (row.get("codec"), label(row.get("quality")))))
    line = f"{row['image']}: {what + ': ' if what else ''}{error}"
    done.failed.append(line)
    with tqdm.external_write_mode():
        say(line)


def _decode(codecs: Codecs, folder: Folder, row: dict) -> np.ndarray:
    codec = next(codec for codec in codecs.all if codec.name == row["codec"])
    return codec.decode(folder.data(row))


def _distributions(
    done: Report, rows, codecs: Codecs, pictures, network, folder: Folder, say
) -> dict[str, list[dict]]:
    """Adds "fid", "kid" and "patches" to the points; returns the points to compare by them.

    All are of the same images, those that every point has, against their originals.
    """
    rows = rate.common(rows, "bpp")
    paths = {picture.name: picture.path for picture in pictures}
    own: dict[tuple, dict] = defaultdict(dict)  # by codec and quality, each image's row
    for row in rows:
        own[row["codec"], row["quality"]][row["image"]] = row
    names = list(dict.fromkeys(row["image"] for row in rows))
    read = (images.read(paths[name])[0] for name in tqdm(names, "originals", disable=None))
    originals = [network(distributions.patches(image)) for image in read]
    count = sum(map(len, originals))
    if count < 2:
        note = "without FID and KID: the images have less than two patches of 256×256 pixels"
        say(note)
        done.notes.append(note)
        return {}
    values = {}
    for point, of_image in tqdm(own.items(), "FID and KID", disable=None):
        try:
            decoded = (_decode(codecs, folder, of_image[name]) for name in names)
            b = np.concatenate([network(distributions.patches(image)) for image in decoded])
        except OneDCError as error:  # it did decode before: a program that does not always
            _fail(done, of_image[names[0]] | {"image": "FID and KID"}, str(error), say)
            continue
        a = np.concatenate(originals)
        fid, kid = distributions.frechet_distance(a, b), distributions.kernel_distance(a, b)[0]
        values[point] = {"patches": count, "fid": fid, "kid": kid}
    done.notes.append(
        f"FID and KID are of {count} patches of 256×256 pixels; compare only numbers of the same"
    )
    completed = lambda points: [p | values.get((p["codec"], p["quality"]), {}) for p in points]
    done.points = completed(done.points)
    return dict.fromkeys(("fid", "kid"), completed(rate.points(rows)))


def _left_out(rows: Sequence[dict], compared: dict[str, list[dict]]) -> list[str]:
    """What is compared over fewer images than there are."""
    total = len({row["image"] for row in rows})
    labels = defaultdict(list)
    for name, points in compared.items():
        labels[points[0]["images"] if points else 0].append(rate.METRICS[name].label)
    return [
        f"compared by {', '.join(names)}, also in the curves: {count} of {total} images, those "
        "that have it of every codec at every quality"
        for count, names in labels.items()
        if count < total
    ]


def _write(
    folder: Folder, done: Report, rows, compared, codecs: Codecs, pictures, anchor, say
) -> None:
    names = [name for name in rate.METRICS if any(name in point for point in done.points)]
    measures = ("bpp", *names, *rate.SECONDS, "peak_mb")
    heads = ("codec", "version", "quality", "images", "patches", *measures)
    folder.write("summary.csv", _csv(heads, done.points))
    deltas, equals = [], []
    if anchor is None:
        done.notes.append("without BD-rate: there is no baseline to compare with")
    elif rows:
        try:
            deltas, equals = rate.compare(compared, anchor)
            done.notes += _single_points(done.points)
        except OneDCError as error:
            done.notes.append(str(error))
            say(str(error))
    heads = ("codec", "anchor", "metric", "pchip", "akima", "overlap", "note")
    folder.write("bd_rate.csv", _csv(heads, deltas))
    shown = _images(rows, codecs, pictures, folder, done, say)
    if codecs.models and shown:
        model = codecs.models[0]
        folder.write("sheet.jpg", contact_sheet(folder.path, shown, model, anchor or ""))
        folder.write("table.md", table(done.points, codecs.models).encode())
    heads = ("codec", "quality", "metric", "value", "bpp")
    heads += ("anchor", "anchor_bpp", "saving_percent", "note")
    folder.write("equal_metric.csv", _csv(heads, equals))
    data = page.page_data(
        shown,
        done.points,
        models=codecs.models,
        anchor=anchor,
        deltas=deltas,
        equals=equals,
        plots=_plots(folder, done, compared, codecs.models, say),
        notes=done.notes + [f"{codec.name}: version {codec.version}" for codec in codecs.all],
        failed=done.failed,
        made_by=f"Made by onedc_jax {onedc_jax.__version__} on {platform.platform()}, Python "
        f"{platform.python_version()}. Every number is in results.jsonl, the means in summary.csv.",
    )
    folder.write("index.html", page.render(data))


def _images(
    rows, codecs: Codecs, pictures: Sequence[Picture], folder: Folder, done: Report, say
) -> list[tuple]:
    """For the page, each image and the rows to look at, with their pictures, made as needed."""
    found, by_image = [], defaultdict(list)
    for row in rows:
        by_image[row["image"]].append(row)
    for picture in tqdm(pictures, "pictures", disable=None):
        own = by_image[picture.name]
        if not own:
            continue
        original = folder.original_of(own[0])
        if not (folder.path / original).exists():
            folder.write_picture(original, results.read_image(picture))
        shown = []
        for row in page.shown_rows(own, codecs.models):
            name = folder.picture_of(row)
            try:
                if not (folder.path / name).exists():
                    folder.write_picture(name, _decode(codecs, folder, row))
                shown.append((row, name))
            except OneDCError as error:
                _fail(done, row, str(error), say)
        if shown:
            found.append((picture.name, original, shown))
    return found


def _plots(folder: Folder, done: Report, compared, models, say) -> list[dict]:
    found = []
    for name, points in compared.items():
        try:
            files = plots.draw(points, name, models)
        except OneDCError as error:
            done.notes.append(str(error))
            say(str(error))
            break
        written = {s[1:]: folder.write(f"curves/{name}{s}", data) for s, data in files.items()}
        found.append({"label": rate.METRICS[name].label} | written)
    return found


def _single_points(points: Sequence[dict]) -> list[str]:
    codecs = [point["codec"] for point in points]
    return [
        f"{codec} has a single rate, so no BD-rate; see what the anchor needs for the same metric"
        for codec in dict.fromkeys(codecs)
        if codecs.count(codec) == 1
    ]


def _csv(heads: Sequence[str], rows: Iterable[dict]) -> bytes:
    """Rows under those of `heads` that some row has; all of them where there is no row."""
    rows = list(rows)
    heads = [head for head in heads if not rows or any(head in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
