"""nnU-Net's plans: where they are, and reading them with one clear message where that fails."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.files import require_file


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
    """
    Raises:
        DatasetError: as of `read_json`, or it is no plans file.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("configurations"), dict):
        raise DatasetError(f"{path} has no configurations: it is not a plans file of nnU-Net.")
    return content


def require_configuration(name: str, plans: Mapping[str, Any], path: Path) -> None:
    """
    Raises:
        ConfigurationError: the plans, read from `path`, have no configuration of this name.
    """
    if name not in plans["configurations"]:
        there = ", ".join(plans["configurations"])
        raise ConfigurationError(f"{name} is no configuration in {path}. It has: {there}.")


def read_json(path: Path) -> Any:
    """
    Raises:
        DatasetError: there is no such file, or it is not JSON.
    """
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}.") from error
