"""The few of the selected slices that SAM2 is prompted on in one training step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LENGTH_STEP = 4
"""A convolutional gate works at half the resolution, or less."""


class TrainingWindow:
    """Draws consecutive selected slices, so that what lies between them is interpolated as in a prediction.

    It has a generator of its own: what else draws random numbers changes nothing. The seed is torch's at construction;
    processes of distributed training, which begin alike, draw differently.
    """

    def __init__(self) -> None:
        self.seed = torch.initial_seed()
        self.generator: torch.Generator | None = None

    def __call__(self, slices: Tensor, count: int | None) -> Tensor:
        """[B, K] positions, ascending → [B, min(count, K)], anew for each sample and call; None: all of them.

        No slice is drawn less often than with a chance of count / (K + count - 1): a window that would begin before
        the first slice or end behind the last is moved to it.

        >>> torch.manual_seed(0) and None
        >>> TrainingWindow()(torch.tensor([[3, 5, 8, 9], [0, 2, 4, 6]]), 2)
        tensor([[8, 9],
                [4, 6]])
        """
        selected = slices.shape[1]
        if count is None or count >= selected:
            return slices
        start = torch.randint(1 - count, selected, (len(slices), 1), generator=self._own_generator())
        window = start.clamp(0, selected - count) + torch.arange(count)
        return slices.gather(1, window.to(slices.device, non_blocking=True))

    def draw(self, count: int) -> int:
        """One of `count` numbers, from 0 on."""
        return int(torch.randint(count, (), generator=self._own_generator()))

    def random(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Numbers from 0 to 1."""
        return torch.rand(tuple(shape), generator=self._own_generator()).to(device, non_blocking=True)

    def _own_generator(self) -> torch.Generator:
        if self.generator is None:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            self.generator = torch.Generator().manual_seed(self.seed + rank)
        return self.generator


def surroundings(window: Tensor, depth: int, fraction: float) -> Tensor | None:
    """[B, L] consecutive positions of `depth` around a window [B, K] of its selected slices; None: all there are.

    L is what K of the selected ones, a fraction of all, span on average, in steps of LENGTH_STEP; the window is in the
    middle as far as there is room.

    >>> surroundings(torch.tensor([[0, 2, 3], [10, 12, 13]]), depth=20, fraction=0.5)
    tensor([[ 0,  1,  2,  3,  4,  5,  6,  7],
            [ 8,  9, 10, 11, 12, 13, 14, 15]])
    """
    length = LENGTH_STEP * math.ceil(window.shape[1] / fraction / LENGTH_STEP)
    if length >= depth:
        return None
    start = (window[:, :1] + window[:, -1:] + 1 - length).div(2, rounding_mode="floor").clamp(0, depth - length)
    return start + torch.arange(length, device=window.device)
