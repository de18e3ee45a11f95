"""Paired comparison of two models on the cases that both have predicted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

from nnunet_autosam2.evaluation.brats_metrics import Scores
from nnunet_autosam2.report.benchmark import score_of

CONFIDENCE = 0.95
RESAMPLES = 9999


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
        if (mine := score_of(model[case], region, metric)) is not None
        and (theirs := score_of(reference[case], region, metric)) is not None
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
