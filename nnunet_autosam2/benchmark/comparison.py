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
    repeats: int = 1
    """Trainings of each model, over which the difference of a case is a mean"""
    between_repeats: float | None = None
    """Standard deviation of the difference from one pair of trainings to the next; None without several"""


def compare(models: Sequence[Scores], references: Sequence[Scores], region: str, metric: str) -> Difference | None:
    """Compare a model less the reference; a region named `mean` is the mean over the regions of each case.

    Regions that the truth lacks count as `empty_regions` says.

    Args:
        models: scores of each of its trainings.
        references: as many; the first trainings are compared, then the second ones, and a case's difference is the
            mean of these.

    Returns:
        None where they have no case in common.
    """
    pairs = list(zip(models, references, strict=False))
    common = set().union(*(model.keys() & reference.keys() for model, reference in pairs))
    if not common:
        return None
    of_repeats = [paired_differences(model, reference, region, metric) for model, reference in pairs]
    of_repeats = [of_repeat for of_repeat in of_repeats if of_repeat] or of_repeats[:1]
    cases = sorted(set().union(*of_repeats))
    differences = np.array(
        [np.mean([of_repeat[case] for of_repeat in of_repeats if case in of_repeat]) for case in cases]
    )
    everywhere = [case for case in cases if all(case in of_repeat for of_repeat in of_repeats)]
    crossed = np.array([[of_repeat[case] for case in everywhere] for of_repeat in of_repeats])
    low, high = interval(differences) if len(of_repeats) == 1 else crossed_interval(crossed)
    return Difference(
        n=differences.size,
        dropped=len(common) - differences.size,
        difference=float(differences.mean()) if differences.size else None,
        low=low,
        high=high,
        p=float(stats.wilcoxon(differences).pvalue) if differences.any() else None,
        effect=rank_biserial(differences),
        needed=cases_needed(differences) if low is not None else None,
        repeats=len(of_repeats),
        between_repeats=float(crossed.mean(axis=1).std(ddof=1)) if len(of_repeats) > 1 and everywhere else None,
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


def crossed_interval(differences: np.ndarray, least: int = LEAST_CASES) -> tuple[float, float] | tuple[None, None]:
    """Interval of the mean for other cases and other trainings, both of which are drawn at random.

    Of a two-way analysis of variance without interaction, with degrees of freedom by Satterthwaite (1946). Where
    trainings differ by no more than chance, it is that of the means of the cases.

    Args:
        differences: [R, N] of R trainings and N cases.
        least: number of cases below which there is none.
    """
    repeats, cases = differences.shape
    if cases < least or not np.ptp(differences.mean(axis=0)):
        return None, None
    of_cases, of_repeats, mean = differences.mean(axis=0), differences.mean(axis=1), differences.mean()
    rest = differences - of_cases - of_repeats[:, None] + mean
    freedom = np.array([cases - 1, repeats - 1, (cases - 1) * (repeats - 1)])
    squares = np.array([repeats * np.square(of_cases - mean).sum(), cases * np.square(of_repeats - mean).sum()])
    between_cases, between_repeats, within = np.array([*squares, np.square(rest).sum()]) / freedom
    if between_repeats <= within:
        return interval(of_cases, least)
    parts = np.array([between_cases, between_repeats, -within])
    variance = parts.sum()
    low, high = stats.t.interval(
        CONFIDENCE, variance**2 / (parts**2 / freedom).sum(), mean, math.sqrt(variance / differences.size)
    )
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
