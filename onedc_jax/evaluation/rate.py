"""Rows to curves: means at each quality, and how much rate one codec saves against another."""

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onedc_jax.errors import OneDCError


@dataclass(frozen=True)
class Metric:
    """How a metric is written, in a table with so many `digits`, and which end of it is good."""

    label: str
    unit: str
    higher_is_better: bool
    digits: int = 4

    @property
    def sign(self) -> int:
        """What a value is multiplied by, so that higher is better."""
        return 1 if self.higher_is_better else -1


METRICS = {
    "psnr": Metric("PSNR", "dB", True, digits=2),
    "ms_ssim": Metric("MS-SSIM", "", True),
    "lpips_alex": Metric("LPIPS (AlexNet)", "", False),
    "lpips_vgg": Metric("LPIPS (VGG)", "", False),
    "dists": Metric("DISTS", "", False),
    "fid": Metric("FID", "", False, digits=1),
    "kid": Metric("KID", "", False),
}
_POINT = ("codec", "version", "quality")
SECONDS = ("encode_s", "decode_s", "encode_network_s", "decode_network_s")


def latest(rows: Iterable[dict]) -> list[dict]:
    """The rows that nothing later replaces: a codec's last version, its last of image and quality.

    Rows are in the order that they were measured in, as `results.read` gives them.
    """
    rows = list(rows)
    versions = {row["codec"]: row["version"] for row in rows}
    found = {
        (row["image"], row["codec"], row["quality"]): row
        for row in rows
        if row["version"] == versions[row["codec"]]
    }
    return list(found.values())


def present(rows: Sequence[dict]) -> list[str]:
    """The metrics that some row or point has, in the order of a table."""
    return [name for name in METRICS if any(row.get(name) is not None for row in rows)]


def finite(row: dict, name: str) -> bool:
    """Whether a row or point has a finite number of this name; equal images have a PSNR of inf."""
    return row.get(name) is not None and math.isfinite(float(row[name]))


def points(rows: Iterable[dict]) -> list[dict]:
    """The mean over images at each codec's each quality, in the order they first appear.

    A point has "codec", "version", "quality", "images" (how many), "bpp", and of the metrics and
    seconds those that some row has, each over the rows where it is finite: only what `comparable`
    gives is over the same images. Rows with "error" do not count.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault(_point(row), []).append(row)
    found = []
    for key, group in groups.items():
        point = dict(zip(_POINT, key, strict=True)) | {"images": len(group)}
        for name in ("bpp", *METRICS, *SECONDS, "peak_mb"):
            values = [float(row[name]) for row in group if finite(row, name)]
            if values:
                point[name] = max(values) if name == "peak_mb" else statistics.fmean(values)
        found.append(point)
    return found


def common(rows: Iterable[dict], metric: str) -> list[dict]:
    """The rows with a finite metric, of the images that have it so at every point that does at all.

    An image may be too small for the metric, and a codec may fail on one or restore it exactly.
    """
    rows = [row for row in rows if finite(row, metric)]
    found: dict[tuple, set] = defaultdict(set)
    for row in rows:
        found[_point(row)].add(_image(row))
    shared = set.intersection(*found.values()) if found else set()
    return [row for row in rows if _image(row) in shared]


def comparable(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """For each metric that some row has, the `points` of the `common` rows; there may be none."""
    return {name: points(common(rows, name)) for name in present(rows)}


def _point(row: dict) -> tuple:
    return tuple(row[name] for name in _POINT)


def _image(row: dict) -> tuple:
    return row["image"], row["digest"]


def nearest(rows: Iterable[dict], bpp: float) -> dict:
    """The row or point whose rate is nearest, as a factor."""
    return min(rows, key=lambda row: abs(math.log(row["bpp"] / bpp)))


def pairs(points: Iterable[dict], codec: str, metric: str) -> list[tuple[float, float]]:
    """A codec's rates and values of a metric, by rate; what is not finite is left out."""
    own = (point for point in points if point["codec"] == codec and finite(point, metric))
    return sorted((point["bpp"], point[metric]) for point in own)


@dataclass(frozen=True)
class Curve:
    """Rates in bpp, increasing, and what they buy, increasing too: a distance is negated."""

    rates: np.ndarray
    values: np.ndarray


def curve(points: Iterable[dict], codec: str, metric: str) -> Curve:
    """The curve of a codec; points that cost more than another and are no better are left out.

    The points are those that `comparable` gives for the metric.
    """
    kept: list[tuple[float, float]] = []
    found = [(rate, METRICS[metric].sign * value) for rate, value in pairs(points, codec, metric)]
    for rate, value in sorted(found, key=lambda point: (point[0], -point[1])):
        if not kept or (rate > kept[-1][0] and value > kept[-1][1]):
            kept.append((rate, value))
    rates, values = np.array(kept).reshape(-1, 2).T
    return Curve(rates, values)


def bd_rate(anchor: Curve, test: Curve) -> dict[str, float | str]:
    """How much more rate `test` needs than `anchor` for the same quality, in percent, on average.

    Bjøntegaard's measure of log rate over quality, interpolated by PCHIP and by Akima:
    {"pchip", "akima", "overlap"}, the last the share of `test`'s range that `anchor` covers. Where
    it cannot be said, {"note"} instead. Needs the package `bjontegaard`; raises OneDCError
    without it.
    """
    try:
        import bjontegaard
    except ImportError as error:
        raise OneDCError("without BD-rate: pip install bjontegaard") from error
    for one, whose in ((test, "this codec"), (anchor, "the anchor")):
        if len(one.rates) < 2:
            return {"note": f"{whose} has {'a single rate' if len(one.rates) else 'no value'}"}
    ends = [(one.values[0], one.values[-1]) for one in (anchor, test)]
    covered = min(high for _, high in ends) - max(low for low, _ in ends)
    overlap = covered / (test.values[-1] - test.values[0])
    if overlap <= 0:
        return {"note": "no overlap"}
    found: dict[str, float | str] = {"overlap": float(overlap)}
    for method in ("pchip", "akima"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of little overlap, which is told
            value = bjontegaard.bd_rate(
                *(anchor.rates, anchor.values, test.rates, test.values),
                method=method,
                require_matching_points=False,
            )
        found[method] = float(value)
    return found


def rate_at_equal(anchor: Curve, value: float) -> float | None:
    """The anchor's rate, in bpp, at a value (negated if it is a distance); None beyond its ends.

    Between two points the logarithm of the rate is linear.
    """
    if not len(anchor.rates) or not anchor.values[0] <= value <= anchor.values[-1]:
        return None
    return float(np.exp(np.interp(value, anchor.values, np.log(anchor.rates))))


def compare(points: Mapping[str, Sequence[dict]], anchor: str) -> tuple[list[dict], list[dict]]:
    """All codecs against one: rows of BD-rates, and rows of rates at equal metric.

    `points` are those of each metric, as `comparable` gives them. The first rows are {"codec",
    "anchor", "metric"} and what `bd_rate` gives. The second, one for each metric and point of the
    others, are {"codec", "quality", "metric", "value", "bpp", "anchor", "anchor_bpp",
    "saving_percent"} or, beyond the anchor's ends, {"note"} in place of the last two.
    """
    codecs = dict.fromkeys(point["codec"] for own in points.values() for point in own)
    deltas, equals = [], []
    for metric, own in points.items():
        reference = curve(own, anchor, metric)
        for codec in codecs:
            if codec == anchor:
                continue
            row = {"codec": codec, "anchor": anchor, "metric": metric}
            deltas.append(row | bd_rate(reference, curve(own, codec, metric)))
        for point in own:
            if point["codec"] != anchor and finite(point, metric):
                equals.append(_equal(point, metric, anchor, reference))
    return deltas, equals


def _equal(point: dict, metric: str, anchor: str, reference: Curve) -> dict:
    value = point[metric]
    row = {"codec": point["codec"], "quality": point["quality"], "metric": metric}
    row |= {"value": value, "bpp": point["bpp"], "anchor": anchor}
    gain = METRICS[metric].sign * value
    rate = rate_at_equal(reference, gain)
    if rate is None:
        if not len(reference.values):
            return row | {"note": "the anchor has no such value"}
        if gain < reference.values[0]:
            return row | {"note": "worse than the anchor at its lowest rate"}
        return row | {"note": "better than the anchor at its highest rate"}
    return row | {"anchor_bpp": rate, "saving_percent": 100 * (1 - point["bpp"] / rate)}
