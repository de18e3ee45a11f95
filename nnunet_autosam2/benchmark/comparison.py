"""Paired comparison of two models on the cases that both have predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999

Scores = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""case → region → metric → value"""


class Difference(NamedTuple):
    """Of the mean over cases, with what chance alone would make of it."""

    n: int
    difference: float
    low: float
    high: float
    """Bounds of the percentile bootstrap's 95 % confidence interval"""
    p: float | None
    """Two-sided Wilcoxon signed-rank test; None where no case differs"""


def compare(model: Scores, reference: Scores, region: str, metric: str) -> Difference | None:
    """`model` less `reference`; a region named `mean` is the mean over the regions of each case.

    Returns:
        None with fewer than two cases in which both are defined.
    """
    pairs = [
        (mine, theirs)
        for case in sorted(model.keys() & reference.keys())
        if (mine := _value(model[case], region, metric)) is not None
        and (theirs := _value(reference[case], region, metric)) is not None
    ]
    if len(pairs) < 2:
        return None
    differences = np.array([mine - theirs for mine, theirs in pairs])
    if not differences.any():
        return Difference(len(pairs), 0.0, 0.0, 0.0, None)
    interval = stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    p = stats.wilcoxon(differences).pvalue
    return Difference(len(pairs), *map(float, (differences.mean(), interval.low, interval.high, p)))


def _value(case: Mapping[str, Any], region: str, metric: str) -> float | None:
    if region != "mean":
        return case.get(region, {}).get(metric)
    values = [scores.get(metric) for scores in case.values()]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
