"""From 2D masks back to a volume."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class SlicePositions(NamedTuple):
    """How every slice of a volume relates to the K slices that were selected for SAM2."""

    weights: Tensor
    """[B, D, K], linear interpolation between the nearest selected slices; rows sum to 1"""
    covered: Tensor
    """[B, D], False beyond the outermost selected slices, and where none of the nearest was shown to SAM2"""
    distance: Tensor
    """[B, D], slices to the nearest selected one"""


def locate(slices: Tensor, prompted: Tensor, depth: int) -> SlicePositions:
    """The position of every one of `depth` slices among the selected ones.

    Args:
        slices: [B, K], ascending.
        prompted: [B, K], which of them SAM2 was asked about.
    """
    batch, count = slices.shape
    every = torch.arange(depth, device=slices.device).expand(batch, depth).contiguous()
    below = (torch.searchsorted(slices, every, right=True) - 1).clamp(0, count - 1)
    above = (below + 1).clamp(max=count - 1)
    lower, upper = slices.gather(1, below), slices.gather(1, above)
    fraction = ((every - lower) / (upper - lower).clamp(min=1)).clamp(0, 1)
    weights = F.one_hot(below, count) * (1 - fraction)[..., None] + F.one_hot(above, count) * fraction[..., None]
    within = (every >= slices[:, :1]) & (every <= slices[:, -1:])
    covered = within & (weights @ prompted[..., None].to(weights.dtype) > 0)[..., 0]
    distance = torch.minimum((every - lower).abs(), (upper - every).abs())
    return SlicePositions(weights, covered, distance)


def reconstruct(values: Tensor, positions: SlicePositions) -> Tensor:
    """[B, R, K, ...] on the processed slices → [B, R, D, ...] on all of them."""
    return torch.einsum("bdk,brk...->brd...", positions.weights.to(values.dtype), values)
