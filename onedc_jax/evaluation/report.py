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
    with Folder(out, sources) as folder:
        work = _Work(folder, codecs, pictures, say)
        for line in codecs.missing + distances.missing:
            work.note(line)
        if network is None:
            how = f"{distributions.HOW_TO_GET}, --inception DIR"
            work.done.notes.append(f"without FID and KID: {how}")
        rows = work.measure(distances)
        compared = rate.comparable(rows)
        if network and rows:
            compared |= work.add_distributions(rows, network)
        work.done.notes += _left_out(rows, compared)
        deltas, equals = work.write_tables(compared, anchor)
        shown = work.write_pictures(rows)
        work.write_sheet(shown, anchor)
        work.write_page(shown, anchor, deltas, equals, work.draw(compared))
    return work.done


# For each image: its name, the path of its picture, and the rows to look at with their pictures'.
_Shown = list[tuple[str, str, list[tuple[dict, str]]]]


@dataclass(frozen=True)
class _Work:
    """The steps of a report, and what they share; `done` is what came of them so far."""

    folder: Folder
    codecs: Codecs
    pictures: Sequence[Picture]
    say: Callable[[str], object]
    done: Report = field(default_factory=Report)

    def note(self, line: str) -> None:
        self.done.notes.append(line)
        self.say(line)

    def fail(self, row: dict, error: str) -> None:
        what = " ".join(filter(None, (row.get("codec"), label(row.get("quality")))))
        line = f"{row['image']}: {what + ': ' if what else ''}{error}"
        self.done.failed.append(line)
        with tqdm.external_write_mode():
            self.say(line)

    def measure(self, distances: Distances) -> list[dict]:
        """The rows of all that did not fail; the points become their means."""
        codecs, rows = self.codecs.all, []
        total = len(self.pictures) * sum(len(codec.qualities) for codec in codecs)
        with tqdm(total=total, unit="file", disable=None) as bar:
            names, step = distances.names, bar.update
            for row in run(codecs, self.pictures, distances, names, self.folder, step):
                if "error" in row:
                    self.fail(row, row["error"])
                else:
                    rows.append(row)
        self.done.points = rate.points(rows)
        return rows

    def decode(self, row: dict) -> np.ndarray:
        codec = next(codec for codec in self.codecs.all if codec.name == row["codec"])
        return codec.decode(self.folder.data(row))

    def add_distributions(
        self, rows: Sequence[dict], network: distributions.Features
    ) -> dict[str, list[dict]]:
        """Adds "fid", "kid" and "patches" to the points; returns the points to compare by them.

        All are of the same images, those that every point has, against their originals.
        """
        rows = rate.common(rows, "bpp")
        paths = {picture.name: picture.path for picture in self.pictures}
        own: dict[tuple, dict] = defaultdict(dict)  # by codec and quality, each image's row
        for row in rows:
            own[row["codec"], row["quality"]][row["image"]] = row
        names = list(dict.fromkeys(row["image"] for row in rows))
        features = lambda image: network(distributions.patches(image))
        read = (images.read(paths[name])[0] for name in tqdm(names, "originals", disable=None))
        originals = [features(image) for image in read]
        count = sum(map(len, originals))
        if count < 2:
            self.note(
                "without FID and KID: the images have less than two patches of 256×256 pixels"
            )
            return {}
        values = {}
        for point, of_image in tqdm(own.items(), "FID and KID", disable=None):
            try:
                b = np.concatenate([features(self.decode(of_image[name])) for name in names])
            except OneDCError as error:  # it did decode before: a program that does not always
                self.fail(of_image[names[0]] | {"image": "FID and KID"}, str(error))
                continue
            a = np.concatenate(originals)
            fid, kid = distributions.frechet_distance(a, b), distributions.kernel_distance(a, b)[0]
            values[point] = {"patches": count, "fid": fid, "kid": kid}
        self.done.notes.append(
            f"FID and KID are of {count} patches of 256×256 pixels; "
            "compare only numbers of the same"
        )
        completed = lambda points: [p | values.get((p["codec"], p["quality"]), {}) for p in points]
        self.done.points = completed(self.done.points)
        return dict.fromkeys(("fid", "kid"), completed(rate.points(rows)))

    def write_tables(
        self, compared: dict[str, list[dict]], anchor: str | None
    ) -> tuple[list[dict], list[dict]]:
        """Writes the means and what `rate.compare` gives, which it returns."""
        points = self.done.points
        deltas, equals = [], []
        if anchor is None:
            self.done.notes.append("without BD-rate: there is no baseline to compare with")
        elif points:
            try:
                deltas, equals = rate.compare(compared, anchor)
                self.done.notes += _single_points(points)
            except OneDCError as error:
                self.note(str(error))
        measures = ("bpp", *rate.present(points), *rate.SECONDS, "peak_mb")
        heads = ("codec", "version", "quality", "images", "patches", *measures)
        self.folder.write("summary.csv", _csv(heads, points))
        heads = ("codec", "anchor", "metric", "pchip", "akima", "overlap", "note")
        self.folder.write("bd_rate.csv", _csv(heads, deltas))
        heads = ("codec", "quality", "metric", "value", "bpp")
        heads += ("anchor", "anchor_bpp", "saving_percent", "note")
        self.folder.write("equal_metric.csv", _csv(heads, equals))
        return deltas, equals

    def write_pictures(self, rows: Sequence[dict]) -> _Shown:
        """What is shown of each image, its pictures made where they are not there yet."""
        found, by_image = [], defaultdict(list)
        for row in rows:
            by_image[row["image"]].append(row)
        for picture in tqdm(self.pictures, "pictures", disable=None):
            own = by_image[picture.name]
            if not own:
                continue
            original = self.folder.original_of(own[0])
            if not (self.folder.path / original).exists():
                self.folder.write_picture(original, results.read_image(picture))
            shown = []
            for row in page.shown_rows(own, self.codecs.models):
                name = self.folder.picture_of(row)
                try:
                    if not (self.folder.path / name).exists():
                        self.folder.write_picture(name, self.decode(row))
                    shown.append((row, name))
                except OneDCError as error:
                    self.fail(row, str(error))
            if shown:
                found.append((picture.name, original, shown))
        return found

    def write_sheet(self, shown: _Shown, anchor: str | None) -> None:
        """Writes the contact sheet and the README's table, where there is a model; or no older."""
        models = self.codecs.models
        if models and shown:
            image = contact_sheet(self.folder.path, shown, models[0], anchor or "")
            self.folder.write("sheet.jpg", image)
            self.folder.write("table.md", table(self.done.points, models).encode())
        else:
            self.folder.remove("sheet.jpg")
            self.folder.remove("table.md")

    def draw(self, compared: dict[str, list[dict]]) -> list[dict]:
        """Writes a figure for each metric; returns their labels and names for the page."""
        found = []
        for name in rate.METRICS:  # older ones, also where none can be drawn now
            for suffix in plots.SUFFIXES:
                self.folder.remove(f"curves/{name}{suffix}")
        for name, points in compared.items():
            try:
                files = plots.draw(points, name, self.codecs.models)
            except OneDCError as error:
                self.note(str(error))
                break
            written = {
                suffix[1:]: self.folder.write(f"curves/{name}{suffix}", data)
                for suffix, data in files.items()
            }
            found.append({"label": rate.METRICS[name].label} | written)
        return found

    def write_page(
        self,
        shown: _Shown,
        anchor: str | None,
        deltas: Sequence[dict],
        equals: Sequence[dict],
        curves: Sequence[dict],
    ) -> None:
        versions = [f"{codec.name}: version {codec.version}" for codec in self.codecs.all]
        data = page.page_data(
            shown,
            self.done.points,
            models=self.codecs.models,
            anchor=anchor,
            deltas=deltas,
            equals=equals,
            plots=curves,
            notes=self.done.notes + versions,
            failed=self.done.failed,
            made_by=f"Made by onedc_jax {onedc_jax.__version__} on {platform.platform()}, Python "
            f"{platform.python_version()}. Every number is in results.jsonl, the means in "
            "summary.csv.",
        )
        self.folder.write("index.html", page.render(data))


def _left_out(rows: Sequence[dict], compared: dict[str, list[dict]]) -> list[str]:
    """What is compared over fewer images than there are, and values that nothing is made of."""
    total = len({row["image"] for row in rows})
    labels = defaultdict(list)
    for name, points in compared.items():
        labels[points[0]["images"] if points else 0].append(rate.METRICS[name].label)
    notes = [
        f"compared by {', '.join(names)}, also in the curves: {count} of {total} images, those "
        "that have it of every codec at every quality"
        for count, names in labels.items()
        if count < total
    ]
    for name in rate.present(rows):
        having = (row for row in rows if row.get(name) is not None)
        exact = list(dict.fromkeys(row["image"] for row in having if not rate.finite(row, name)))
        if exact:
            notes.append(
                f"{rate.METRICS[name].label} is not finite where a codec restores an image exactly "
                f"({len(exact)} of {total} images, such as {exact[0]}): in no mean and no curve"
            )
    return notes


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
