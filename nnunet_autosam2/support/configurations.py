"""Configurations of nnU-Net's plans that inherit from others and change parameters of AutoSAM2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_autosam2.config import PLANS_KEY, AutoSAM2Config
from nnunet_autosam2.support.dataset_json import channel_names, read_dataset_json


def changed_block(
    inherited: Mapping[str, Any], changes: Mapping[str, Any], plans: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The `autosam2` block of a configuration that inherits from another one.

    nnU-Net's inheritance replaces whole entries, so the block repeats what the other's block says.

    Args:
        inherited: the other one, with everything that it inherits itself.
        path: of the plans, beside which is the data set's dataset.json.

    Raises:
        ConfigurationError: a parameter is unknown, not possible, or not for such a data set.
        DatasetError: there is no dataset.json that can be read.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # with torch, which takes seconds

    block = inherited.get(PLANS_KEY, {})
    config = AutoSAM2Config.from_dict(block).updated(changes)
    dataset_json = read_dataset_json(path.parent / "dataset.json")
    labels = PlansManager(dict(plans)).get_label_manager(dataset_json)
    config.require_fits(len(channel_names(dataset_json)), labels.num_segmentation_heads)
    validated = config.to_dict()
    return {key: validated[key] for key in {**block, **changes}}


def lineage(name: str, configurations: Mapping[str, Any]) -> Iterator[str]:
    """The configuration, the one that it inherits from, and so on."""
    candidate: str | None = name
    while candidate:
        yield candidate
        candidate = configurations[candidate].get("inherits_from")
