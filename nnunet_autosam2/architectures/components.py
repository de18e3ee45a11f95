"""Connected components of many masks at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.distance import squared_distance_to

ROUNDS_ON_GPU = 6
"""Rounds between questions whether they have changed anything, each of which waits for the GPU"""


def label_components(masks: Tensor) -> Tensor:
    """[M, H, W] booleans → a number above 0 for each component of a mask, 0 outside; pixels touch at corners, too.

    The number is that of its last pixel. Every round hooks a component on the highest number around it and lets each
    pixel jump ahead, so that few rounds do (Shiloach and Vishkin, J. Algorithms 3, 1982).

    >>> label_components(torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 1]]]).bool())
    tensor([[[2, 2, 0, 0],
             [0, 0, 0, 8]]])
    """
    height, width = masks.shape[1:]
    inside = masks.flatten(1)
    pixels = torch.arange(height * width, device=masks.device)
    # Whole numbers are exact in float32 up to 2^24, the pixels of 4096 × 4096, and in float64 far beyond.
    dtype = torch.float32 if height * width < 2**24 else torch.float64
    labels = torch.where(inside, pixels, 0)
    rounds = ROUNDS_ON_GPU if masks.is_cuda else 1
    while True:
        before, labels = _hooked(labels, masks, dtype, rounds)
        if torch.equal(before, labels):
            return torch.where(inside, labels + 1, 0).view_as(masks)


def _hooked(labels: Tensor, masks: Tensor, dtype: torch.dtype, rounds: int) -> tuple[Tensor, Tensor]:
    """Labels [M, H · W] before and after the last of so many rounds."""
    inside, before = masks.flatten(1), labels
    for _ in range(rounds):
        before = labels
        around = torch.where(inside, labels + 1, 0).view_as(masks).to(dtype)
        around = F.max_pool2d(around[:, None], kernel_size=3, stride=1, padding=1)[:, 0].flatten(1).long() - 1
        labels = labels.scatter_reduce(1, labels, torch.where(inside, around, 0), "amax")
        labels = labels.gather(1, labels)
        labels = labels.gather(1, labels)
    return before, labels


def main_components(masks: Tensor, weights: Tensor, share: float) -> Tensor:
    """`masks` without those of their components that have less than `share` of the weight of their heaviest one.

    Args:
        masks: [M, H, W] booleans.
        weights: [M, H, W], of each pixel, not negative.
    """
    labels = label_components(masks).flatten(1)
    weight = _weight_of(labels, masks, weights)
    own, heaviest = weight.gather(1, labels), weight.amax(1, keepdim=True)
    return (masks.flatten(1) & (own >= share * heaviest)).view_as(masks)


def number_parts(masks: Tensor, weights: Tensor, reach: int, most: int) -> Tensor:
    """[M, H, W] → the part of its mask that each pixel belongs to: 1 for the heaviest part, 2, ..., `most`; 0 outside.

    Components that touch when grown by `reach` pixels are one part. Part `most` is all that remain.

    >>> number_parts(torch.tensor([[[1, 0, 0, 0, 1, 1, 0, 1]]]).bool(), torch.ones(1, 1, 8), reach=1, most=2)
    tensor([[[2, 0, 0, 0, 1, 1, 0, 1]]])

    Args:
        masks: [M, H, W] booleans.
        weights: [M, H, W], of each pixel, above 0 on the mask.
    """
    grown = squared_distance_to(masks, limit=reach + 1) <= reach**2
    labels = torch.where(masks, label_components(grown), 0).flatten(1)
    heaviest = _weight_of(labels, masks, weights).topk(most - 1, dim=1).indices
    numbers = labels.new_full((len(labels), labels.shape[1] + 1), most)
    numbers.scatter_(1, heaviest, torch.arange(1, most, device=labels.device).expand_as(heaviest))
    numbers[:, 0] = 0
    return numbers.gather(1, labels).view_as(masks)


def _weight_of(labels: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Labels [M, H · W], 0 to H · W → [M, H · W + 1], the weight of the pixels of each label."""
    weight = torch.zeros(len(labels), labels.shape[1] + 1, device=masks.device, dtype=weights.dtype)
    return weight.scatter_add_(1, labels, weights.flatten(1) * masks.flatten(1))
