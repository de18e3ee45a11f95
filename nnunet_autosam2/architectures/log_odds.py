"""Meaning of logits for each class: regions, which may overlap, or exclusive labels, each against all others."""

import torch
from torch import Tensor


def one_versus_rest(logits: Tensor) -> Tensor:
    """Logits `[B, C, ...]` whose sigmoid is the softmax of `logits` over dimension 1: log(p / (1 - p)).

    1 - p loses its digits where p is close to 1, as only the greatest class can be: it gets the others' sum.
    """
    log_p = logits.log_softmax(1)
    greatest = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, log_p.argmax(1, keepdim=True), True)
    log_rest_of_greatest = log_p.masked_fill(greatest, -torch.inf).logsumexp(1, keepdim=True)
    log_rest_of_others = torch.log1p(-log_p.exp().masked_fill(greatest, 0))
    return log_p - torch.where(greatest, log_rest_of_greatest, log_rest_of_others)


def versus_rival(logits: Tensor) -> Tensor:
    """Logits `[B, C, ...]` of each class against the likeliest of the others, above 0 where it wins.

    With many classes a winner may have far less than one half of the probability. Of two classes this is
    `one_versus_rest`.

    >>> versus_rival(torch.tensor([[0.4, 0.3, 0.3]]).log()).sigmoid()  # 4 : 3, 3 : 4, 3 : 4
    tensor([[0.5714, 0.4286, 0.4286]])
    """
    first, second = logits.topk(2, dim=1).values.split(1, dim=1)
    return logits - torch.where(logits == first, second, first)


def foreground_probabilities(logits: Tensor, region_based: bool) -> Tensor:
    """[B, C, ...] → [B, R, ...] of the regions, or of each label against its likeliest rival, without a background."""
    logits = logits.float()
    return logits.sigmoid() if region_based else versus_rival(logits)[:, 1:].sigmoid()


def decisions(logits: Tensor, region_based: bool) -> Tensor:
    """[B, C, ...] → booleans of this shape, True where a voxel would be given the region or the label."""
    if region_based:
        return logits > 0
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
