"""Paired comparison of two models on the cases that both have predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from nnunet_autosam2.benchmark.results import LEAST_CASES, score_of
from nnunet_autosam2.evaluation.empty_regions import comparable_scores
from nnunet_autosam2.evaluation.scoring import Scores

CONFIDENCE = 0.95
POWER = 0.8
MOST_NEEDED = 100_000
"""Cases beyond which a difference is none for any benchmark"""


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
    effect: float | None
    """Matched-pairs rank-biserial correlation (Kerby 2014), -1 to 1: the share of that test's ranks in favour of the
    model, less the share against it; None as p"""
    needed: int | None
    """Cases with which a paired t-test would show a difference of this size in 80 of 100 benchmarks; None as the
    interval, or where the difference is none"""


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
        effect=rank_biserial(differences),
        needed=cases_needed(differences) if low is not None else None,
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


def rank_biserial(differences: np.ndarray) -> float | None:
    """Effect size of the Wilcoxon signed-rank test; differences of 0 have no rank, as in the test."""
    there = differences[differences != 0]
    if there.size == 0:
        return None
    ranks = stats.rankdata(np.abs(there))
    return float((ranks * np.sign(there)).sum() / ranks.sum())


def cases_needed(differences: np.ndarray) -> int | None:
    """Number of cases with which a two-sided paired t-test at 0.05 has a power of 0.8, for this mean and deviation."""
    effect = abs(differences.mean()) / differences.std(ddof=1)
    if effect * math.sqrt(MOST_NEEDED) < 1:
        return None
    above = stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER)
    cases = max(2, math.floor((above / effect) ** 2))  # by the normal distribution: too few, by two or three
    while _power(effect, cases) < POWER:
        cases += 1
    return cases if cases <= MOST_NEEDED else None


def _power(effect: float, cases: int) -> float:
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, cases - 1)
    distribution = stats.nct(cases - 1, effect * math.sqrt(cases))
    return float(distribution.sf(critical) + distribution.cdf(-critical))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p of several comparisons, corrected for their number as Holm (1979) does; None stays None and does not count.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, at) for at, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, at) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[at] = highest
    return corrected
