"""Strategic slices: which K of D slices go through SAM2."""

import math

import torch
from torch import Tensor

EMPTY_SLICE_INFORMATION = 1e-3
"""Information of a slice at the centre where the UNet sees nothing, as a fraction of its pixels"""
PRIOR_WIDTH = 0.25
"""Standard deviation of that prior, as a fraction of the depth"""


def num_slices(depth: int, fraction: float) -> int:
    """ceil(fraction · depth), robust against floating point: 0.3 of 10 slices are 3."""
    return min(depth, math.ceil(round(fraction * depth, 6)))


@torch.no_grad()
def select_slices(probabilities: Tensor, count: int) -> Tensor:
    """The `count` most informative slices of each sample, spread over where the information is.

    Systematic sampling with probability proportional to size (Madow, Ann. Math. Stat. 20, 1949), with a fixed start
    instead of a random one: informative slices are all taken, the others the more sparsely the less they tell, so
    that neighbours do not crowd.

    Args:
        probabilities: [B, R, D, H, W] of the foreground regions.
        count: K, from 1 to D.

    Returns:
        [B, K] positions along D, ascending, without repetition.
    """
    inclusion = _inclusion_probabilities(slice_information(probabilities), count)
    position = inclusion.cumsum(1) + 0.5
    taken = position.floor() - (position - inclusion).floor()
    return (taken.clamp(0, 1) + 0.5 * inclusion).topk(count, dim=1).indices.sort(dim=1).values


@torch.no_grad()
def moved_to_known(slices: Tensor, known: Tensor) -> Tensor:
    """Selected slices, moved to those that cost nothing: each to the nearest known one of all slices that are nearer to
    it than to any other selected one, if there is one.

    >>> moved_to_known(torch.tensor([[2, 6, 7]]), torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0, 0, 1]]).bool())
    tensor([[1, 6, 9]])

    Args:
        slices: [B, K], ascending.
        known: [B, D].

    Returns:
        [B, K], ascending, without repetition.
    """
    distance = (torch.arange(known.shape[1], device=known.device) - slices[..., None]).abs()  # [B, K, D]
    nearest = distance == distance.amin(1, keepdim=True)
    possible = nearest & (nearest.sum(1, keepdim=True) == 1) & known[:, None]
    closest = distance.masked_fill(~possible, known.shape[1]).min(2)
    return torch.where(closest.values < known.shape[1], closest.indices, slices)


def slice_information(probabilities: Tensor) -> Tensor:
    """[B, R, D, H, W] → [B, D]: foreground mass plus entropy (bits) a pixel, above the emptiest slice's.

    A prior towards the centre decides where the UNet sees nothing.
    """
    p = probabilities.float()
    mass = p.amax(1).mean((-1, -2))
    closest_to_even = 0.5 - (p - 0.5).abs_().amin(1)
    entropy = torch.special.entr(closest_to_even) + torch.special.entr(1 - closest_to_even)
    uncertainty = entropy.mean((-1, -2)) / math.log(2)
    information = mass + uncertainty
    information = information - information.amin(1, keepdim=True)
    depth = p.shape[2]
    offset = torch.linspace(-0.5, 0.5, depth, device=p.device) / PRIOR_WIDTH
    return information + EMPTY_SLICE_INFORMATION * torch.exp(-0.5 * offset**2)


def _inclusion_probabilities(size: Tensor, count: int) -> Tensor:
    """[B, D] sizes > 0 → probabilities min(1, λ · size) that sum to `count`."""
    ordered, order = size.sort(dim=1, descending=True)
    saturated = torch.arange(size.shape[1], device=size.device)
    rest = ordered.flip(1).cumsum(1).flip(1)
    scale = (count - saturated) / rest
    # λ belongs to the smallest number of saturated slices after which no other slice exceeds 1.
    fits = (scale * ordered <= 1) & (saturated < count)
    first = torch.where(fits.any(1), fits.int().argmax(1), size.new_tensor(count, dtype=torch.long))
    chosen = scale.gather(1, first.clamp(max=size.shape[1] - 1)[:, None])
    probability = torch.where(saturated < first[:, None], torch.ones_like(ordered), chosen * ordered)
    return torch.zeros_like(size).scatter(1, order, probability.clamp(0, 1))
