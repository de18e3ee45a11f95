"""Runs a network on one case as nnU-Net would, and tells what happens inside."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.log_odds import decisions
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.errors import ConfigurationError, DatasetError
from nnunet_autosam2.show.legend import region_colours
from nnunet_autosam2.show.loading import LoadedModel, Volume
from nnunet_autosam2.show.pictures import SliceView


def find_device(name: str) -> torch.device:
    """
    Raises:
        ConfigurationError: torch cannot use it here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # for a name and for a device that do not exist
        raise ConfigurationError(f"The device {name} cannot be used: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def look_inside(
    model: LoadedModel, volume: Volume, prompt_with_truth: bool, count: int | None, device: torch.device
) -> list[SliceView]:
    """Prompted slices, in order, within one patch around the foreground.

    Args:
        prompt_with_truth: the truth selects slices and prompts, and not the UNet.
        count: only so many slices, those with the largest foreground.

    Raises:
        DatasetError: there is no foreground.
    """
    network = model.network.to(device).eval()
    given = volume.truth if prompt_with_truth else None
    foreground = _predict(model, volume.data, device) if given is None else given
    nothing = f"{'The UNet sees' if given is None else 'The truth has'} no foreground, so SAM2 is not prompted."
    if not foreground.any():
        raise DatasetError(nothing)
    size = list(model.configuration.patch_size)
    if len(size) == 2:  # a 2D network predicts slice by slice, and SAM2 may be asked about each
        size = [volume.data.shape[1], *size]
        network.set_mode(slice_fraction=1.0, slice_axes=1)
    start = _patch_start(foreground.any(0), size)

    def patch(values: Tensor) -> Tensor:
        return _cut(values, start, size).to(device)

    image, truth = patch(volume.data), None if volume.truth is None else patch(volume.truth)
    network.set_deep_supervision(True)
    output = network(image[None], None if given is None else patch(given)[None].float())
    network.set_deep_supervision(False)  # as nnU-Net's predictor needs it for the next case

    slices = output.sam2.slices[0]
    position = slices + start[0]
    prompted = output.sam2.prompted[0] & (position >= 0) & (position < volume.data.shape[1])
    if not prompted.any():
        raise DatasetError(nothing)
    area = patch(foreground)[:, slices].any(0).sum((1, 2)).masked_fill(~prompted, -1)
    shown = area.topk(min(count or len(slices), int(prompted.sum()))).indices.sort().values

    rgb = _rgb(network, image[:, slices]).permute(0, 2, 3, 1)
    masks = _masks(output, len(model.regions), network.config.region_based)
    if not model.is_trained:
        masks = {"SAM2": masks["SAM2"]}
    of_regions = region_colours(model.dataset_json)
    colours = [tuple(channel / 255 for channel in of_regions[name]) for name in model.regions]
    scores = {}
    if truth is not None:
        truth = truth[:, slices]
        # Where labels are to be ignored, a Dice against the rest would be too low.
        if "ignore" not in model.dataset_json["labels"]:
            scores = {title: _dice(mask, truth) for title, mask in masks.items()}
        masks["truth"] = truth
    return [
        SliceView(
            volume.first_slice + int(position[k]),
            list(model.regions),
            colours,
            rgb[k].cpu().numpy(),
            output.sam2.points[0, :, k].cpu().numpy(),
            output.sam2.labels[0, :, k].cpu().numpy(),
            output.sam2.predicted_iou[0, :, k].cpu().numpy(),
            {title: mask[:, k].cpu().numpy() for title, mask in masks.items()},
            {title: values[:, k].cpu().numpy() for title, values in scores.items()},
        )
        for k in shown.tolist()
    ]


def _predict(model: LoadedModel, data: Tensor, device: torch.device) -> Tensor:
    """[R, D, H, W], booleans: where the UNet sees the regions, to find the patch that is shown.

    Without SAM2 where there is a choice: that would take most of the time and hardly move the patch.
    """
    network = model.network
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net comments on its own default on a CPU
        predictor = nnUNetPredictor(use_mirroring=False, device=device)
    predictor.manual_initialization(network, model.plans, model.configuration, None, model.dataset_json, "", None)
    if network.config.enable_unet_decoder:
        network.set_mode(enable_sam2=False)
    try:
        logits = predictor.predict_sliding_window_return_logits(data)
    finally:
        network.set_mode(enable_sam2=True)
    seen = decisions(torch.as_tensor(logits)[None].cpu(), network.config.region_based)[0]
    return seen[-len(model.regions) :]


def _patch_start(foreground: Tensor, patch_size: Sequence[int]) -> list[int]:
    """First voxel of the patch around the centre of the foreground [D, H, W].

    The patch lies within the volume. Where that is smaller, the volume lies in the middle, as in nnU-Net's sliding
    window, and the first voxel is negative.
    """
    centre = foreground.nonzero().float().mean(0)
    return [
        int((middle - size / 2).round().clamp(0, length - size)) if length > size else -((size - length) // 2)
        for middle, length, size in zip(centre, foreground.shape, patch_size, strict=True)
    ]


def _cut(volume: Tensor, start: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """[C, D, H, W] → [C, *patch_size], with 0 outside of the volume."""
    axes = reversed(list(zip(start, patch_size, volume.shape[1:], strict=True)))
    return F.pad(volume, [amount for first, size, length in axes for amount in (-first, first + size - length)])


def _rgb(network: AutoSAM2, slices: Tensor) -> Tensor:
    """[C, K, H, W] → [K, 3, S, S]: what enters SAM2's image encoder, without ImageNet's normalisation."""
    assert network.sam2_branch is not None
    mapper = network.sam2_branch.mri_to_rgb
    return mapper(slices.transpose(0, 1)) * mapper.std + mapper.mean


def _masks(output: AutoSAM2Output, num_regions: int, region_based: bool) -> dict[str, Tensor]:
    """[R, K, H, W] booleans on the selected slices. SAM2's are its own answers, before they compete as classes."""
    assert output.sam2 is not None
    slices = output.sam2.slices[0]
    masks = {
        "SAM2": output.sam2.logits > 0,
        "UNet": decisions(output.unet[0][:, :, slices], region_based),
        "fused": decisions(output.logits[:, :, slices], region_based),
    }
    return {title: mask[0, -num_regions:] for title, mask in masks.items()}  # without a background


def _dice(masks: Tensor, truth: Tensor) -> Tensor:
    """[R, K, H, W] booleans → [R, K], NaN where both are empty."""
    return 2 * (masks & truth).sum((2, 3)) / (masks.sum((2, 3)) + truth.sum((2, 3)))
