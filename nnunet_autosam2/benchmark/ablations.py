"""Ablations of the upgrade of a trained nnU-Net: the worth of its parts, on a user's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_autosam2.benchmark.arms import Arm, find_arms
from nnunet_autosam2.support.plans import find_plans, read_plans, require_configuration

if TYPE_CHECKING:
    from nnunet_autosam2.benchmark.models import ComparedModel

ALL = "all"
TRAINER = "nnUNetTrainerAutoSAM2_OnBaseline"


class Ablation(NamedTuple):
    title: str
    parameters: Mapping[str, Any]


ABLATIONS = {
    "alone": Ablation("nnU-Net, trained on without SAM2", {"enable_sam2": False, "freeze_backbone": False}),
    "masks": Ablation("SAM2's masks", {"feature_fusion": False, "fusion": "gated"}),
    "untrained": Ablation("SAM2's masks, its weights random", {"sam2_checkpoint": "random"}),
    "all-slices": Ablation("SAM2's masks, of all slices", {"slice_fraction": 1.0}),
    "features": Ablation("SAM2's features", {"feature_fusion": True, "fusion": "off"}),
    "masks-features": Ablation("SAM2's masks and features", {"feature_fusion": True}),
    "gate": Ablation("SAM2's masks, a gate that sees", {"fusion": "convolutional"}),
    "prompts": Ablation("SAM2's masks, prompts by part", {"boxes_per_region": 4, "prompt_threshold": 0.3}),
    "axes": Ablation("SAM2's masks, along three axes", {"slice_axes": 3}),
}
"""All of them upgrade the nnU-Net that has been trained on the same fold, for the same number of epochs."""


def find_ablations(dataset: str, names: Sequence[str], plans: str, configuration: str) -> list[ComparedModel]:
    """The models of ablations, for each of which the plans get a configuration that inherits from `configuration`.

    Args:
        names: of ABLATIONS, or ALL for those that these plans allow.

    Raises:
        ConfigurationError: the plans have a configuration of such a name with something else in it, or a parameter is
            not possible there.
        DatasetError: as of `find_models`.
    """
    path = find_plans(dataset, plans)
    content = read_plans(path)
    inherited = require_configuration(configuration, content, path)
    chosen = [name for name in ABLATIONS if name in names or (ALL in names and _is_possible(name, inherited))]
    arms = [Arm(name, ABLATIONS[name].title, TRAINER, ABLATIONS[name].parameters, "--ablations") for name in chosen]
    return find_arms(path, content, configuration, arms)


def _is_possible(name: str, configuration: Mapping[str, Any]) -> bool:
    """Several axes are where the planned network's strides are the same along all of them."""
    from nnunet_autosam2.architectures.backbone import level_strides, middle_level
    from nnunet_autosam2.architectures.slice_axes import are_isotropic

    levels = level_strides(configuration["architecture"]["arch_kwargs"]["strides"])
    return are_isotropic(levels[: middle_level(levels) + 1]) or "slice_axes" not in ABLATIONS[name].parameters
