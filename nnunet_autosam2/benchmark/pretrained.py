"""Pretrained encoders in the planned network, with SAM2 and without it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_autosam2.benchmark.arms import Arm, find_arms
from nnunet_autosam2.errors import ConfigurationError, require_distinct
from nnunet_autosam2.support.plans import find_plans, read_plans

if TYPE_CHECKING:
    from nnunet_autosam2.benchmark.models import ComparedModel

TRAINER = "nnUNetTrainerAutoSAM2_Plans"
OPTION = "--pretrained"


def find_pretrained(dataset: str, named: Sequence[str], plans: str, configuration: str) -> list[ComparedModel]:
    """Two models for each encoder: nnU-Net's network that starts from it, and the same with SAM2.

    Args:
        named: NAME=FILE each.

    Raises:
        ConfigurationError: one is not of that form, a file is not there, a name is given twice, or as of `find_arms`.
        DatasetError: as of `find_models`.
    """
    path = find_plans(dataset, plans)
    content, arms = read_plans(path), []
    for each in named:
        name, equals, file = each.partition("=")
        if not (equals and file and name.replace("-", "").isalnum()):
            raise ConfigurationError(f"{OPTION} {each} is not NAME=FILE, with a name of letters, digits and -.")
        whole = os.path.abspath(os.path.expanduser(file))
        if not os.path.isfile(whole):
            raise ConfigurationError(f"{OPTION} {each} is not possible: {whole} is not a file.")
        parameters = {"backbone": "plans", "encoder_checkpoint": whole}
        alone = {**parameters, "enable_sam2": False}
        arms += [
            Arm(f"{name}-alone", f"{name}, without SAM2", TRAINER, alone, OPTION),
            Arm(name, f"{name}, with SAM2", TRAINER, parameters, OPTION),
        ]
    require_distinct([arm.name for arm in arms], OPTION)
    return find_arms(path, content, configuration, arms)
