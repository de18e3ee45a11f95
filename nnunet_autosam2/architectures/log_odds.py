"""Meaning of logits for each class: regions, which may overlap, or exclusive labels, each against all others."""

import math

import torch
from torch import Tensor

LIKELY = math.log(0.501)
"""Above one half by more than float32 rounds"""


def one_versus_rest(logits: Tensor) -> Tensor:
    """Logits `[B, C, ...]` whose sigmoid is the softmax of `logits` over dimension 1: log(p / (1 - p))."""
    _, log_p, log_rest = probabilities(logits)
    return log_p - log_rest


def probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, log p and log(1 - p) of exclusive labels, `[B, C, ...]`, with p the softmax of `logits` over dimension 1.

    1 - p loses its digits where p is close to 1. Above one half, where one class can be at most, it is the others' sum.
    """
    log_p = logits.log_softmax(1)
    p, likely = log_p.exp(), log_p > LIKELY
    log_rest_of_likely = log_p.masked_fill(likely, -torch.inf).logsumexp(1, keepdim=True)
    log_rest_of_others = torch.log1p(-p.masked_fill(likely, 0))
    return p, log_p, torch.where(likely, log_rest_of_likely, log_rest_of_others)


def versus_rival(logits: Tensor) -> Tensor:
    """Logits `[B, C, ...]` of each class against the likeliest of the others, above 0 where it wins.

    With many classes a winner may have far less than one half of the probability. Of two classes this is
    `one_versus_rest`.

    >>> versus_rival(torch.tensor([[0.4, 0.3, 0.3]]).log()).sigmoid()  # 4 : 3, 3 : 4, 3 : 4
    tensor([[0.5714, 0.4286, 0.4286]])
    """
    first, winner = logits.max(1, keepdim=True)
    second = logits.scatter(1, winner, -torch.inf).amax(1, keepdim=True)
    return logits - torch.where(logits == first, second, first)


def foreground_probabilities(logits: Tensor, region_based: bool) -> Tensor:
    """[B, C, ...] → [B, R, ...] of the regions, or of each label against its likeliest rival, without a background."""
    logits = logits.float()
    return logits.sigmoid() if region_based else versus_rival(logits)[:, 1:].sigmoid()


def decisions(logits: Tensor, region_based: bool) -> Tensor:
    """[B, C, ...] → booleans of this shape, True where a voxel would be given the region or the label."""
    if region_based:
        return logits > 0
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.max(1, keepdim=True).indices, True)
