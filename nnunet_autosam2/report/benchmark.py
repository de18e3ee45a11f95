"""What `benchmark.json` says, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.json_files import problem

FILE = "benchmark.json"
REGIONS = ("ET", "TC", "WT")
MEAN = "mean"
"""In the place of a region: over those in which a case's metric is defined"""
DICE, HD95 = "Dice", "HD95"


def _defined(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Score = Annotated[float | None, AfterValidator(_defined)]
"""None where a metric is not defined"""


def score_of(case: Mapping[str, Mapping[str, float | None]], region: str, metric: str) -> float | None:
    """Of a case's region → metric → value; None where it is not defined."""
    if region != MEAN:
        return case.get(region, {}).get(metric)
    values = [value for each in REGIONS if (value := score_of(case, each, metric)) is not None]
    return float(np.mean(values)) if values else None


class CaseResult(BaseModel):
    case: str
    prediction: Path
    """Absolute, or relative to the benchmark's folder"""
    seconds: float | None
    scores: dict[str, dict[str, Score]]
    """Region → metric → value; HD95 in mm, the others 0 to 1"""

    def score(self, region: str, metric: str) -> float | None:
        return score_of(self.scores, region, metric)

    def mean_dice(self) -> float | None:
        return self.score(MEAN, DICE)


class Curves(BaseModel):
    """A value an epoch."""

    train_loss: list[float] = []
    val_loss: list[float] = []
    ema_fg_dice: list[float] = []


class Fold(BaseModel):
    fold: int | str
    training_seconds: float | None
    peak_memory_bytes: int | None
    error: str | None
    """Why the fold failed"""
    curves: Curves = Curves()
    cases: list[CaseResult] = []


class Parameters(BaseModel):
    all: int
    trainable: int


class Model(BaseModel):
    title: str
    trainer: str
    configuration: str
    slice_fraction: float | None
    """Of the slices that SAM2 sees; None for nnU-Net's own networks"""
    parameters: Parameters | None
    folds: list[Fold]

    @property
    def failed(self) -> list[Fold]:
        return [fold for fold in self.folds if fold.error is not None]

    def results(self) -> Iterator[CaseResult]:
        for fold in self.folds:
            yield from fold.cases

    def scores(self, region: str, metric: str) -> np.ndarray:
        """Those that are defined, a value a case."""
        values = [result.score(region, metric) for result in self.results()]
        return np.array([value for value in values if value is not None])

    def mean_dices(self) -> np.ndarray:
        """A value a case."""
        return np.array([value for result in self.results() if (value := result.mean_dice()) is not None])

    def training_seconds(self) -> np.ndarray:
        """A value a fold."""
        return np.array([fold.training_seconds for fold in self.folds if fold.training_seconds is not None])

    def inference_seconds(self) -> np.ndarray:
        """A value a case."""
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
    difference: float
    """Mean over the cases of `model` minus `reference`"""
    low: float
    high: float
    p: float | None


class Benchmark(BaseModel):
    dataset: str
    plans: str
    device: str
    created: datetime
    models: list[Model] = Field(min_length=1)
    cases: dict[str, CaseFiles]
    comparisons: list[Comparison]

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        titles = [model.title for model in self.models]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"models: the title {title!r} is there {titles.count(title)} times")
        for model in self.models:
            for result in model.results():
                if result.case not in self.cases:
                    raise ValueError(f"cases: {result.case!r} is missing, of which {model.title!r} has a result")
        return self

    @property
    def ordered_models(self) -> list[Model]:
        """nnU-Net's own networks first, then by the fraction of the slices."""
        return sorted(self.models, key=lambda model: -1.0 if model.slice_fraction is None else model.slice_fraction)


def read_benchmark(folder: Path) -> Benchmark:
    """
    Raises:
        DatasetError: `folder` holds no `benchmark.json`, or one that does not say what it has to.
    """
    path = folder / FILE
    try:
        return Benchmark.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: give the folder that `autosam2 benchmark` has written.") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise DatasetError(f"{path}: {problem(error)}. Run `autosam2 benchmark` again.") from error
