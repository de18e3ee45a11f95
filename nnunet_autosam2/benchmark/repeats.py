"""Repeated trainings: what a training gains differs from one to the next by chance."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_autosam2.benchmark.arms import Arm, find_arms
from nnunet_autosam2.benchmark.models import ComparedModel, titles
from nnunet_autosam2.support.plans import find_plans, read_plans

OPTION = "--repeats"


def find_repeats(models: Sequence[ComparedModel], repeats: int) -> list[ComparedModel]:
    """Further trainings of the models, for each of which the plans get a configuration that inherits from the model's.

    Args:
        repeats: trainings of a model, with the first.

    Raises:
        ConfigurationError: as of `find_arms`.
    """
    found = []
    for number in range(2, repeats + 1):
        for title, model in zip(titles(models), models, strict=True):
            path = find_plans(model.dataset, model.plans)
            arm = Arm(f"repeat{number}", f"{title}, repeat {number}", model.trainer, {}, OPTION)
            found += [
                repeat.repeating(title) for repeat in find_arms(path, read_plans(path), model.configuration, [arm])
            ]
    return found
