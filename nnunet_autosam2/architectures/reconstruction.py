"""From 2D masks back to a volume."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class SlicePositions(NamedTuple):
    """How every slice of a volume relates to the K slices that SAM2 has seen."""

    weights: Tensor
    """[B, D, K], linear interpolation between the nearest processed slices; rows sum to 1"""
    covered: Tensor
    """[B, D], False beyond the outermost processed slices, where there is nothing to interpolate"""
    distance: Tensor
    """[B, D], slices to the nearest processed one"""


def locate(slices: Tensor, depth: int) -> SlicePositions:
    """[B, K] ascending positions → the position of every one of `depth` slices among them."""
    batch, count = slices.shape
    every = torch.arange(depth, device=slices.device).expand(batch, depth).contiguous()
    below = (torch.searchsorted(slices, every, right=True) - 1).clamp(0, count - 1)
    above = (below + 1).clamp(max=count - 1)
    lower, upper = slices.gather(1, below), slices.gather(1, above)
    fraction = ((every - lower) / (upper - lower).clamp(min=1)).clamp(0, 1)
    weights = F.one_hot(below, count) * (1 - fraction)[..., None] + F.one_hot(above, count) * fraction[..., None]
    covered = (every >= slices[:, :1]) & (every <= slices[:, -1:])
    distance = torch.minimum((every - lower).abs(), (upper - every).abs())
    return SlicePositions(weights, covered, distance)


def reconstruct(values: Tensor, positions: SlicePositions) -> Tensor:
    """[B, R, K, ...] on the processed slices → [B, R, D, ...] on all of them."""
    return torch.einsum("bdk,brk...->brd...", positions.weights.to(values.dtype), values)
