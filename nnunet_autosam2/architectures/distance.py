"""Exact Euclidean distance transform of a batch of masks."""

import torch
from torch import Tensor
from torch.nn import functional as F


def squared_distance_to(masks: Tensor, limit: int | None = None) -> Tensor:
    """Squared distance of every pixel to the nearest pixel of its mask, 0 on the mask itself.

    First along the columns; then the least, over all columns, of that square plus the square of the way to the column.
    No way is longer than the largest distance, and memory is a few times that of the result.

    Args:
        masks: [M, H, W] booleans.
        limit: larger distances, and that to a mask without pixels, become this one; in pixels. None: H + W.

    Returns:
        [M, H, W], int32 in square pixels.
    """
    height, width = masks.shape[-2:]
    limit = height + width if limit is None else limit
    exists = masks.flatten(1).any(1)[:, None, None]
    along_column = torch.where(masks | ~exists, 0, limit).int()
    shift = 1
    while shift < min(height, limit):  # after a shift of s, distances up to 2s − 1 are right
        farther = along_column + shift
        for own, other in (
            (along_column[:, shift:], farther[:, :-shift]),
            (along_column[:, :-shift], farther[:, shift:]),
        ):
            torch.minimum(own, other, out=own)
        shift *= 2

    nearest = along_column.square()
    reach = min(int(along_column.max()), width - 1)
    columns = F.pad(nearest, (reach, reach), value=limit**2)
    other = torch.empty_like(nearest)  # in place: on a CPU, fresh memory costs more than the computation
    for shift in range(1, reach + 1):
        if shift**2 >= nearest.max():
            break
        left, right = (columns.narrow(-1, start, width) for start in (reach - shift, reach + shift))
        torch.minimum(left, right, out=other).add_(shift**2)
        torch.minimum(nearest, other, out=nearest)
    return torch.where(exists, nearest, limit**2)
