"""Models that a benchmark compares: trainers, each with the plans and the configuration of one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunet_autosam2.errors import ConfigurationError, require_distinct
from nnunet_autosam2.show.loading import find_trainer
from nnunet_autosam2.support.configurations import lineage
from nnunet_autosam2.support.dataset_json import read_dataset_json
from nnunet_autosam2.support.plans import find_plans, read_plans, require_configuration
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2
from nnunet_autosam2.trainers.backbone import BASELINE


@dataclass(frozen=True)
class ComparedModel:
    """A trainer with plans and configuration, whose results nnU-Net keeps in `<trainer>__<plans>__<configuration>`."""

    dataset: str
    trainer: str
    plans: str
    configuration: str
    slice_fraction: float | None
    """Fraction of the slices that SAM2 may be prompted on; 0: none. None: not a trainer of AutoSAM2"""
    starts_from_baseline: bool
    inherits_from: tuple[str, ...] = ()
    """Other configurations, of any of which the baseline may be"""
    title: str | None = None
    """Name in tables and figures, where it is not that of the trainer"""
    repeat_of: str | None = None
    """Title of the model that it is another training of"""

    def repeating(self, title: str) -> ComparedModel:
        return replace(self, repeat_of=title)

    def titled(self, title: str) -> ComparedModel:
        return replace(self, title=title)

    @property
    def name(self) -> str:
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def folder(self) -> Path:
        return Path(nnUNet_results) / self.dataset / self.name

    def needs(self, other: ComparedModel) -> bool:
        """True if its training run cannot start before `other`, on the same fold, has ended."""
        is_baseline = (other.trainer, other.plans) == (BASELINE, self.plans)
        fits = other.configuration in (self.configuration, *self.inherits_from)
        return self.starts_from_baseline and is_baseline and fits


def find_models(dataset: str, names: Sequence[str], plans: str, configuration: str) -> list[ComparedModel]:
    """Find the models to compare.

    Args:
        dataset: ID or name.
        names: trainers, or `trainer__plans__configuration` as nnU-Net calls its results.
        plans, configuration: for the names that do not say.

    Raises:
        ConfigurationError: there is no such trainer or configuration, or one is named twice.
        DatasetError: there is no such dataset, it has no such plans, or these name code that is not nnU-Net's own.
    """
    models = [_find_model(dataset, name, plans, configuration) for name in names]
    require_distinct([model.name for model in models], "--trainers")
    return models


def titles(models: Sequence[ComparedModel]) -> list[str]:
    """Names as short as tells them apart."""
    trainers = [model.trainer for model in models if model.title is None]
    short = len(set(trainers)) == len(trainers)
    return [model.title or (model.trainer if short else model.name) for model in models]


def _find_model(dataset: str, name: str, plans: str, configuration: str) -> ComparedModel:
    parts = name.split("__")
    if len(parts) not in (1, 3):
        raise ConfigurationError(f"{name} is neither TRAINER nor TRAINER__PLANS__CONFIGURATION.")
    trainer, plans, configuration = parts if len(parts) == 3 else (name, plans, configuration)
    path = find_plans(dataset, plans)
    content = read_plans(path)
    if require_configuration(configuration, content, path).get("previous_stage"):
        raise ConfigurationError(
            f"{configuration} is the second stage of a cascade, which the benchmark cannot predict with. Train it by "
            "nnUNetv2_train and compare validation folders by `autosam2 evaluate`."
        )
    dataset_json = read_dataset_json(path.parent / "dataset.json")
    trainer_class = find_trainer(trainer)
    fraction, starts_from_baseline = None, False
    if issubclass(trainer_class, nnUNetTrainerAutoSAM2):
        config = trainer_class.resolve_config(content, configuration, dataset_json)
        fraction = config.slice_fraction if config.uses_sam2 else 0.0
        starts_from_baseline = config.backbone_checkpoint == "auto"
    _, *inherited = lineage(configuration, content["configurations"])
    return ComparedModel(
        path.parent.name, trainer, plans, configuration, fraction, starts_from_baseline, tuple(inherited)
    )
