"""Arms of a benchmark: models that need a configuration of their own in the plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.configurations import changed_block
from nnunet_autosam2.support.plans import require_configuration
from nnunet_autosam2.support.staging import replace_file

if TYPE_CHECKING:
    from nnunet_autosam2.benchmark.models import ComparedModel


class Arm(NamedTuple):
    name: str
    """End of its configuration's name"""
    title: str
    trainer: str
    parameters: Mapping[str, Any]
    option: str
    """Option that asks for it, for messages"""


def find_arms(path: Path, content: dict[str, Any], configuration: str, arms: Sequence[Arm]) -> list[ComparedModel]:
    """Their models, for each of which the plans get a configuration that inherits from `configuration`.

    Args:
        path, content: of the plans.

    Raises:
        ConfigurationError: the plans have a configuration of such a name with something else in it, or a parameter is
            not possible there.
        DatasetError: as of `find_models`.
    """
    from nnunet_autosam2.benchmark.models import find_models  # with torch, which takes seconds

    inherited = require_configuration(configuration, content, path)
    titles, added = {}, False
    for arm in arms:
        own = f"{configuration}_{arm.name}"
        wanted = {"inherits_from": configuration, PLANS_KEY: changed_block(inherited, arm.parameters, content, path)}
        there = content["configurations"].setdefault(own, wanted)
        if there != wanted:
            raise ConfigurationError(
                f"{own} in {path} is not what {arm.option} {arm.name} needs. Rename it, or leave this one out."
            )
        added |= there is wanted
        titles[f"{arm.trainer}__{path.stem}__{own}"] = arm.title
    if added:
        replace_file(path, json.dumps(content, indent=4))
    models = find_models(path.parent.name, list(titles), path.stem, configuration)
    return [model.titled(titles[model.name]) for model in models]
