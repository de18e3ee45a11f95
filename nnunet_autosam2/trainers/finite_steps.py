"""Steps whose gradients are not finite are skipped, and too many of them end the training."""

from __future__ import annotations

from typing import Any

import torch

from nnunet_autosam2.errors import TrainingError

MOST_IN_A_ROW = 10


class FiniteAdamW(torch.optim.AdamW):
    """AdamW that leaves out a step with a gradient that is not finite, as GradScaler does on a GPU."""

    num_taken = 0
    """Steps that were not skipped"""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf"))  # for the norm alone
        if not norm.isfinite():
            return None
        self.num_taken += 1
        return super().step(closure)


class SkippedSteps:
    """How many steps were skipped, in all since the last `reset` and in a row."""

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def add(self, taken: bool) -> None:
        """
        Raises:
            TrainingError: for ten in a row.
        """
        if taken:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise TrainingError(
                f"{self.in_a_row} steps in a row had a loss or gradients that are not finite, and were skipped. The "
                "checkpoints are good, and --c goes on from the last one. Look for values that are not finite in the "
                "images, set sam2_precision = float32, or lower initial_lr and start afresh."
            )

    def reset(self) -> None:
        self.total = 0
