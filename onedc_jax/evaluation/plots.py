"""Curves to look at: a metric over the rate, all codecs in one figure. Needs matplotlib."""

import io
from collections.abc import Sequence

from onedc_jax.errors import OneDCError
from onedc_jax.evaluation.rate import METRICS, pairs

_INK, _GRID = "#24292f", "#d0d7de"
_DARK = {_INK: "#e6edf3", _GRID: "#3d444d"}
# Models in the first colours; all can be told apart on white and on black, and by the colour-blind.
_MODEL_COLORS = ("#d1242f", "#8250df", "#bf3989")
_COLORS = ("#0b84d8", "#e08600", "#1a9f6e", "#8c8c8c", "#56b4e9", "#b08b00", "#a0522d", "#5f6fd8")
_MARKERS = "osD^vP<>"
SUFFIXES = (".png", ".svg")  # of a figure's files
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def draw(points: Sequence[dict], metric: str, models: Sequence[str] = ()) -> dict[str, bytes]:
    """A metric's figure, {".png": ..., ".svg": ...}, of what `rate.comparable` gives for it.

    Codecs of which `models` holds the name stand out. The SVG is transparent and follows the
    reader's choice of light or dark. Raises OneDCError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OneDCError("without curves: pip install matplotlib") from error
    colors = {"text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _GRID}
    colors |= {"xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "grid.color": _GRID}
    colors |= {"xtick.color": _GRID, "ytick.color": _GRID}
    # Without a salt of their own the SVG's names would be random, and each run's file another.
    with rc_context(colors | {"font.size": 11, "svg.hashsalt": "onedc", "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(figure.subplots(), points, metric, models)
        files = {}
        opaque = dict(dpi=144, facecolor="white")
        clear = dict(transparent=True, metadata={"Date": None})
        for suffix, options in zip(SUFFIXES, (opaque, clear), strict=True):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], **options)
            files[suffix] = buffer.getvalue()
    files[".svg"] = _with_dark_mode(files[".svg"])
    return files


def _draw(axes, points: Sequence[dict], metric: str, models: Sequence[str]) -> None:
    codecs = list(dict.fromkeys(point["codec"] for point in points))
    others = [codec for codec in codecs if codec not in models]
    rates: list[float] = []
    for codec in codecs:
        found = pairs(points, codec, metric)
        if not found:
            continue
        x, y = zip(*found, strict=True)
        rates += x
        if codec in models:
            color = _MODEL_COLORS[list(models).index(codec) % len(_MODEL_COLORS)]
            style = dict(marker="*", markersize=15, linewidth=2.5, zorder=5)
        else:
            place = others.index(codec)
            color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
            style = dict(marker=marker, markersize=5, linewidth=1.6)
        axes.plot(x, y, label=codec, color=color, **style)
    facts = METRICS[metric]
    better = "higher is better" if facts.higher_is_better else "lower is better"
    axes.set_ylabel(f"{facts.label}, {facts.unit}" if facts.unit else facts.label)
    axes.set_xlabel("bits per pixel, mean over the images (logarithmic)")
    axes.set_title(f"{facts.label} – {better}", loc="left", fontweight="bold")
    axes.set_xscale("log")
    if rates:
        axes.set_xlim(min(rates) / 1.15, max(rates) * 1.15)
        low, high = axes.get_xlim()
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.legend(frameon=False)
    axes.grid(linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _with_dark_mode(svg: bytes) -> bytes:
    """An SVG whose ink and grid change colour where the reader prefers a dark page."""
    rules = "".join(
        f'[style*="{part}: {color}"]{{{part}:{dark} !important}}'
        for color, dark in _DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    head, tag, rest = svg.partition(b"<defs>")
    return head + style.encode() + tag + rest
