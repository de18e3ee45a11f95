"""Runs a trained model on one case as nnU-Net would, and draws what happens inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.dataset_conversion.nifti import read_volume
from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.visualization import draw, look_inside


def show_case(
    images: Sequence[Path],
    model: Path,
    fold: str,
    checkpoint: str,
    truth: Path | None,
    output: Path,
    num_slices: int,
    device: str,
) -> list[int]:
    """Writes a PNG to `output`; returns the slices of the patch that it shows.

    Raises:
        DatasetError: a file is missing or unreadable, or there are not as many images as the model has channels.
        ConfigurationError: the model is not a hybrid of AutoSAM2.
    """
    volumes = [*images, truth] if truth else list(images)
    for path in (*volumes, model / "plans.json", model / "dataset.json", model / f"fold_{fold}" / checkpoint):
        if not path.is_file():
            raise DatasetError(f"{path} does not exist.")
    if not output.absolute().parent.is_dir():
        raise DatasetError(f"{output.absolute().parent} is not a folder: make it first, or give another --output.")
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), [fold], checkpoint)
    network = predictor.network
    if not isinstance(network, AutoSAM2) or not network.config.uses_sam2:
        raise ConfigurationError(f"{model} holds no network with SAM2: there are no prompts to show.")
    channels = len(predictor.dataset_json["channel_names"])
    if len(images) != channels:
        raise DatasetError(f"{len(images)} images are given, {model} needs one for each of {channels} channels.")
    if predictor.dataset_json["file_ending"].startswith(".nii"):
        for path in volumes:
            read_volume(path)

    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, segmentation, _ = preprocessor.run_case(
        [str(path) for path in images],
        str(truth) if truth else None,
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    volume = torch.from_numpy(np.asarray(data))
    logits = predictor.predict_sliding_window_return_logits(volume).float().cpu()
    foreground = logits.sigmoid().amax(0) if network.config.region_based else 1 - logits.softmax(0)[0]
    patch_size = predictor.configuration_manager.patch_size
    window = _window_around_mass(foreground, patch_size)
    regions = _regions(predictor.label_manager, segmentation) if truth else None
    looks = look_inside(
        network.to(device).eval(),
        _crop(volume, window, patch_size).to(device),
        None if regions is None else _crop(regions, window, patch_size),
        num_slices,
    )
    names = [name for name in predictor.dataset_json["labels"] if name not in ("background", "ignore")]
    draw(looks, names, f"{images[0].name}, {model.name}", output)
    return [look.position for look in looks]


def _regions(label_manager, segmentation: np.ndarray) -> Tensor:
    """[1, D, H, W] labels → [R, D, H, W] booleans."""
    labels = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    return torch.from_numpy(np.concatenate([np.isin(segmentation, region) for region in labels]))


def _window_around_mass(foreground: Tensor, patch_size: Sequence[int]) -> tuple[slice, ...]:
    """The patch around the centre of the foreground, moved into the volume."""
    mass = (foreground > 0.5).float() + 1e-6
    window = []
    for axis, (length, patch) in enumerate(zip(foreground.shape, patch_size, strict=True)):
        profile = mass.sum([other for other in range(3) if other != axis])
        centre = (profile * torch.arange(length)).sum() / profile.sum()
        start = int((centre - patch / 2).round().clamp(0, max(length - patch, 0)))
        window.append(slice(start, start + patch))
    return tuple(window)


def _crop(volume: Tensor, window: tuple[slice, ...], patch_size: Sequence[int]) -> Tensor:
    """[C, D, H, W] → [C, *patch_size], padded with 0 where the volume is smaller."""
    cropped = volume[(slice(None), *window)]
    missing = [size - length for size, length in zip(patch_size, cropped.shape[1:], strict=True)]
    return F.pad(cropped, [pad for amount in reversed(missing) for pad in (0, amount)])
