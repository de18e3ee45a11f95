"""The benchmark's numbers as tables of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from nnunet_autosam2.benchmark.results import DICE, MEAN, Benchmark, Comparison, ModelResults
from nnunet_autosam2.evaluation.empty_regions import MILLIMETRES

OVERLAP = (DICE, "IoU")
BOUNDARY = ("HD95", "NSD", "Sensitivity")
LESION_WISE = ("Lesion-wise Dice", "Lesion-wise Dice, all", "Lesion-wise NSD", "Lesion-wise HD95")
NOTHING = "–"


@dataclass
class Cell:
    text: str
    notes: list[str] = field(default_factory=list)
    """Small lines below the text"""
    best: bool = False


@dataclass
class Row:
    title: str
    cells: list[Cell]
    note: str = ""
    failed: str = ""
    """Folds or cases that this row lacks, and why"""


@dataclass
class Table:
    caption: str
    groups: list[tuple[str, int]]
    """Headings over several columns, with their number of columns"""
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    heading: str = "Model"
    """Heading of the rows' titles"""

    @property
    def starts(self) -> list[int]:
        """First column of each group."""
        return [sum(span for _, span in self.groups[:number]) for number in range(len(self.groups))]


def score_table(benchmark: Benchmark, metrics: Sequence[str], caption: str) -> Table | None:
    """A row per model, columns metric × region, and the mean over the regions for Dice; None without such scores."""
    present = [
        metric
        for metric in metrics
        if any(model.scores(region, metric).size for model in benchmark.models for region in benchmark.regions)
    ]
    if not present:
        return None
    regions = {metric: [*benchmark.regions, *["Mean"] * (metric == DICE)] for metric in present}
    table = Table(
        caption,
        [(f"{metric} ({'mm' if metric in MILLIMETRES else '%'})", len(regions[metric])) for metric in present],
        [region for metric in present for region in regions[metric]],
    )
    models = benchmark.ordered_models
    columns = [
        _score_column(models, region, metric, len(benchmark.cases)) for metric in present for region in regions[metric]
    ]
    for model, cells in zip(models, zip(*columns, strict=True), strict=True):
        table.rows.append(Row(model.title, list(cells), slices(model), missing(model, benchmark)))
    return table


def _score_column(models: list[ModelResults], region: str, metric: str, cases: int) -> list[Cell]:
    """Best is among the models that lack no case: means over different cases do not compare."""
    values = [model.mean_dices() if region == "Mean" else model.scores(region, metric) for model in models]
    complete = [not model.failed and len(list(model.results())) == cases for model in models]
    sign, scale = (-1, 1) if metric in MILLIMETRES else (1, 100)
    rated = [
        sign * value.mean() for value, is_complete in zip(values, complete, strict=True) if value.size and is_complete
    ]
    cells = []
    for value, is_complete in zip(values, complete, strict=True):
        if not value.size:
            cells.append(Cell(NOTHING, ["n = 0"] * bool(cases)))
            continue
        best = len(rated) > 1 and is_complete and sign * value.mean() == max(rated)
        notes = [f"± {scale * value.std(ddof=1):.2f}"] if value.size > 1 else []
        if value.size < cases:
            notes.append(f"n = {value.size}")
        cells.append(Cell(f"{scale * value.mean():.2f}", notes, best))
    return cells


def comparison_tables(benchmark: Benchmark) -> Iterator[Table]:
    """One table per metric: a row per pair of models, a column per region."""
    regions = [*benchmark.regions, MEAN]

    def pair(comparison: Comparison) -> tuple[str, str, str]:
        return comparison.metric, comparison.model, comparison.reference

    order = {key: number for number, key in enumerate(dict.fromkeys(map(pair, benchmark.comparisons)))}
    ordered = sorted(benchmark.comparisons, key=lambda comparison: order[pair(comparison)])
    for metric, of_metric in groupby(ordered, key=lambda comparison: comparison.metric):
        unit = "mm" if metric in MILLIMETRES else "percentage points"
        table = Table(
            f"Paired differences in {metric}, {unit}",
            [],
            [*benchmark.regions, "Mean"],
            heading="Model − reference",
        )
        for (_, model, reference), of_pair in groupby(of_metric, key=pair):
            by_region = {comparison.region: comparison for comparison in of_pair}
            cells = [_difference(by_region.get(region)) for region in regions]
            table.rows.append(Row(f"{model} − {reference}", cells))
        yield table


def _difference(comparison: Comparison | None) -> Cell:
    if comparison is None:
        return Cell(NOTHING)
    scale = 1 if comparison.metric in MILLIMETRES else 100
    cases = f"n = {comparison.n}{f', {comparison.dropped} dropped' if comparison.dropped else ''}"
    if comparison.difference is None:
        return Cell(NOTHING, [cases])
    notes = [f"{_shown_p('p', comparison.p)}, {cases}"]
    if comparison.p_corrected is not None:
        notes.append(_shown_p("Holm's p", comparison.p_corrected))
    if comparison.effect is not None:
        notes.append(f"effect {comparison.effect:+.2f}")
    if comparison.between_repeats is not None:
        notes.append(f"± {scale * comparison.between_repeats:.2f} between {comparison.repeats} trainings")
    if comparison.needed is not None and not comparison.excludes_zero:
        notes.append(f"{comparison.needed} cases would show it")
    if comparison.interval is not None:
        notes.insert(0, " to ".join(signed(scale * bound) for bound in comparison.interval))
    return Cell(signed(scale * comparison.difference), notes, comparison.excludes_zero)


def _shown_p(name: str, p: float | None) -> str:
    return f"{name} not defined" if p is None else f"{name} < 0.001" if p < 0.001 else f"{name} = {p:.3f}"


def cost_table(benchmark: Benchmark) -> Table:
    table = Table(
        "What each model costs",
        [],
        ["Parameters", "Trainable", "Training a fold", "Inference a case", "Peak memory"],
    )
    for model in benchmark.ordered_models:
        training, inference, memory = model.training_seconds(), model.inference_seconds(), model.peak_memory_bytes()
        texts = (
            NOTHING if model.parameters is None else f"{model.parameters.all / 1e6:.2f} M",
            NOTHING if model.parameters is None else f"{model.parameters.trainable / 1e6:.2f} M",
            duration(training.mean()) if training.size else NOTHING,
            duration(inference.mean()) if inference.size else NOTHING,
            NOTHING if memory is None else f"{memory / 2**30:.2f} GiB",
        )
        table.rows.append(Row(model.title, [Cell(text) for text in texts], slices(model), missing(model, benchmark)))
    return table


def case_table(benchmark: Benchmark) -> Table:
    """A row per case, a column per model: mean Dice over the regions, best in bold; worst cases first."""
    models = benchmark.ordered_models
    by_model = [{result.case: result.mean_dice() for result in model.results()} for model in models]
    table = Table("Dice of each case, mean over the regions (%)", [], [model.title for model in models], heading="Case")
    rows = []
    for case in benchmark.cases:
        values = [dices.get(case) for dices in by_model]
        defined = [value for value in values if value is not None]
        cells = [
            Cell(NOTHING)
            if value is None
            else Cell(f"{100 * value:.2f}", best=len(defined) > 1 and value == max(defined))
            for value in values
        ]
        rows.append((float(np.mean(defined)) if defined else np.inf, Row(case, cells)))
    table.rows = [row for _, row in sorted(rows, key=lambda rated: rated[0])]
    return table


def slices(model: ModelResults) -> str:
    if model.slice_fraction is None:
        return "nnU-Net's own network"
    return f"SAM2 on {100 * model.slice_fraction:g} % of the slices"


def missing(model: ModelResults, benchmark: Benchmark) -> str:
    """Folds or cases that this model lacks, so that its means do not compare with the others'."""
    if model.failed:
        return f"{len(model.failed)} of {len(model.folds)} folds failed"
    lacking = len(benchmark.cases) - len(list(model.results()))
    return f"{lacking} of {len(benchmark.cases)} cases missing" if lacking else ""


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
