"""The benchmark's figures, as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_autosam2.benchmark.results import DICE, HD95, LEAST_CASES, MEAN, Benchmark, ModelResults

# Stand-ins: the page replaces them by its own colours, which differ between light and dark.
INK, GRID = "#010203", "#010204"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(1, 9))
VARIABLES = {INK: "var(--ink)", GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,  # titles may hold a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK
    ),
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
INCHES = 9.6
COLUMNS = 4
"""Most panels in a row"""
MOST_POINTS = 200
"""Cases up to which each is a point in a box plot"""


class Drawing(NamedTuple):
    key: str
    caption: str
    svg: Markup


def draw_figures(benchmark: Benchmark) -> Iterator[Drawing]:
    """Draw those figures for which the benchmark has numbers."""
    models = benchmark.ordered_models
    yield from _drawn("dice", f"Dice of each case (%). {_BOXES}", _boxes(benchmark, DICE, 100))
    yield from _drawn("hd95", f"HD95 of each case (mm), less is better. {_BOXES}", _boxes(benchmark, HD95, 1))
    yield from _drawn(
        "differences",
        "Paired differences in Dice, in percentage points, with 95 % confidence intervals "
        f"from {LEAST_CASES} cases on. Filled: the interval excludes 0.",
        _differences(benchmark),
    )
    yield from _drawn(
        "fraction",
        "Dice against the fraction of slices that SAM2 sees: mean over cases and its standard error. "
        "Dashed: nnU-Net's own networks.",
        _against_fraction(benchmark),
    )
    yield from _drawn("time", "Mean Dice against what it costs: up and to the left is better.", _against_time(models))
    yield from _drawn(
        "training",
        "Training, epoch by epoch, a line a fold. Loss: training solid, validation dotted.",
        _curves(models),
    )


_BOXES = "Box: quartiles and median. Whiskers: up to 1.5 interquartile ranges. Diamond: mean."


def _drawn(key: str, caption: str, figure: Figure | None) -> Iterator[Drawing]:
    if figure is not None:
        yield Drawing(key, caption, to_svg(figure, key, caption))


def _figure(height: float, number: int) -> tuple[Figure, list[Axes]]:
    """Axes side by side, each `height` inches high, in as many rows as they need."""
    columns = min(number, COLUMNS)
    rows = -(-number // columns)
    figure = Figure(figsize=(INCHES, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for surplus in panels[number:]:
        surplus.remove()
    return figure, panels[:number]


def _boxes(benchmark: Benchmark, metric: str, scale: float) -> Figure | None:
    models, regions = benchmark.ordered_models, benchmark.regions
    if not any(model.scores(region, metric).size for model in models for region in regions):
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(1.1 + 0.42 * len(models), len(regions))
        random = np.random.default_rng(0)
        for axes, region in zip(panels, regions, strict=True):
            for row, model in enumerate(models):
                values, colour = scale * model.scores(region, metric), _colour(row)
                if not values.size:
                    continue
                line = {"color": colour, "linewidth": 1.4}
                axes.boxplot(
                    values, positions=[row], orientation="horizontal", widths=0.55, showmeans=True,
                    showfliers=values.size > MOST_POINTS, boxprops=line, whiskerprops=line, capprops=line,
                    medianprops={**line, "linewidth": 2.6},
                    meanprops={"marker": "D", "markersize": 4.5, "markerfacecolor": colour, "markeredgecolor": INK},
                    flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour},
                )  # fmt: skip
                if values.size <= MOST_POINTS:
                    heights = row + random.uniform(-0.16, 0.16, values.size)
                    axes.plot(values, heights, ".", color=colour, alpha=0.55, markersize=7, markeredgewidth=0)
            axes.set(title=_label(region), ylim=(len(models) - 0.5, -0.5))
            axes.set_yticks(
                range(len(models)), [_label(model.title) for model in models] if axes in panels[::COLUMNS] else []
            )
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.locator_params(axis="x", nbins=5)
    return figure


def _differences(benchmark: Benchmark) -> Figure | None:
    regions = [*benchmark.regions, MEAN]
    shown = [comparison for comparison in benchmark.comparisons if comparison.metric == DICE]
    pairs = list(dict.fromkeys((comparison.model, comparison.reference) for comparison in shown))
    if not pairs:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(1.1 + 0.42 * len(pairs), len(regions))
        for axes, region in zip(panels, regions, strict=True):
            for comparison in shown:
                if comparison.region != region or comparison.difference is None:
                    continue
                row = pairs.index((comparison.model, comparison.reference))
                colour = SERIES[0]
                if comparison.interval is not None:
                    ends = [100 * bound for bound in comparison.interval]
                    axes.plot(ends, [row, row], color=colour, linewidth=2)
                fill = colour if comparison.excludes_zero else "none"
                middle = 100 * comparison.difference
                axes.plot(middle, row, "o", markersize=7, markerfacecolor=fill, markeredgecolor=colour)
            axes.axvline(0, color=INK, linewidth=1)
            axes.set(title="Mean" if region == MEAN else _label(region), ylim=(len(pairs) - 0.5, -0.5))
            labels = [_label(f"{model} − {reference}") for model, reference in pairs]
            axes.set_yticks(range(len(pairs)), labels if axes in panels[::COLUMNS] else [])
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.locator_params(axis="x", nbins=5)
    return figure


def _against_fraction(benchmark: Benchmark) -> Figure | None:
    models, regions = benchmark.ordered_models, benchmark.regions
    if len({model.slice_fraction for model in models if model.mean_dices().size} - {None}) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(3.4, len(regions))
        for axes, region in zip(panels, regions, strict=True):
            line = []
            for row, model in enumerate(models):
                values = 100 * model.scores(region, DICE)
                if not values.size:
                    continue
                if model.slice_fraction is None:
                    axes.axhline(values.mean(), color=_colour(row), linestyle="--", linewidth=1.4)
                    continue
                line.append((100 * model.slice_fraction, values.mean()))
                axes.errorbar(
                    *line[-1], _standard_error(values), marker="o", markersize=7, capsize=4, color=_colour(row)
                )
            axes.plot(*np.array(line).T, color=INK, linewidth=1, zorder=1)
            axes.set(
                title=_label(region),
                xlabel="slices that SAM2 sees (%)",
                ylabel="Dice (%)" if axes in panels[::COLUMNS] else "",
            )
        _legend(figure, models)
    return figure


def _against_time(models: list[ModelResults]) -> Figure | None:
    rated = [(row, model) for row, model in enumerate(models) if model.mean_dices().size]
    quantities = [
        ("training of a fold (h)", {row: model.training_seconds() / 3600 for row, model in rated}),
        ("inference of a case (s)", {row: model.inference_seconds() for row, model in rated}),
    ]
    quantities = [(name, times) for name, times in quantities if any(values.size for values in times.values())]
    if not quantities:
        return None
    with matplotlib.rc_context(STYLE):
        figure, panels = _figure(3.6, len(quantities))
        for axes, (name, times) in zip(panels, quantities, strict=True):
            for row, model in rated:
                if times[row].size:
                    axes.plot(times[row].mean(), 100 * model.mean_dices().mean(), "o", color=_colour(row), markersize=9)
            axes.margins(0.15)
            axes.set(xlabel=name, ylabel="mean Dice (%)", xlim=(0, None))
        _legend(figure, models)
    return figure


def _curves(models: list[ModelResults]) -> Figure | None:
    if not any(fold.curves.ema_fg_dice or fold.curves.train_loss for model in models for fold in model.folds):
        return None
    with matplotlib.rc_context(STYLE):
        figure, (dice, loss) = _figure(3.8, 2)
        for row, model in enumerate(models):
            for fold in model.folds:
                for axes, values, style in (
                    (dice, fold.curves.ema_fg_dice, "-"),
                    (loss, fold.curves.train_loss, "-"),
                    (loss, fold.curves.val_loss, ":"),
                ):
                    axes.plot(range(1, len(values) + 1), values, style, color=_colour(row), linewidth=1.2)
        for axes in (dice, loss):
            axes.locator_params(axis="x", integer=True)
        dice.set(xlabel="epoch", title="pseudo Dice, moving average")
        loss.set(xlabel="epoch", title="loss")
        _legend(figure, models)
    return figure


def _legend(figure: Figure, models: list[ModelResults]) -> None:
    handles = [
        Line2D([], [], color=_colour(row), marker="o", linewidth=1.6, label=_label(model.title))
        for row, model in enumerate(models)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(models)))


def _standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else 0.0


def _colour(row: int) -> str:
    return SERIES[row % len(SERIES)]


def _label(text: str) -> str:
    """Replace control characters, which XML cannot hold."""
    return "".join(sign if sign.isprintable() else "�" for sign in text)


def to_svg(figure: Figure, key: str, title: str) -> Markup:
    """Convert to SVG for a page with several: no two share an id, and each says what it shows."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has more fonts
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    metadata = root.find(f"{{{SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{key}-{value}")
            elif name == f"{{{XLINK}}}href":
                element.set(name, value.replace("#", f"#{key}-"))
            else:
                element.set(name, _with_page_colours(value.replace("url(#", f"url(#{key}-")))
    root.set("role", "img")
    root.set("aria-label", title)
    for size in ("width", "height"):
        del root.attrib[size]
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _with_page_colours(style: str) -> str:
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, variable)
    return style
