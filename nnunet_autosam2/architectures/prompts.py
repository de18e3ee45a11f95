"""Automatic prompts: points and a box for every slice and region at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_autosam2.architectures.components import main_components, number_parts
from nnunet_autosam2.architectures.distance import squared_distance_to

POSITIVE, NEGATIVE, TOP_LEFT, BOTTOM_RIGHT, NOT_A_POINT = 1, 0, 2, 3, -1
NUM_CORNERS = 2
THRESHOLD = 0.5
MAIN_SHARE = 0.05
"""Connected parts of a region with less than this share of the probability of its heaviest one are left out: a single
stray pixel would stretch the box across the slice"""
BOX_MARGIN = 0.1
"""Fraction of the box's side, on each side"""
RING_GAP, RING_WIDTH = 2, 6
"""Pixels between a region and its negative points, and the width of the ring that they come from"""
PART_REACH = RING_GAP + RING_WIDTH // 2
"""Half of the pixels between parts of a region that are prompted apart: no negative point lies on or near another"""


class Prompts(NamedTuple):
    """Prompts for masks, each with the same number of them; missing ones carry the label NOT_A_POINT."""

    points: Tensor
    """[..., T · (NUM_CORNERS + P + N), 2]: of each of T parts two corners of the box, positives, negatives; (x, y) in
    pixels of the slice"""
    labels: Tensor
    """[..., T · (NUM_CORNERS + P + N)], SAM's labels"""


@torch.no_grad()
def generate_prompts(
    probabilities: Tensor,
    num_positive: int,
    num_negative: int,
    box: bool = True,
    parts: int = 1,
    least: float = THRESHOLD,
) -> Prompts:
    """Prompts from the UNet's opinion of each region on each slice; none where the UNet sees no foreground.

    They are about the main connected components of the region, together or in parts.

    Positive points have the highest product of probability and distance to the region's boundary (the image's border
    is none), negative ones the lowest probability in a ring around the region; both keep a distance from each other.

    Args:
        probabilities: [M, H, W].
        num_positive, num_negative: points a part at most.
        box: False leaves its corners out.
        parts: T, so many at most, heaviest first; the last is all that remain.
        least: probability of the foreground on slices where none is above THRESHOLD.
    """
    p = probabilities.float()
    threshold = torch.where(p.flatten(1).amax(1) > THRESHOLD, THRESHOLD, least)[:, None, None]
    inside = main_components(p > threshold, p, MAIN_SHARE)
    if parts == 1:
        return _prompts_about(inside, p, num_positive, num_negative, box)
    numbers = number_parts(inside, p, PART_REACH, parts)
    exists = inside.new_zeros(len(p), parts + 1).scatter(1, numbers.flatten(1), True)[:, 1:]
    exists[:, 0] = True  # each mask has a first part, which may be empty
    mask, part = exists.nonzero(as_tuple=True)
    found = _prompts_about(numbers[mask] == part[:, None, None] + 1, p[mask], num_positive, num_negative, box)
    points = found.points.new_zeros(*exists.shape, *found.points.shape[1:])
    labels = torch.full_like(points[..., 0], NOT_A_POINT, dtype=torch.int32)
    points[mask, part], labels[mask, part] = found
    return Prompts(points.flatten(1, 2), labels.flatten(1, 2))


def _prompts_about(inside: Tensor, p: Tensor, num_positive: int, num_negative: int, box: bool) -> Prompts:
    """Prompts for each mask [M, H, W] with these probabilities, as for one part."""
    depth = squared_distance_to(~inside)
    away = squared_distance_to(inside, limit=RING_GAP + RING_WIDTH + 1)
    ring = (away > RING_GAP**2) & (away <= (RING_GAP + RING_WIDTH) ** 2)
    positive, is_positive = spread_points(p.square() * depth, num_positive)  # squares have the same order
    negative, is_negative = spread_points(torch.where(ring, 1 - p, 0), num_negative, RING_WIDTH)
    outline, present = bounding_boxes(inside)
    corners = _with_margin(outline, p.shape[-2:]).view(-1, NUM_CORNERS, 2)
    points = torch.cat([corners, positive, negative], dim=1)
    labels = torch.cat(
        [
            torch.where((present & box)[:, None], outline.new_tensor([[TOP_LEFT, BOTTOM_RIGHT]]), NOT_A_POINT),
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


def spread_points(score: Tensor, count: int, width: float = float("inf")) -> tuple[Tensor, Tensor]:
    """Greedy: the best pixel, then the best one that is not too close to it, and so on; of equal ones the remotest.

    Points keep sqrt(area / (2 · count)) pixels between them, where the area is the number of pixels with a score.

    Args:
        score: [M, H, W], 0 where a point must not lie.
        width: of the band that these pixels form, if they do. In it points keep half of their share of its length,
            area / (2 · count · width) pixels, if that is more.

    Returns:
        [M, count, 2] points (x, y), 0 where there is none, and [M, count], which of them exist.
    """
    area = (score > 0).flatten(1).sum(1)
    # A GPU would have to be waited for, to know how many candidates there are.
    score, pixels = _all_pixels(score) if score.is_cuda else _candidates(score)
    share = area[:, None] / (2 * max(count, 1))
    least = torch.maximum(share, (share / width).square()).clamp(min=1)
    distance = torch.full_like(score, float("inf"))
    points = score.new_zeros(len(score), count, 2)
    exists = torch.zeros(len(score), count, dtype=torch.bool, device=score.device)
    for i in range(count):
        free = torch.where(distance >= least, score, 0)
        best = free.amax(1, keepdim=True)
        chosen = torch.where(free == best, distance, -1).argmax(1, keepdim=True)
        point = pixels.take_along_dim(chosen[..., None], dim=1)
        distance = torch.minimum(distance, (pixels - point).square().sum(-1))
        points[:, i], exists[:, i] = point[:, 0], best[:, 0] > 0
    return torch.where(exists[..., None], points, 0), exists


def _all_pixels(score: Tensor) -> tuple[Tensor, Tensor]:
    """[M, H, W] → [M, H · W], and the places (x, y) of these, [1, H · W, 2]."""
    y, x = (torch.arange(side, dtype=score.dtype, device=score.device) for side in score.shape[1:])
    return score.flatten(1), torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)[None]


def _candidates(score: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the pixels with a score alone, [M, L] and [M, L, 2], filled up with at least one without."""
    candidates = score > 0
    area = candidates.flatten(1).sum(1)
    mask, y, x = candidates.nonzero(as_tuple=True)
    place = torch.arange(len(mask), device=mask.device) - (area.cumsum(0) - area)[mask]
    length = int(area.amax()) + 1
    pixels = score.new_zeros(len(score), length, 2).index_put((mask, place), torch.stack([x, y], dim=1).to(score.dtype))
    return score.new_zeros(len(score), length).index_put((mask, place), score[candidates]), pixels


def _first(flags: Tensor) -> Tensor:
    """[M, L] of 0 and 1 → [M], position of the first 1."""
    return flags.argmax(1)


def _last(flags: Tensor) -> Tensor:
    return flags.shape[1] - 1 - _first(flags.flip(1))


def _with_margin(box: Tensor, size: torch.Size) -> Tensor:
    height, width = size
    margin = (BOX_MARGIN * (box[:, 2:] - box[:, :2] + 1)).repeat(1, 2) * box.new_tensor([-1, -1, 1, 1])
    limit = box.new_tensor([width - 1, height - 1] * 2)
    return torch.minimum((box + margin).clamp(min=0), limit)
