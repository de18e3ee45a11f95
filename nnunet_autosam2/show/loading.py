"""A network and a case for it: from nnU-Net's folders, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.dataset_conversion.nifti import listed_labels, read_volume, unknown_labels, whole_labels
from nnunet_autosam2.errors import AutoSAM2Error, ConfigurationError, DatasetError
from nnunet_autosam2.support.access import require_file
from nnunet_autosam2.support.checkpoint import init_args, load_network, read_nnunet_checkpoint
from nnunet_autosam2.support.dataset_json import channel_names, foreground_labels, read_dataset_json
from nnunet_autosam2.support.plans import read_plans, require_configuration
from nnunet_autosam2.support.text import printable
from nnunet_autosam2.trainers.nnUNetTrainerAutoSAM2 import nnUNetTrainerAutoSAM2


class LoadedModel(NamedTuple):
    """A hybrid, and what nnU-Net knows about it."""

    network: AutoSAM2
    is_trained: bool
    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    description: str

    @property
    def regions(self) -> dict[str, Any]:
        """Name → label or labels, in the order of the network's outputs."""
        return foreground_labels(self.dataset_json)


class ShownCase(NamedTuple):
    name: str
    images: list[Path]
    truth: Path | None


class Volume(NamedTuple):
    """A case as the network gets it: cropped, resampled and normalised by nnU-Net."""

    data: Tensor
    """[C, D, H, W], z-scores"""
    truth: Tensor | None
    """[R, D, H, W], booleans"""
    first_slice: int
    """Number of the first slice, in what `numbering` says"""
    numbering: str


def load_trained(folder: Path, fold: str, checkpoint: str) -> LoadedModel:
    """Load a hybrid from a results folder of nnU-Net.

    Raises:
        DatasetError: a file is missing, or a JSON file damaged, or the plans name what is not nnU-Net's own.
        WeightsError: the checkpoint is damaged, holds code, or does not fit the plans.
        ConfigurationError: the network has no SAM2.
    """
    plans_file, path = folder / "plans.json", folder / f"fold_{fold}" / checkpoint
    plans, dataset_json = read_plans(plans_file), read_dataset_json(folder / "dataset.json")
    if not path.is_file():
        there = sorted(str(other.relative_to(folder)) for other in folder.glob("fold_*/*.pth"))
        raise DatasetError(f"{path} does not exist. There are: {', '.join(there) or 'no checkpoints'}.")
    content = read_nnunet_checkpoint(path)
    configuration = init_args(content, path).configuration
    if PLANS_KEY not in require_configuration(configuration, plans, plans_file):
        raise ConfigurationError(
            f"{plans_file}: {configuration} has no {PLANS_KEY} block: AutoSAM2 has not trained it."
        )
    trainer = _find_hybrid_trainer(content["trainer_name"])
    description = f"{folder.name}, fold {fold}"
    model = _build(plans, configuration, dataset_json, trainer, description, plans_file, is_trained=True)
    load_network(model.network, content["network_weights"], path)
    return model


def build_untrained(plans_file: Path, configuration: str, trainer: str) -> LoadedModel:
    """Build a hybrid before any training: SAM2 with the weights that the configuration names, and a silent bridge.

    Raises:
        DatasetError: a file is missing or damaged.
        ConfigurationError: the network has no SAM2, or there is no such configuration or trainer.
        WeightsError: SAM2's weights are missing or do not fit.
    """
    plans, dataset_json = read_plans(plans_file), read_dataset_json(plans_file.parent / "dataset.json")
    require_configuration(configuration, plans, plans_file)
    trainer_class = _find_hybrid_trainer(trainer)
    config = trainer_class.resolve_config(plans, configuration, dataset_json)
    plans["configurations"][configuration][PLANS_KEY] = config.to_dict()
    description = f"untrained {trainer}, {configuration}"
    torch.manual_seed(0)  # the same pictures every time
    model = _build(plans, configuration, dataset_json, trainer_class, description, plans_file, is_trained=False)
    model.network.load_sam2_weights()
    assert model.network.sam2_branch is not None
    torch.nn.init.zeros_(model.network.sam2_branch.bridge.scale)  # before it has learned anything it adds noise
    return model


def find_shown_case(prefix: Path, truth: Path | None, model: LoadedModel) -> ShownCase:
    """Find the files `<prefix>_0000<ending>`, `<prefix>_0001<ending>`, … and the truth.

    Args:
        truth: None: `<prefix's name><ending>` in the sibling folder, `labelsTr` of `imagesTr`, if it is there.

    Raises:
        DatasetError: a file is missing, or there is one channel more than the model has.
    """
    if model.configuration.previous_stage_name is not None:
        raise ConfigurationError(
            f"{model.description} is a cascade, which needs the segmentation of its previous stage. Show a model of "
            f"{model.configuration.previous_stage_name}."
        )
    ending = model.dataset_json["file_ending"]
    channels = determine_num_input_channels(model.plans, model.configuration, model.dataset_json)
    images = [prefix.with_name(f"{prefix.name}_{channel:04d}{ending}") for channel in range(channels + 1)]
    surplus = images.pop()
    if truth is None:
        folder = prefix.absolute().parent
        truth = folder.with_name(folder.name.replace("images", "labels", 1)) / f"{prefix.name}{ending}"
        truth = truth if folder.name.startswith("images") and truth.is_file() else None
    elif not truth.is_file():
        raise DatasetError(f"{truth} does not exist.")
    for path in images:
        if not path.is_file():
            raise DatasetError(
                f"{path} does not exist. CASE is what the names of the {channels} channels have in common: "
                f"CASE_0000{ending} to CASE_{channels - 1:04d}{ending}."
            )
    if surplus.exists():
        raise DatasetError(f"{surplus} is one channel too many: the model has {channels} channels.")
    return ShownCase(prefix.name, images, truth)


def preprocess(case: ShownCase, model: LoadedModel) -> Volume:
    """Crop, resample and normalise a case, as nnU-Net does.

    Raises:
        DatasetError: a file cannot be read, lies on another grid, or has labels that the data set has not.
    """
    images, labels, properties = _read(case, model)
    with _of_nnunet(f"{case.images[0]} cannot be preprocessed as the plans say"):
        preprocessor = model.configuration.preprocessor_class(verbose=False)
        data, labels, properties = preprocessor.run_case_npy(
            images, labels, properties, model.plans, model.configuration, model.dataset_json
        )
    truth = None
    if case.truth:
        truth = torch.from_numpy(np.concatenate([np.isin(labels, values) for values in model.regions.values()]))
    numbering = f"along {'zyx'[model.plans.transpose_forward[0]]}"
    first_slice = properties["bbox_used_for_cropping"][0][0]
    if data.shape[1] != properties["shape_after_cropping_and_before_resampling"][0]:
        numbering, first_slice = f"{numbering} of the volume as nnU-Net crops and resamples it", 0
    return Volume(torch.from_numpy(data), truth, first_slice, numbering)


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """Find a trainer's class by its name, as nnU-Net does.

    Raises:
        ConfigurationError: nnU-Net finds none.
    """
    try:
        found = recursive_find_trainer_class_by_name(name) if str(name).isidentifier() else None
    except (RuntimeError, TypeError, AssertionError):  # nothing of this name, or something that is no trainer
        found = None
    if found is None:
        raise ConfigurationError(f"nnU-Net finds no trainer {printable(name)}. Is it installed? Run: autosam2 doctor")
    return found


def _find_hybrid_trainer(name: str) -> type[nnUNetTrainerAutoSAM2]:
    trainer = find_trainer(name)
    if not issubclass(trainer, nnUNetTrainerAutoSAM2):
        raise ConfigurationError(f"{name} is no trainer of AutoSAM2: the network has no SAM2.")
    return trainer


def _build(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    trainer: type[nnUNetTrainerAutoSAM2],
    description: str,
    plans_file: Path,
    is_trained: bool,
) -> LoadedModel:
    manager = PlansManager(plans)
    settings = manager.get_configuration(configuration)
    modalities = len(channel_names(dataset_json))
    if len(settings.normalization_schemes) != modalities:
        raise DatasetError(
            f"{plans_file} is for {len(settings.normalization_schemes)} channels, and the dataset.json beside it has "
            f"{modalities}."
        )
    channels = determine_num_input_channels(manager, settings, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    with _of_nnunet(f"{plans_file}: the network of {configuration} cannot be built"):
        network = trainer.build_network_architecture(manager, settings, channels, heads, enable_deep_supervision=False)
    if not network.config.uses_sam2:
        raise ConfigurationError(f"{description}: the network has no SAM2, and so there is nothing to show.")
    weights = "random" if network.config.sam2_checkpoint == "random" else "pretrained"
    description = f"{description}\n{network.config.sam2_model} from {weights} weights"
    return LoadedModel(network, is_trained, manager, settings, dataset_json, description)


@contextmanager
def _of_nnunet(failure: str) -> Iterator[None]:
    """Numbers of a plans file that pass each for itself may not go together; what fails then is nnU-Net or torch.

    Raises:
        DatasetError: anything that is not an error of ours.
    """
    try:
        yield
    except AutoSAM2Error:
        raise
    except Exception as error:
        raise DatasetError(f"{failure} ({type(error).__name__}: {printable(str(error).strip())}).") from error


def _read(case: ShownCase, model: LoadedModel) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Images [C, Z, Y, X], labels [1, Z, Y, X] and properties, by nnU-Net's reader, after a check of the files."""
    files = [*case.images, case.truth] if case.truth else case.images
    for path in files:
        require_file(path)
    if model.dataset_json["file_ending"].startswith(".nii"):
        grids = [read_volume(path)[0] for path in files]
        for path, grid in zip(files, grids, strict=True):
            if differences := grid.differences(grids[0]):
                raise DatasetError(f"{path} is on another grid than {files[0].name}: {'; '.join(differences)}.")
    reader = model.plans.image_reader_writer_class()
    try:
        images, properties = reader.read_images([str(path) for path in case.images])
        labels = whole_labels(reader.read_seg(str(case.truth))[0]) if case.truth else None
    except Exception as error:  # every reader has its own family of exceptions
        raise DatasetError(f"{', '.join(map(str, files))} cannot be read together: {error}") from error
    manager = model.plans.get_label_manager(model.dataset_json)
    known = (*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else ()))
    if labels is not None and (unknown := unknown_labels(labels, known)):
        raise DatasetError(
            f"{case.truth} has the labels {listed_labels(unknown)}: the data set has {listed_labels(known)}."
        )
    return images, labels, properties
