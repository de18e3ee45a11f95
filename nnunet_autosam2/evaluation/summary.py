"""Scores of all cases → files, and a table of mean ± sd."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from nnunet_autosam2.evaluation.empty_regions import MILLIMETRES
from nnunet_autosam2.evaluation.scoring import Scores
from nnunet_autosam2.support.columns import aligned
from nnunet_autosam2.support.text import csv_cell


class Statistic(NamedTuple):
    mean: float | None
    sd: float | None
    """Standard deviation of the sample (n - 1), as in brats-parse-metrics; None below two cases"""
    n: int
    """Cases in which the metric is defined."""


def summarise(scores: Scores) -> dict[str, dict[str, Statistic]]:
    """`[region][metric]` over the cases in which it is defined."""
    return {
        region: {metric: _statistic([case[region][metric] for case in scores.values()]) for metric in metrics}
        for region, metrics in _first(scores).items()
    }


def _first(scores: Scores) -> Mapping[str, Mapping[str, float | None]]:
    """A case, to learn regions and metrics from, which all cases share."""
    return next(iter(scores.values()))


def _statistic(values: list[float | None]) -> Statistic:
    defined = [value for value in values if value is not None]
    return Statistic(fmean(defined) if defined else None, stdev(defined) if len(defined) > 1 else None, len(defined))


def table(scores: Scores) -> str:
    """Metrics down, regions across; the number of cases is said where a metric is not defined in all."""
    summary = summarise(scores)
    rows = [["", *summary]]
    for metric in next(iter(summary.values())):
        unit = " (mm)" if metric in MILLIMETRES else ""
        rows.append([metric + unit, *(_cell(metrics[metric], metric, len(scores)) for metrics in summary.values())])
    return aligned(rows)


def _cell(statistic: Statistic, metric: str, cases: int) -> str:
    if statistic.mean is None:
        return "-"
    digits = 2 if metric in MILLIMETRES else 4
    text = f"{statistic.mean:.{digits}f}"
    if statistic.sd is not None:
        text += f" ± {statistic.sd:.{digits}f}"
    return text if statistic.n == cases else f"{text} (n={statistic.n})"


def write_scores(folder: Path, scores: Scores, about: dict[str, Any]) -> None:
    """`scores.csv` with a line for each case and region, and `scores.json` with `about`, the mean ± sd and the cases.

    A metric that is not defined is empty in the one and null in the other.
    """
    with (folder / "scores.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "region", *next(iter(_first(scores).values()))])
        for case, regions in scores.items():
            writer.writerows(
                [csv_cell(case), csv_cell(region), *metrics.values()] for region, metrics in regions.items()
            )
    summary = {
        region: {metric: statistic._asdict() for metric, statistic in metrics.items()}
        for region, metrics in summarise(scores).items()
    }
    content = json.dumps({**about, "summary": summary, "cases": scores}, indent=2, allow_nan=False)
    (folder / "scores.json").write_text(content + "\n", encoding="utf-8")
