"""Volume of masks from those of single slices."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.masks import SampleMasks, VolumeMasks

MARGIN = 8
"""Slices; a convolutional gate, at half the resolution, sees no further"""


class SlicePositions(NamedTuple):
    """How every slice of a volume relates to the K slices that were selected for SAM2."""

    weights: Tensor
    """[B, D, K], linear interpolation between the nearest selected slices; rows sum to 1"""
    covered: Tensor
    """[B, D], False beyond the outermost selected slices, and where one of those that count was not prompted"""
    distance: Tensor
    """[B, D], slices to the nearest selected one"""
    nearest: Tensor
    """[B, D], position of that one"""
    opposite: Tensor
    """[B, D], position of the nearest selected one on the other side"""

    def span(self, depth: int) -> Tensor | None:
        """[B, L] consecutive positions among `depth`, which hold all covered slices of the batch and what a gate sees
        beside them; a few where none is covered. None: they would be all.
        """
        covered = self.covered.any(0).nonzero()[:, 0].tolist() or [0]
        start = max(0, covered[0] - MARGIN) // MARGIN * MARGIN
        stop = min(depth, math.ceil((covered[-1] + 1 + MARGIN) / MARGIN) * MARGIN)
        if stop - start == depth:
            return None
        return torch.arange(start, stop, device=self.covered.device).expand(len(self.covered), -1)

    def on(self, slices: Tensor) -> "SlicePositions":
        """Those of the slices at [B, L] alone."""
        weights = self.weights.take_along_dim(slices[..., None], dim=1)
        return SlicePositions(weights, *(each.take_along_dim(slices, dim=1) for each in self[1:]))


def locate_slices(slices: Tensor, prompted: Tensor, depth: int) -> SlicePositions:
    """The position of every one of `depth` slices among the selected ones.

    Args:
        slices: [B, K], ascending.
        prompted: [B, K], which of them SAM2 was prompted on.
    """
    batch, count = slices.shape
    every = torch.arange(depth, device=slices.device).expand(batch, depth).contiguous()
    below = (torch.searchsorted(slices, every, right=True) - 1).clamp(0, count - 1)
    above = (below + 1).clamp(max=count - 1)
    lower, upper = slices.gather(1, below), slices.gather(1, above)
    fraction = ((every - lower) / (upper - lower).clamp(min=1)).clamp(0, 1)
    weights = F.one_hot(below, count) * (1 - fraction)[..., None] + F.one_hot(above, count) * fraction[..., None]
    within = (every >= slices[:, :1]) & (every <= slices[:, -1:])
    covered = within & ~((weights > 0) & ~prompted[:, None]).any(2)
    to_lower, to_upper = (every - lower).abs(), (upper - every).abs()
    nearest, opposite = (torch.where(to_lower <= to_upper, *ends) for ends in ((lower, upper), (upper, lower)))
    return SlicePositions(weights, covered, torch.minimum(to_lower, to_upper), nearest, opposite)


def interpolate(values: Tensor, positions: SlicePositions) -> Tensor:
    """[B, R, K, ...] on the selected slices → [B, R, D, ...] on all of them, linearly, in float32 or more."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):  # it would make half precision of the masks
        return torch.einsum("bdk,brk...->brd...", positions.weights.to(dtype), values.to(dtype))


def reconstruct(masks: SampleMasks, positions: SlicePositions) -> VolumeMasks:
    """Masks and their scores, interpolated to all slices."""
    values = (masks.logits, masks.predicted_iou, masks.object_score.sigmoid())
    logits, predicted_iou, presence = (interpolate(value, positions) for value in values)
    return VolumeMasks(logits, predicted_iou, presence, positions.covered, positions.distance)
