"""Paired comparison of two models on the cases that both have predicted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from nnunet_autosam2.benchmark.results import LEAST_CASES, score_of
from nnunet_autosam2.evaluation.brats_metrics import Scores
from nnunet_autosam2.evaluation.empty_regions import comparable_scores

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Difference of the mean over cases, with its confidence interval and p."""

    n: int
    dropped: int
    """Number of cases that both have and that do not count, because neither has the region"""
    difference: float | None
    """Mean over the cases; None where no case counts"""
    low: float | None
    high: float | None
    """Bounds of the 95 % confidence interval by Student's t; None below `LEAST_CASES`, or where all differ alike"""
    p: float | None
    """Two-sided Wilcoxon signed-rank test; None where no case differs"""


def compare(model: Scores, reference: Scores, region: str, metric: str) -> Difference | None:
    """Compare `model` less `reference`; a region named `mean` is the mean over the regions of each case.

    Regions that the truth lacks count as `empty_regions` says.

    Returns:
        None where they have no case in common.
    """
    common = model.keys() & reference.keys()
    if not common:
        return None
    differences = np.array(list(paired_differences(model, reference, region, metric).values()))
    low, high = interval(differences)
    return Difference(
        n=differences.size,
        dropped=len(common) - differences.size,
        difference=float(differences.mean()) if differences.size else None,
        low=low,
        high=high,
        p=float(stats.wilcoxon(differences).pvalue) if differences.any() else None,
    )


def paired_differences(model: Scores, reference: Scores, region: str, metric: str) -> dict[str, float]:
    """Case → `model` less `reference`, of the cases in which both are defined, sorted by name."""
    differences = {}
    for case in sorted(model.keys() & reference.keys()):
        mine, theirs = (
            score_of(scores, region, metric) for scores in comparable_scores([model[case], reference[case]])
        )
        if mine is not None and theirs is not None:
            differences[case] = mine - theirs
    return differences


def interval(differences: np.ndarray, least: int = LEAST_CASES) -> tuple[float, float] | tuple[None, None]:
    """Interval of their mean. Not by bootstrap, whose intervals are too short for few cases (docs/benchmark.md).

    Args:
        least: number of cases below which there is none.
    """
    if differences.size < least or not np.ptp(differences):
        return None, None
    low, high = stats.t.interval(CONFIDENCE, differences.size - 1, differences.mean(), stats.sem(differences))
    return float(low), float(high)
