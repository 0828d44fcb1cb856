"""Curves and what one saves against another."""

import math

import numpy as np
import pytest

from onedc_jax.evaluation import plots, rate

RATES = np.array([0.1, 0.2, 0.4, 0.8, 1.6])


def codec(name: str, rates, **metrics) -> list[dict]:
    """A codec's points: metrics are functions of the rate."""
    return [
        {"codec": name, "version": "1", "quality": n, "images": 1, "bpp": float(r)}
        | {key: float(value(r)) for key, value in metrics.items()}
        for n, r in enumerate(rates)
    ]


def psnr(r):
    return 30 + 3 * np.log2(r)


def lpips(r):
    return 0.3 - 0.1 * np.log2(r)


ALL = [
    *codec("anchor", RATES, psnr=psnr, lpips_vgg=lpips),
    # The same quality for 20 % less.
    *codec("better", 0.8 * RATES, psnr=lambda r: psnr(r / 0.8), lpips_vgg=lambda r: lpips(r / 0.8)),
    *codec("single", [0.2], psnr=lambda r: psnr(0.4), lpips_vgg=lambda r: 0.9),
    *codec("far", [4, 8], psnr=psnr, lpips_vgg=lpips),
]
POINTS = dict.fromkeys(("psnr", "lpips_vgg"), ALL)


def row(codec="a", quality=1, **values) -> dict:
    row = {"image": "i", "digest": "1", "codec": codec, "version": "1", "quality": quality}
    return row | {"bpp": 1.0} | values


def two_images() -> list[dict]:
    """Codecs a and b, alike on a large image; on one too small for MS-SSIM b costs 1 bpp more."""
    rows = []
    for name, more in (("a", 0.0), ("b", 1.0)):
        for n, bpp in enumerate(RATES):
            rows.append(row(name, n, bpp=bpp, psnr=psnr(bpp), ms_ssim=1 - 0.1 / bpp))
            rows.append(row(name, n, image="small", bpp=bpp + more, psnr=psnr(bpp), ms_ssim=None))
    return rows


def test_means_are_over_the_rows_that_have_a_finite_value():
    rows = [
        row(psnr=10.0, ms_ssim=None, peak_mb=3.0),
        row(psnr=20.0, ms_ssim=0.5, peak_mb=2.0),
        {"image": "bad", "error": "x"},
        row(psnr="inf"),
        row(quality=2, psnr="inf"),
    ]
    first, second = rate.points(rows)
    assert (first["psnr"], first["ms_ssim"], first["peak_mb"], first["images"]) == (15, 0.5, 3, 3)
    assert "psnr" not in second and second["images"] == 1


def test_curves_are_means_of_rate_and_metric_over_the_same_images():
    pytest.importorskip("bjontegaard")
    found = rate.comparable(two_images())
    assert {name: {p["images"] for p in own} for name, own in found.items()} == {
        "psnr": {2},
        "ms_ssim": {1},
    }
    deltas, _ = rate.compare(found, "a")
    by_metric = {row["metric"]: row["pchip"] for row in deltas}
    assert by_metric["ms_ssim"] == pytest.approx(0, abs=1e-9) and by_metric["psnr"] > 50


def test_an_image_that_a_codec_lacks_at_a_quality_is_not_compared():
    rows = [row("b", 0, image="bad", error="x"), row("a", 0, image="bad", psnr=9), *two_images()]
    assert rate.common(rows, "psnr") == two_images()
    (_, *rest) = two_images()  # the large image lacks a point now
    assert {row["image"] for row in rate.common(rest, "psnr")} == {"small"}
    assert rate.comparable([row("a", psnr=1), row("b", image="j", psnr=1)]) == {"psnr": []}


def test_an_image_that_one_codec_restores_exactly_empties_no_curve():
    flat = [row("a", 4, image="flat", bpp=0.1, psnr="inf"), row("b", 4, image="flat", psnr=40.0)]
    exact = row("exact", image="small", psnr=math.inf)  # as all its images: it has no curve
    assert rate.common([*two_images(), *flat, exact], "psnr") == two_images()
    points = rate.comparable([*two_images(), *flat, exact])["psnr"]
    curves = [rate.pairs(points, name, "psnr") for name in ("a", "b", "exact")]
    assert [len(curve) for curve in curves] == [5, 5, 0]


def test_what_was_measured_again_counts_once():
    old = (
        row("a", bpp=1),
        row("a", bpp=2, version="2"),
        row("b", bpp=3),
        row("b", bpp=4, digest="2"),
    )
    assert rate.latest(old) == [old[1], old[3]]


def test_a_curve_keeps_what_is_worth_its_rate():
    values = {0.1: 20, 0.2: 19, 0.4: 30, 0.8: 31}
    points = codec("a", [0.4, 0.1, 0.2, 0.8], psnr=values.get)
    points += codec("a", [1.6], psnr=lambda r: math.inf)
    points += codec("a", [0.8], psnr=lambda r: 30)  # as dear, and worse
    curve = rate.curve(points, "a", "psnr")
    assert curve.rates.tolist() == [0.1, 0.4, 0.8] and curve.values.tolist() == [20, 30, 31]


@pytest.mark.parametrize("metric", ["psnr", "lpips_vgg"])
def test_a_codec_of_a_fifth_less_rate_saves_a_fifth(metric):
    pytest.importorskip("bjontegaard")
    curves = [rate.curve(ALL, name, metric) for name in ("anchor", "better")]
    found = rate.bd_rate(*curves)
    assert found["pchip"] == pytest.approx(-20) and found["akima"] == pytest.approx(-20)
    assert found["overlap"] == pytest.approx(1)


def test_where_curves_do_not_overlap_that_is_said():
    pytest.importorskip("bjontegaard")
    curves = {name: rate.curve(ALL, name, "psnr") for name in ("anchor", "far", "single")}
    assert rate.bd_rate(curves["anchor"], curves["far"]) == {"note": "no overlap"}
    single = rate.bd_rate(curves["anchor"], curves["single"])
    assert single == {"note": "this codec has a single rate"}


def test_overlap_is_what_the_anchor_covers_of_a_codec():
    pytest.importorskip("bjontegaard")
    near = codec("near", [0.8, 6.4], psnr=psnr)  # the anchor ends at 1.6, a third of its way
    curves = [rate.curve([*ALL, *near], name, "psnr") for name in ("anchor", "near")]
    assert rate.bd_rate(*curves)["overlap"] == pytest.approx(1 / 3)
    within = rate.curve(codec("within", [0.2, 0.4], psnr=psnr), "within", "psnr")
    assert rate.bd_rate(curves[0], within)["overlap"] == pytest.approx(1)


def test_a_single_point_has_the_anchor_s_rate_at_its_quality():
    pytest.importorskip("bjontegaard")
    _, equals = rate.compare(POINTS, "anchor")
    own = {row["metric"]: row for row in equals if row["codec"] == "single"}
    assert own["psnr"]["anchor_bpp"] == pytest.approx(0.4)
    assert own["psnr"]["saving_percent"] == pytest.approx(50)
    assert own["lpips_vgg"]["note"] == "worse than the anchor at its lowest rate"
    (far, *_) = [row for row in equals if row["codec"] == "far"]
    assert far["note"] == "better than the anchor at its highest rate"


def test_figures_are_whole_and_the_same_each_time():
    pytest.importorskip("matplotlib")
    files = plots.draw(ALL, "lpips_vgg", ["single"])
    assert files[".png"].startswith(b"\x89PNG")
    assert files == plots.draw(ALL, "lpips_vgg", ["single"])
    svg = files[".svg"].decode()
    assert svg.count("prefers-color-scheme") == 1 and svg.rstrip().endswith("</svg>")
