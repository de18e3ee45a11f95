"""A trained nnU-Net as the start of a hybrid: its checkpoint fills the backbone, segmentation layers included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_autosam2.architectures.parts import NO_BACKBONE
from nnunet_autosam2.errors import AutoSAM2Error, WeightsError
from nnunet_autosam2.support.checkpoint import init_args, load_network, read_nnunet_checkpoint
from nnunet_autosam2.support.configurations import lineage
from nnunet_autosam2.support.plans import require_configuration

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
    for candidate in lineage(configuration, configurations):
        checkpoint = dataset / f"{BASELINE}__{plans}__{candidate}" / fold / "checkpoint_final.pth"
        if checkpoint.is_file():
            return checkpoint
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
        WeightsError: there is no such file, it is no checkpoint of nnU-Net, or one of other plans or another data set,
            where the differences are named, or its weights are not what `network` can be filled with.
    """
    try:
        checkpoint = read_nnunet_checkpoint(path)
        arguments = init_args(checkpoint, path)
        there = require_configuration(arguments.configuration, arguments.plans, f"{path}: plans")
    except AutoSAM2Error as error:
        raise WeightsError(f"backbone_checkpoint: {error}") from error
    differences = [
        *_differences({key: there.get(key) for key in SHARED}, {key: configuration.get(key) for key in SHARED}),
        *_differences(
            {key: arguments.dataset_json.get(key) for key in ("channel_names", "labels")},
            {key: dataset_json.get(key) for key in ("channel_names", "labels")},
        ),
    ]
    if differences:
        raise WeightsError(f"backbone_checkpoint = {path} is of other plans: {'; '.join(differences)}.")
    weights = checkpoint["network_weights"]
    if isinstance(weights, dict) and weights and not weights.keys() & network.state_dict().keys():
        raise WeightsError(
            f"backbone_checkpoint = {path} is of {checkpoint['trainer_name']}, whose network is not the one of the "
            f"plans: {NO_BACKBONE}."
        )
    load_network(network, weights, f"backbone_checkpoint = {path}")


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
