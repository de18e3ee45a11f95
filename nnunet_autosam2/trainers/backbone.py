"""A trained nnU-Net as the start of a hybrid: its checkpoint fills the backbone, segmentation layers included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_autosam2.checkpoint import read_nnunet_checkpoint
from nnunet_autosam2.errors import WeightsError

BASELINE = "nnUNetTrainer"
SHARED = ("architecture", "spacing", "normalization_schemes", "use_mask_for_norm")
"""Entries of a plans configuration that decide whether a network means the same in another one. Patch and batch size
may differ."""


def find_baseline(output_folder: Path, configurations: Mapping[str, Any]) -> Path:
    """The final checkpoint of nnUNetTrainer for the same data set, plans and fold.

    Args:
        output_folder: `<dataset>/<trainer>__<plans>__<configuration>/fold_<fold>`.
        configurations: of the plans. Where the configuration itself has not been trained, those that it inherits from
            are looked for.

    Raises:
        WeightsError: none has been trained; the message names the command.
    """
    _, plans, configuration = output_folder.parent.name.split("__")
    dataset, fold = output_folder.parents[1], output_folder.name
    candidate: str | None = configuration
    while candidate:
        checkpoint = dataset / f"{BASELINE}__{plans}__{candidate}" / fold / "checkpoint_final.pth"
        if checkpoint.is_file():
            return checkpoint
        candidate = configurations[candidate].get("inherits_from")
    raise WeightsError(
        f"backbone_checkpoint = auto: there is no {dataset / f'{BASELINE}__{plans}__{configuration}' / fold} with a "
        f"checkpoint_final.pth, nor one of a configuration that {configuration} inherits from. Train it first: "
        f"nnUNetv2_train {dataset.name} {configuration} {fold.removeprefix('fold_')} -p {plans}"
    )


def load_backbone(network: nn.Module, path: Path, configuration: Mapping[str, Any], dataset_json: dict) -> None:
    """Fills `network`, as nnU-Net planned it, from a checkpoint of nnU-Net.

    Args:
        configuration: of the plans that `network` was built from.

    Raises:
        WeightsError: there is no such file, it is no checkpoint of nnU-Net, or one of other plans or another data set;
            the differences are named.
    """
    try:
        checkpoint = read_nnunet_checkpoint(path)
    except WeightsError as error:
        raise WeightsError(f"backbone_checkpoint: {error}") from error
    arguments, weights = checkpoint["init_args"], checkpoint["network_weights"]
    there = PlansManager(arguments["plans"]).get_configuration(arguments["configuration"]).configuration
    differences = [
        *_differences({key: there.get(key) for key in SHARED}, {key: configuration.get(key) for key in SHARED}),
        *_differences(
            {key: arguments["dataset_json"].get(key) for key in ("channel_names", "labels")},
            {key: dataset_json.get(key) for key in ("channel_names", "labels")},
        ),
    ]
    if differences:
        raise WeightsError(f"backbone_checkpoint = {path} is of other plans: {'; '.join(differences)}.")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise WeightsError(f"backbone_checkpoint = {path} does not fit the planned network: {first}") from error


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """One for each entry that differs, by its name."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in {**there, **here}:
            yield from _differences(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif _plain(there) != _plain(here):
        yield f"{name}: {there!r} there, {here!r} here"


def _plain(value: Any) -> Any:
    """Tuples and lists are the same in JSON."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
