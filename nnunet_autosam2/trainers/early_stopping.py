"""Early stopping as a function of the history that nnU-Net stores in its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ANNEALED = 0.1
"""Share of the peak learning rate below which patience counts, measured in docs/experiments.md"""


def defined_ema(values: Sequence[float]) -> list[float]:
    """nnU-Net's exponential moving average of what is defined; NaN where a value is NaN.

    nnU-Net's own stays NaN for good after the first one, such as the pseudo Dice of an epoch without foreground.
    """
    averages: list[float] = []
    last = math.nan
    for value in values:
        if value == value:
            last = value if math.isnan(last) else last * 0.9 + 0.1 * value
        averages.append(last if value == value else math.nan)
    return averages


@dataclass(frozen=True)
class EarlyStopping:
    """Stops after `patience` epochs without a better EMA of the pseudo Dice.

    Epochs before `counts_from_epoch` are not counted. There is no state beside the history, so a resumed run carries
    on where it was.
    """

    patience: int
    counts_from_epoch: int = 0

    def epochs_without_improvement(self, history: Sequence[float]) -> int:
        """Epochs after the best value, from `counts_from_epoch` on.

        Args:
            history: of `defined_ema`, one value an epoch. NaN, undefined, counts neither as progress nor against it.
        """
        best_epoch = max(
            (epoch for epoch, value in enumerate(history) if value == value),
            key=lambda epoch: history[epoch],  # the first of equal values, as only a better one is an improvement
            default=0,
        )
        waited = history[max(best_epoch + 1, self.counts_from_epoch) :]
        return sum(value == value for value in waited)

    def should_stop(self, history: Sequence[float]) -> bool:
        """True once `patience` epochs have brought no improvement."""
        return self.epochs_without_improvement(history) >= self.patience
