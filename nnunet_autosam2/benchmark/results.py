"""Data model of `benchmark.json`, checked when it is read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, ValidationError, model_validator

from nnunet_autosam2.dataset_conversion.regions import REGIONS, TABLE_ORDER
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.evaluation.empty_regions import RULE, CaseScores, comparable_scores
from nnunet_autosam2.show.legend import LegendEntry, legend
from nnunet_autosam2.support.access import require_file
from nnunet_autosam2.support.json_files import problem

FILE = "benchmark.json"
MEAN = "mean"
"""Name in the place of a region: the mean over those in which a case's metric is defined"""
DICE, HD95 = "Dice", "HD95"
BRATS = {"labels": dict(REGIONS.values())}
"""Labels of a file that names none"""
LEAST_CASES = 10
"""Below, a difference has neither a confidence interval nor a mark that it is one"""


def _defined(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Score = Annotated[float | None, AfterValidator(_defined)]
"""None where a metric is not defined"""


def score_of(case: CaseScores, region: str, metric: str) -> float | None:
    """Score of a case in one region, or mean over its regions; None where it is not defined."""
    if region != MEAN:
        return case.get(region, {}).get(metric)
    values = [value for each in case if (value := score_of(case, each, metric)) is not None]
    return float(np.mean(values)) if values else None


class CaseResults(BaseModel):
    case: str
    prediction: Path
    """Absolute, or relative to the benchmark's folder"""
    seconds: float | None
    scores: dict[str, dict[str, Score]]
    """Region → metric → value; HD95 in mm, the others 0 to 1"""
    _counted: CaseScores | None = PrivateAttr(default=None)

    def score(self, region: str, metric: str) -> float | None:
        """Score as it counts beside the other models of the benchmark."""
        return score_of(self.scores if self._counted is None else self._counted, region, metric)

    def mean_dice(self) -> float | None:
        return self.score(MEAN, DICE)


class Curves(BaseModel):
    """One value per epoch."""

    train_loss: list[float] = []
    val_loss: list[float] = []
    ema_fg_dice: list[float] = []


class FoldResults(BaseModel):
    fold: int | str
    training_seconds: float | None
    peak_memory_bytes: int | None
    error: str | None
    """Why the fold failed"""
    curves: Curves = Curves()
    cases: list[CaseResults] = []


class Parameters(BaseModel):
    all: int
    trainable: int


class ModelResults(BaseModel):
    title: str
    trainer: str
    configuration: str
    repeat_of: str | None = None
    """Title of the model that it is another training of"""
    slice_fraction: float | None
    """Fraction of the slices that SAM2 sees; None for nnU-Net's own networks"""
    parameters: Parameters | None
    folds: list[FoldResults]

    @property
    def failed(self) -> list[FoldResults]:
        return [fold for fold in self.folds if fold.error is not None]

    def results(self) -> Iterator[CaseResults]:
        for fold in self.folds:
            yield from fold.cases

    def scores(self, region: str, metric: str) -> np.ndarray:
        """Those that are defined, one value per case."""
        values = [result.score(region, metric) for result in self.results()]
        return np.array([value for value in values if value is not None])

    def mean_dices(self) -> np.ndarray:
        """One value per case."""
        return np.array([value for result in self.results() if (value := result.mean_dice()) is not None])

    def training_seconds(self) -> np.ndarray:
        """One value per fold."""
        return np.array([fold.training_seconds for fold in self.folds if fold.training_seconds is not None])

    def inference_seconds(self) -> np.ndarray:
        """One value per case."""
        return np.array([result.seconds for result in self.results() if result.seconds is not None])

    def peak_memory_bytes(self) -> int | None:
        return max((fold.peak_memory_bytes for fold in self.folds if fold.peak_memory_bytes is not None), default=None)


class CaseFiles(BaseModel):
    images: dict[str, Path] = Field(min_length=1)
    """Channel → file"""
    truth: Path


class Comparison(BaseModel):
    model: str
    reference: str
    region: str
    """Or `mean`, over the regions"""
    metric: str
    n: int
    dropped: int = 0
    """Further cases that both have and that do not count, because neither has the region"""
    difference: float | None
    """Mean over the n cases of `model` minus `reference`"""
    low: float | None
    high: float | None
    """Bounds of the 95 % confidence interval; None where there is none"""
    p: float | None
    p_corrected: float | None = None
    """Corrected by Holm for all models and regions that are compared in this metric"""
    effect: float | None = None
    """Rank-biserial correlation, -1 to 1"""
    needed: int | None = None
    """Cases that would show a difference of this size"""
    repeats: int = 1
    """Trainings of each model, over which the difference of a case is a mean"""
    between_repeats: float | None = None
    """Standard deviation of the difference from one pair of trainings to the next; None without several"""

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.n < LEAST_CASES or self.low is None or self.high is None:
            return None
        return self.low, self.high

    @property
    def excludes_zero(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


class Benchmark(BaseModel):
    dataset: str
    plans: str
    device: str
    created: datetime
    models: list[ModelResults] = Field(min_length=1)
    cases: dict[str, CaseFiles]
    comparisons: list[Comparison]
    regions: list[str] = Field(list(TABLE_ORDER), min_length=1)
    """Regions in the order of tables and figures"""
    labels: list[LegendEntry] = legend(BRATS)
    """Labels of the data set, background left out"""
    warnings: list[str] = []
    """Why its numbers say less than they seem to"""
    rules: list[str] = [RULE]
    """Sentences that say how empty regions, lesions and distances count"""

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        titles = [model.title for model in self.models]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"models: the title {title!r} is there {titles.count(title)} times")
        for model in self.models:
            folds, cases = [str(fold.fold) for fold in model.folds], [result.case for result in model.results()]
            for what, names in (("fold", folds), ("case", cases)):
                if twice := [name for name in names if names.count(name) > 1]:
                    raise ValueError(f"models: {model.title!r} has the {what} {twice[0]!r} more than once")
            if unknown := [case for case in cases if case not in self.cases]:
                raise ValueError(f"cases: {unknown[0]!r} is missing, of which {model.title!r} has a result")
        for what, names in (("regions", self.regions), ("labels", [str(label.value) for label in self.labels])):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: one of them is there more than once")
        by_case = defaultdict(list)
        for model in self.models:
            for result in model.results():
                by_case[result.case].append(result)
        for results in by_case.values():
            for result, scores in zip(results, comparable_scores([result.scores for result in results]), strict=True):
                result._counted = scores
        return self

    @property
    def ordered_models(self) -> list[ModelResults]:
        """nnU-Net's own networks first, then by the fraction of the slices."""
        return sorted(self.models, key=lambda model: -1.0 if model.slice_fraction is None else model.slice_fraction)


def read_benchmark(folder: Path) -> Benchmark:
    """Read what `autosam2 benchmark` has written into `folder`.

    Raises:
        DatasetError: `folder` holds no `benchmark.json`, or one that does not say what it has to.
    """
    path = folder / FILE
    require_file(path)
    try:
        return Benchmark.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: give the folder that `autosam2 benchmark` has written.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise DatasetError(f"{path}: {problem(error)}. Run `autosam2 benchmark` again.") from error
