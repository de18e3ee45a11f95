"""Early stopping as a function of the history that nnU-Net stores in its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyStopping:
    """Stops after `patience` epochs without a better EMA of the pseudo Dice.

    Nothing is counted up to and including epoch `armed_from_epoch`, the end of the schedule's warm-up. There
    is no state beside the history, so a resumed run carries on where it was.
    """

    patience: int
    armed_from_epoch: int = 0

    def epochs_without_improvement(self, history: Sequence[float]) -> int:
        """Epochs since the best value or since `armed_from_epoch`, whichever is later.

        Args:
            history: nnU-Net's `ema_fg_dice`, one value an epoch. NaN is never an improvement.
        """
        best_epoch = max(
            (epoch for epoch, value in enumerate(history) if value == value),
            key=lambda epoch: history[epoch],  # the first of equal values, as only a better one is an improvement
            default=0,
        )
        return max(len(history) - 1 - max(best_epoch, self.armed_from_epoch), 0)

    def should_stop(self, history: Sequence[float]) -> bool:
        """True once `patience` epochs have brought no improvement."""
        return self.epochs_without_improvement(history) >= self.patience
