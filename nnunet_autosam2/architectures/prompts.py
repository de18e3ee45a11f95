"""Automatic prompts: points and a box for every slice and region at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIVE, NEGATIVE, TOP_LEFT, BOTTOM_RIGHT, NOT_A_POINT = 1, 0, 2, 3, -1
NUM_CORNERS = 2
THRESHOLD = 0.5
BOX_MARGIN = 0.1
"""Of the box's side, on each side"""
CORE_WINDOW = 9
"""Pixels; the share of a region within this window around a pixel tells how far inside the pixel lies"""
RING_GAP, RING_WIDTH = 2, 6
"""Pixels between a region and its negative points, and the width of the ring that they come from"""


class Prompts(NamedTuple):
    """M masks to ask for, each with the same number of prompts; missing ones carry the label NOT_A_POINT."""

    points: Tensor
    """[M, NUM_CORNERS + P + N, 2]: two corners of the box, positives, negatives; (x, y) in pixels of the slice"""
    labels: Tensor
    """[M, NUM_CORNERS + P + N], SAM's labels"""


@torch.no_grad()
def generate_prompts(probabilities: Tensor, num_positive: int, num_negative: int) -> Prompts:
    """Prompts from the UNet's opinion of each region on each slice; none where the UNet sees no foreground.

    Positive points are the most confident ones well inside the region, negative ones the least probable ones in a
    ring around it, either at most one for each cell of a grid on the region and at a distance from each other.

    Args:
        probabilities: [M, H, W].
        num_positive, num_negative: points a mask at most.
    """
    p = probabilities.float()
    inside = p > THRESHOLD
    box, present = bounding_boxes(inside)
    core = F.avg_pool2d(inside.float()[:, None], CORE_WINDOW, stride=1, padding=CORE_WINDOW // 2)[:, 0]
    positive, is_positive = spread_points(torch.where(inside, p * core, 0), box, num_positive)
    ring = _dilate(inside, RING_GAP + RING_WIDTH) & ~_dilate(inside, RING_GAP)
    reach = box.new_tensor([-1, -1, 1, 1]) * (RING_GAP + RING_WIDTH)
    negative, is_negative = spread_points(torch.where(ring, 1 - p, 0), box + reach, num_negative)
    corners = _with_margin(box, p.shape[-2:]).view(-1, NUM_CORNERS, 2)
    points = torch.cat([corners, positive, negative], dim=1)
    labels = torch.cat(
        [
            torch.where(present[:, None], box.new_tensor([[TOP_LEFT, BOTTOM_RIGHT]]), NOT_A_POINT),
            torch.where(is_positive, POSITIVE, NOT_A_POINT),
            torch.where(is_negative, NEGATIVE, NOT_A_POINT),
        ],
        dim=1,
    )
    return Prompts(points, labels.int())


def bounding_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """[M, H, W] booleans → [M, 4] (x0, y0, x1, y1) of the outermost pixels and [M], whether there are any."""
    columns, rows = masks.any(1).float(), masks.any(2).float()
    box = torch.stack([_first(columns), _first(rows), _last(columns), _last(rows)], dim=1)
    return box.float(), masks.flatten(1).any(1)


def spread_points(score: Tensor, box: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` pixels with the highest score, apart from each other.

    A grid with more cells than points lies on the box; each cell proposes its best pixel, and of two proposals
    closer than half a cell the better one stays.

    Args:
        score: [M, H, W], 0 or less where a point must not lie.
        box: [M, 4], outside of which the score is 0.

    Returns:
        [M, count, 2] points (x, y) and [M, count], which of them exist.
    """
    masks, height, width = score.shape
    if count == 0:
        return score.new_zeros(masks, 0, 2), score.new_zeros(masks, 0, dtype=torch.bool)
    cells = int((2 * count) ** 0.5) + 1
    size = ((box[:, 2:] - box[:, :2] + 1) / cells).clamp(min=1e-6)
    column = _cell(torch.arange(width, device=score.device), box[:, :1], size[:, :1], cells)
    row = _cell(torch.arange(height, device=score.device), box[:, 1:2], size[:, 1:], cells)
    cell = (row[:, :, None] * cells + column[:, None, :]).flatten(1)
    flat = score.flatten(1)
    best = flat.new_zeros(masks, cells**2).scatter_reduce(1, cell, flat, "amax")
    index = torch.arange(flat.shape[1], device=score.device).expand_as(flat)
    is_best = (flat == best.gather(1, cell)) & (flat > 0)
    pixel = cell.new_full(best.shape, -1).scatter_reduce(1, cell, torch.where(is_best, index, -1), "amax")
    proposals = torch.stack([pixel % width, pixel.div(width, rounding_mode="floor")], dim=-1).float()
    best = torch.where(pixel >= 0, best, 0)
    best = torch.where(_crowded(proposals, best, 0.5 * size.amin(1)), 0, best)
    best, chosen = best.topk(min(count, cells**2), dim=1)
    return proposals.gather(1, chosen[..., None].expand(-1, -1, 2)), best > 0


def _first(flags: Tensor) -> Tensor:
    """[M, L] of 0 and 1 → [M], position of the first 1."""
    return flags.argmax(1)


def _last(flags: Tensor) -> Tensor:
    return flags.shape[1] - 1 - _first(flags.flip(1))


def _cell(position: Tensor, start: Tensor, size: Tensor, cells: int) -> Tensor:
    return ((position - start) / size).floor().clamp(0, cells - 1).long()


def _crowded(points: Tensor, score: Tensor, spacing: Tensor) -> Tensor:
    """[M, Q, 2], [M, Q] and [M] → [M, Q], whether a better (at equal score: earlier) point is too close."""
    near = torch.cdist(points, points) < spacing[:, None, None]
    earlier = torch.ones_like(near[0]).tril(-1)
    better = (score[:, None, :] > score[:, :, None]) | ((score[:, None, :] == score[:, :, None]) & earlier)
    return (near & better & (score > 0)[:, None, :]).any(2)


def _dilate(masks: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(masks.float()[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


def _with_margin(box: Tensor, size: torch.Size) -> Tensor:
    height, width = size
    margin = (BOX_MARGIN * (box[:, 2:] - box[:, :2] + 1)).repeat(1, 2) * box.new_tensor([-1, -1, 1, 1])
    limit = box.new_tensor([width - 1, height - 1] * 2)
    return torch.minimum((box + margin).clamp(min=0), limit)
