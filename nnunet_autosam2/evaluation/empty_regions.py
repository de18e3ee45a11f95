"""Empty regions in comparisons of models: one rule for every table and figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CaseScores = Mapping[str, Mapping[str, "float | None"]]
"""`[region][metric]`; None where it is not defined"""
MILLIMETRES = ("HD95", "Lesion-wise HD95")
"""Metrics that are lengths, and better when small; the others are shares, better when large"""
RULE = (
    "Models are compared over the same cases and regions. Where the truth lacks a region and one of the models invents "
    "it, those that rightly leave it out count 1, or 0 mm, against its 0. Where none has it, the case is dropped for "
    "that region, for all of them, and n says how many remain."
)


def comparable_scores(models: Sequence[CaseScores]) -> list[dict[str, dict[str, float | None]]]:
    """Scores of one case as they count when these models are compared: each value is defined for all or for none.

    A region whose Dice is not defined is one that neither truth nor prediction has. Dice of ET, which the truth lacks:

        None and 0.0 → 1.0 and 0.0      the second model invents it
        None and None → None and None   dropped for both
    """
    filled: list[dict[str, dict[str, float | None]]] = [{} for _ in models]
    for region in _keys(models):
        of_region = [model.get(region, {}) for model in models]
        for metric in _keys(of_region):
            values = [_counted(scores, metric) for scores in of_region]
            invented = any(scores.get(metric) is not None for scores in of_region)
            same = invented and None not in values
            for model, value in zip(filled, values, strict=True):
                model.setdefault(region, {})[metric] = value if same else None
    return filled


def _counted(scores: Mapping[str, float | None], metric: str) -> float | None:
    """Score of a metric, the best there is for a region that is rightly left out."""
    value = scores.get(metric)
    if value is None and "Dice" in scores and scores["Dice"] is None:
        return 0.0 if metric in MILLIMETRES else 1.0
    return value


def _keys(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
