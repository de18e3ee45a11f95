"""Exact Euclidean distance transform of a batch of masks."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 2**24
"""Numbers in the largest intermediate result on a GPU"""


def squared_distance_to(masks: Tensor, limit: int | None = None) -> Tensor:
    """Squared distance of every pixel to the nearest pixel of its mask, 0 on the mask itself.

    First along the columns; then the least, over all columns, of that square plus the square of the way to the column.

    Args:
        masks: [M, H, W] booleans.
        limit: larger distances, and that to a mask without pixels, become this one; in pixels. None: H + W.

    Returns:
        [M, H, W], int32 in square pixels.
    """
    limit = sum(masks.shape[-2:]) if limit is None else limit
    exists = masks.flatten(1).any(1)[:, None, None]
    along_column = _along_columns(masks | ~exists, limit).square()
    # A kernel a shift, and a question after each, is what a GPU is slowest at; a CPU saves most of the shifts.
    nearest = _least_at_once(along_column) if masks.is_cuda else _least_by_shifts(along_column, limit)
    return torch.where(exists, nearest, limit**2)


def _along_columns(masks: Tensor, limit: int) -> Tensor:
    """[M, H, W], int32, distance to the nearest pixel of the mask in the same column, `limit` at most."""
    row = torch.arange(masks.shape[-2], dtype=torch.int32, device=masks.device)[:, None]
    above = torch.where(masks, row, -limit).cummax(-2).values
    below = torch.where(masks, -row, -limit - len(row)).flip(-2).cummax(-2).values.flip(-2)
    return torch.minimum(row - above, -below - row).clamp(max=limit)


def _least_at_once(squares: Tensor) -> Tensor:
    """Least, over all columns, of the square there and that of the way to it, [M, H, W].

    A few masks at a time, for the sake of memory.
    """
    column = torch.arange(squares.shape[-1], dtype=torch.int32, device=squares.device)
    way = (column[:, None] - column).square()
    at_once = max(1, AT_ONCE // (squares[0].numel() * len(column)))
    return torch.cat([(chunk[..., None, :] + way).amin(-1) for chunk in squares.split(at_once)])


def _least_by_shifts(squares: Tensor, limit: int) -> Tensor:
    """The same, by ways no longer than the largest distance, in a few times the memory of the result."""
    width, longest = squares.shape[-1], int(squares.max())
    reach = min(math.isqrt(longest), width - 1)
    nearest = squares.clone()
    columns = F.pad(squares, (reach, reach), value=limit**2)
    other = torch.empty_like(nearest)  # in place: on a CPU, fresh memory costs more than the computation
    for shift in range(1, reach + 1):
        if shift**2 >= nearest.max():
            break
        left, right = (columns.narrow(-1, start, width) for start in (reach - shift, reach + shift))
        torch.minimum(left, right, out=other).add_(shift**2)
        torch.minimum(nearest, other, out=nearest)
    return nearest
