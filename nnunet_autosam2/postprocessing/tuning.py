"""Finds the sizes below which taking out pays, on predictions of a cross-validation.

One step after the other, from the outermost region to the innermost: the smallest component to keep, then for an inner
region the smallest volume or share of the one around it. Each step takes the candidate with the best mean of the metric
over cases and regions; of equals, the one that takes out the least. That figure is of the cases that it was found on,
so each fold is scored once more with what the other folds alone would have chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from nnunet_autosam2.dataset_conversion.patients import split_by_patient
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.empty_regions import MILLIMETRES, comparable_scores
from nnunet_autosam2.evaluation.numbering import Numbering
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.evaluation.scoring import RegionScores, check_pairs, evaluate_variants
from nnunet_autosam2.postprocessing.rules import Regions, Rule, around, clean, outermost_first

COMPONENTS = (10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)
"""Candidates for the smallest component, in mm³"""
TOTALS = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Candidates for the smallest volume of a region within another one, in mm³"""
SHARES = (0.01, 0.02, 0.05, 0.1)
"""Candidates for its smallest share of that one"""
ALL = "all"

FrozenRules = tuple[tuple[str, Rule], ...]


@dataclass(frozen=True)
class Tuned:
    rules: dict[str, Rule]
    """Found on all cases"""
    rules_of_folds: dict[str, dict[str, Rule]]
    """Fold → found on all cases but its own"""
    before: dict[str, RegionScores]
    """Case → scores"""
    nested: dict[str, RegionScores]
    """Case → scores with the rules of its fold"""
    after: dict[str, RegionScores]
    """Case → scores with the rules that were found on it, too"""

    def means(self, metric: str) -> dict[str, dict[str, float | None]]:
        """Region → mean before, nested and after, over the same cases; None where no case has the region."""
        compared = [comparable_scores([self.before[case], self.nested[case], self.after[case]]) for case in self.before]
        return {
            region: {
                name: _mean([scores[number][region][metric] for scores in compared])
                for number, name in enumerate(("before", "nested", "after"))
            }
            for region in next(iter(self.before.values()))
        }


@dataclass
class _Scorer:
    """Scores of cases with rules; each is computed once."""

    pairs: Mapping[str, Pair]
    numbering: Numbering
    challenge: str
    num_processes: int | None
    known: dict[tuple[str, FrozenRules], RegionScores] = field(default_factory=dict)

    def require(self, wanted: Mapping[str, Sequence[FrozenRules]], desc: str) -> None:
        """Compute what is not known yet, all cases side by side."""
        missing = {
            case: [rules for rules in dict.fromkeys(of_case) if (case, rules) not in self.known]
            for case, of_case in wanted.items()
        }
        cases = [case for case, rules in missing.items() if rules]
        variants = _Cleaned(missing, self.numbering.regions)
        pairs = [self.pairs[case] for case in cases]
        found = evaluate_variants(pairs, variants, self.challenge, self.numbering, self.num_processes, desc)
        for case, scores in zip(cases, found, strict=True):
            self.known |= {(case, rules): score for rules, score in zip(missing[case], scores, strict=True)}


@dataclass(frozen=True)
class _Cleaned:
    rules: Mapping[str, Sequence[FrozenRules]]
    regions: Regions

    def __call__(self, pair: Pair, voxels: np.ndarray, voxel_volume: float) -> Iterator[np.ndarray]:
        return (clean(voxels, voxel_volume, self.regions, dict(rules)) for rules in self.rules[pair.case])


def tune(
    pairs: Sequence[Pair],
    folds: Mapping[str, Sequence[str]],
    numbering: Numbering,
    challenge: str,
    metric: str,
    num_processes: int | None = None,
) -> Tuned:
    """Find rules on all cases, and on all but those of each fold.

    Args:
        folds: name → cases; two at least.
        metric: of the challenge, or of the labels of another data set.
        num_processes: cases at a time, None: as many as there are CPU cores.

    Raises:
        AutoSAM2Error: see `check_pairs` and `evaluate_variants`.
    """
    check_pairs(pairs, numbering, num_processes)
    scorer = _Scorer({pair.case: pair for pair in pairs}, numbering, challenge, num_processes)
    cases = {ALL: list(scorer.pairs)}
    cases |= {name: [case for case in scorer.pairs if case not in of_fold] for name, of_fold in folds.items()}
    chosen: dict[str, FrozenRules] = dict.fromkeys(cases, ())
    for region, candidates in _steps(numbering.regions):
        options = {
            name: [_with(rules, region, candidate) for candidate in candidates] for name, rules in chosen.items()
        }
        wanted = {
            case: [rules for name, of_set in cases.items() if case in of_set for rules in options[name]]
            for case in scorer.pairs
        }
        scorer.require(wanted, f"tune {region}")
        for name, rules in options.items():
            quality = [_quality([scorer.known[case, each] for case in cases[name]], metric) for each in rules]
            chosen[name] = rules[int(np.argmax(quality))]
    fold_of = {case: name for name, of_fold in folds.items() for case in of_fold}
    scorer.require({case: [(), chosen[fold_of[case]], chosen[ALL]] for case in scorer.pairs}, "score")
    return Tuned(
        dict(chosen[ALL]),
        {name: dict(chosen[name]) for name in folds},
        {case: scorer.known[case, ()] for case in scorer.pairs},
        {case: scorer.known[case, chosen[fold_of[case]]] for case in scorer.pairs},
        {case: scorer.known[case, chosen[ALL]] for case in scorer.pairs},
    )


def folds_of(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Name → cases: of nnU-Net's folders of folds where they are of two or more, else as nnU-Net would split them.

    Raises:
        DatasetError: they are of one patient.
    """
    folders: dict[str, list[str]] = {}
    for pair in pairs:
        folders.setdefault(pair.prediction.parent.parent.name, []).append(pair.case)
    if len(folders) > 1:
        return folders
    splits = split_by_patient(pair.case for pair in pairs)
    if not splits:
        raise DatasetError("Predictions of two patients are the least that tuning and its check can do with.")
    return {f"part {number}": split["val"] for number, split in enumerate(splits)}


def _steps(regions: Regions) -> Iterator[tuple[str, list[Rule | None]]]:
    """Region and what may be added to its rule; None, which adds nothing, first."""
    innermost = {region for region in regions if not any(around(other, regions) == region for other in regions)}
    for region in outermost_first(regions):
        yield region, [None, *(Rule(smallest_component=size) for size in COMPONENTS)]
        if region in innermost and around(region, regions):
            totals = [Rule(smallest_total=size) for size in TOTALS]
            yield region, [None, *totals, *(Rule(smallest_share=share) for share in SHARES)]


def _with(rules: FrozenRules, region: str, added: Rule | None) -> FrozenRules:
    if added is None:
        return rules
    before = dict(rules).get(region, Rule())
    rule = before.model_copy(update=added.model_dump(exclude_defaults=True))
    return tuple({**dict(rules), region: rule}.items())


def _quality(scores: Sequence[RegionScores], metric: str) -> float:
    """Mean over cases and regions, larger when better; a region that is rightly left out counts as the best."""
    best, sign = (0.0, -1) if metric in MILLIMETRES else (1.0, 1)
    values = [of_region[metric] for case in scores for of_region in case.values()]
    return sign * fmean(best if value is None else value for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None
