"""SAM2 on a volume: select slices, prompt, encode, decode, reconstruct, and propagate between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.backbone import UNetOutput, resize
from nnunet_autosam2.architectures.masks import ImageEmbeddings, SampleMasks, SliceEmbeddings, VolumeMasks
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, NUM_CORNERS
from nnunet_autosam2.architectures.reconstruction import locate_slices, reconstruct
from nnunet_autosam2.architectures.region_selection import select_regions
from nnunet_autosam2.architectures.slice_axes import size_along, sliced_along
from nnunet_autosam2.architectures.slice_selection import moved_to_known, num_slices, select_slices
from nnunet_autosam2.architectures.training_window import surroundings
from nnunet_autosam2.config import AutoSAM2Config

if TYPE_CHECKING:
    from nnunet_autosam2.architectures.sam2.branch import SAM2Branch

SUSPICION = 0.1
"""Probability of a region, at the coarse half's resolution, from which on a slice is worth its embeddings"""


def encode_volume(
    branch: SAM2Branch, volume: Tensor, foreground: Tensor, size: Sequence[int], config: AutoSAM2Config, axis: int = 0
) -> SliceEmbeddings:
    """SAM2's image embeddings of the selected slices; a prediction skips those on which the UNet suspects nothing.

    Args: as of `segment_volume`, but for
        foreground: [B, R, d, h, w], of any size.

    Raises:
        WeightsError: as `segment_volume`.
    """
    volume, foreground, size = sliced_along(volume, axis), sliced_along(foreground, axis), size_along(size, axis)
    if foreground.shape[2] != volume.shape[2]:
        foreground = resize(foreground, (volume.shape[2], *foreground.shape[3:]))
    suspicion = min(SUSPICION, config.prompt_threshold)
    slices, chosen = choose_slices(branch, volume, foreground, size[0], config, suspicion)
    rows, embeddings = rows_of(chosen, branch.training), None
    if len(rows):
        branch.require_weights(config)
        with cudnn_benchmark(allowed=branch.training):
            embeddings = branch.encode(take_slices(volume, slices)[rows])
    return SliceEmbeddings(embeddings, slices, chosen, size[0])


def segment_volume(
    branch: SAM2Branch,
    volume: Tensor,
    unet: UNetOutput,
    foreground: Tensor,
    size: Sequence[int],
    config: AutoSAM2Config,
    axis: int = 0,
    known: SliceEmbeddings | None = None,
) -> tuple[SampleMasks, VolumeMasks]:
    """SAM2's masks of the selected slices, the UNet's where it is not prompted, and those of all slices; all of them
    of the volume as `sliced_along` returns it. In training they are those of the slices around the window alone, in a
    prediction of those around what is covered.

    A prediction skips selected slices on which the UNet sees nothing, but for those beside others: a tumour's ends are
    interpolated between answers of SAM2, as in training, where it is prompted on a window of the selected slices,
    whatever the UNet sees there.

    Args:
        volume: [B, C, D, H, W] z-scores.
        unet: of this volume; its gradient goes through the features.
        foreground: [B, R, D, H, W], probabilities of the regions, which select slices and make prompts.
        size: of the volume without its padding.
        axis: 0, 1 or 2 of D, H, W, along which the slices are cut.
        known: the selected slices and their embeddings, where they are.

    Raises:
        WeightsError: SAM2 has none, and there are none where the configuration says.
    """
    volume, foreground, size = sliced_along(volume, axis), sliced_along(foreground, axis), size_along(size, axis)
    unet = unet.sliced_along(axis)
    if known is None:
        slices, prompted = choose_slices(branch, volume, foreground, size[0], config, config.prompt_threshold)
    else:
        seen = with_neighbours(has_foreground(foreground, known.slices, config.prompt_threshold))
        slices, prompted = known.slices, known.encoded & (branch.training | seen)
    positions = locate_slices(slices, prompted, volume.shape[2])
    values = _unprompted(take_slices(unet.logits[0].detach().float(), slices), config)
    rows, answer = rows_of(prompted, branch.training), None
    if len(rows):
        branch.require_weights(config)
        features = resize(unet.middle_features, (volume.shape[2], *unet.middle_features.shape[3:]))
        images, features_there, opinion = (take_slices(each, slices)[rows] for each in (volume, features, foreground))
        regions = select_regions(opinion, config, branch.training_window if branch.training else None)
        embeddings = None if known is None else _embeddings_of(known, rows)
        with cudnn_benchmark(allowed=branch.training):
            answer = branch(images, features_there, opinion, config, embeddings, regions)
        masks, prompts, _ = answer
        resized = F.interpolate(masks.logits, size=volume.shape[3:], mode="bilinear", align_corners=False)
        answered = (resized, masks.predicted_iou, masks.object_score, *prompts)
        at = (rows,) if regions is None else (rows[:, None], regions)
        values = tuple(own.index_put(at, new) for own, new in zip(values, answered, strict=True))
    logits, predicted_iou, object_score, points, labels = (
        each.unflatten(0, slices.shape).transpose(1, 2) for each in values
    )
    sample_masks = SampleMasks(logits, predicted_iou, object_score, points, labels, slices, prompted)
    predicts = not (branch.training or branch.deep_supervision)
    # Not while nnU-Net validates during a training, which it does often.
    track = predicts and config.propagation == "memory"
    around = None
    if branch.training:
        around = surroundings(slices, size[0], config.slice_fraction_of_axis)
    elif predicts and not track:  # a validation counts what UNet and SAM2 say everywhere
        around = positions.span(size[0])
    volume_masks = reconstruct(sample_masks, positions if around is None else positions.on(around))
    volume_masks = volume_masks._replace(slices=around, depth=size[0])
    if track and answer is not None:
        from nnunet_autosam2.architectures.sam2.propagation import propagate

        masks, _, embeddings = answer
        there = torch.zeros_like(positions.covered).scatter(1, slices, prompted)
        with cudnn_benchmark(allowed=branch.training):
            volume_masks = propagate(branch, volume, features, there, masks, embeddings, positions, volume_masks)
    return sample_masks, volume_masks.cropped(size)


def choose_slices(
    branch: SAM2Branch, volume: Tensor, foreground: Tensor, depth: int, config: AutoSAM2Config, threshold: float
) -> tuple[Tensor, Tensor]:
    """[B, K] slices for SAM2, and which of them it is asked about: in training all, of a window of those selected."""
    slices = select_slices(foreground[:, :, :depth], num_slices(depth, config.slice_fraction_of_axis))
    if branch.training:
        slices = branch.training_window(slices, config.training_slices)
        return slices, torch.ones_like(slices, dtype=torch.bool)
    if branch.encoded_before is not None:
        every = volume[:, :, :depth].transpose(1, 2).flatten(0, 1)
        slices = moved_to_known(slices, branch.encoded_before.know(every).view(len(volume), depth))
    return slices, with_neighbours(has_foreground(foreground, slices, threshold))


def has_foreground(foreground: Tensor, slices: Tensor, threshold: float) -> Tensor:
    """[B, K], whether any probability [B, R, D, H, W] is above the threshold on the slices [B, K]."""
    return (take_slices(foreground, slices) > threshold).flatten(1).any(1).view(slices.shape)


def with_neighbours(chosen: Tensor) -> Tensor:
    """[B, K] → the same with the selected slice before and behind each of those that are chosen.

    >>> with_neighbours(torch.tensor([[False, False, True, False, False, False]])).int()
    tensor([[0, 1, 1, 1, 0, 0]], dtype=torch.int32)
    """
    return F.max_pool1d(chosen.float()[:, None], kernel_size=3, stride=1, padding=1)[:, 0] > 0


def _embeddings_of(known: SliceEmbeddings, rows: Tensor) -> ImageEmbeddings:
    """Embeddings of some of all slices, which have been encoded."""
    assert known.embeddings is not None
    at = known.encoded.flatten().cumsum(0)[rows] - 1
    return ImageEmbeddings(*(each[at] for each in known.embeddings))


def rows_of(chosen: Tensor, all_are: bool) -> Tensor:
    """[B, K] booleans → numbers of those that are true among all B · K. A GPU is not waited for where all are."""
    if all_are:
        return torch.arange(chosen.numel(), device=chosen.device)
    return chosen.flatten().nonzero()[:, 0]


def take_slices(volume: Tensor, slices: Tensor) -> Tensor:
    """[B, C, D, H, W] at positions [B, K] → [B · K, C, H, W]."""
    batch = torch.arange(len(volume), device=volume.device)[:, None]
    return volume.transpose(1, 2)[batch, slices].flatten(0, 1)


def _unprompted(logits: Tensor, config: AutoSAM2Config) -> tuple[Tensor, ...]:
    """The first five of SampleMasks on N slices, from the UNet's logits [N, C, H, W], without prompts."""
    regions = logits if config.region_based else logits[:, 1:] - logits[:, :1]
    scores = logits.new_ones(regions.shape[:2])
    prompts = config.boxes_per_region * (NUM_CORNERS + config.num_positive_points + config.num_negative_points)
    points = logits.new_zeros(*regions.shape[:2], prompts, 2)
    labels = torch.full(points.shape[:-1], NOT_A_POINT, dtype=torch.int32, device=logits.device)
    return regions, scores, torch.zeros_like(scores), points, labels


@contextmanager
def cudnn_benchmark(allowed: bool) -> Iterator[None]:
    """nnU-Net lets cuDNN try every kernel for a new size. In a prediction almost every patch has another number of
    slices with foreground, and the trials would take longer than what they save.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before and allowed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
