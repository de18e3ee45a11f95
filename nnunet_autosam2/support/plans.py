"""nnU-Net's plans: where they are, and reading them with one clear message where that fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_autosam2.errors import ConfigurationError, DatasetError, listed
from nnunet_autosam2.support.json_files import checked, read_json, shown
from nnunet_autosam2.support.known_plans import Configuration, NamedByPlans, Plans

OWN_ALONE = "Nothing of it was run. nnU-Net's own commands import and call what plans name."


def find_plans(dataset: str, plans: str) -> Path:
    """The file of a preprocessed dataset, given by ID or name.

    Raises:
        DatasetError: there is no such dataset, or it has no such plans.
    """
    if not nnUNet_preprocessed.is_set():
        raise DatasetError("The environment variable nnUNet_preprocessed is not set: plans are looked for there.")
    folder = Path(nnUNet_preprocessed)
    try:
        name = str(maybe_convert_to_dataset_name(dataset))
    except (RuntimeError, ValueError) as error:
        raise DatasetError(
            f"{dataset} is not the ID or name of one dataset in {folder}. Plan it first: "
            "nnUNetv2_plan_and_preprocess -d ID."
        ) from error
    path = folder / name / f"{plans}.json"
    if not path.is_file():
        raise DatasetError(
            f"{path} does not exist. Plan the dataset first, nnUNetv2_plan_and_preprocess -d ID, "
            "or name its plans with -p."
        )
    return path


def read_plans(path: Path) -> dict[str, Any]:
    """Read a plans file.

    Raises:
        DatasetError: as of `read_json`, or it is no plans file.
    """
    content = read_json(path)
    configurations = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(configurations, dict) or not all(isinstance(each, dict) for each in configurations.values()):
        raise DatasetError(f"{path} has no configurations: it is not a plans file of nnU-Net.")
    return content


def require_configuration(name: str, plans: Mapping[str, Any], source: object) -> dict[str, Any]:
    """The configuration with all that it inherits, after a check of everything that nnU-Net would import, call or
    compute with.

    Args:
        source: where the plans came from, for messages.

    Raises:
        ConfigurationError: the plans have no configuration of this name.
        DatasetError: an entry is missing, has another type, or names code that is not nnU-Net's own.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # with torch, which takes seconds

    checked(plans, Plans, source)
    if name not in plans["configurations"]:
        there = listed([shown(other) for other in plans["configurations"]])
        raise ConfigurationError(f"{shown(name)} is no configuration in {source}. It has: {there}.")
    try:
        configuration = PlansManager(dict(plans)).get_configuration(name).configuration
    except Exception as error:  # of nnU-Net, for whatever it does not find in older plans or in what is inherited
        raise DatasetError(
            f"{source}: configurations.{shown(name)} is incomplete ({type(error).__name__}: {shown(str(error))}). "
            "Plan again, or name another configuration."
        ) from error
    checked(configuration, Configuration, f"{source}: configurations.{shown(name)}", OWN_ALONE)
    return configuration


def require_known_parts(plans: Mapping[str, Any], source: object) -> None:
    """Refuse plans that name foreign code.

    Raises:
        DatasetError: any configuration names code that is not nnU-Net's own.
    """
    checked(plans, NamedByPlans, source, OWN_ALONE)
