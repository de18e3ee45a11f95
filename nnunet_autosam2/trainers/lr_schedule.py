"""OneCycle per iteration, for a trainer that announces its epochs."""

from __future__ import annotations

import warnings

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

WARMUP_FRACTION = 0.3


class IterationOneCycleLR(OneCycleLR):
    """Torch's OneCycleLR with its defaults over `num_epochs * iterations_per_epoch` steps.

    `step()` advances by one iteration; `step(epoch)`, which nnU-Net calls as an epoch starts, goes to the
    first iteration of that epoch, so that a resumed run is on its curve without any stored state. Past the
    last iteration the schedule stays where it ends.

    Smith & Topin 2019, Super-Convergence, https://arxiv.org/abs/1708.07120
    """

    def __init__(
        self, optimizer: Optimizer, max_lr: float | list[float], num_epochs: int, iterations_per_epoch: int
    ) -> None:
        self.num_epochs = num_epochs
        self.iterations_per_epoch = iterations_per_epoch
        super().__init__(
            optimizer,
            max_lr,
            epochs=num_epochs,
            steps_per_epoch=iterations_per_epoch,
            pct_start=WARMUP_FRACTION,
        )

    def shares_of_peak(self) -> list[float]:
        """Learning rate at the start of each epoch, as a share of the peak."""
        optimizer = SGD([torch.zeros(1)], lr=1.0)
        schedule = IterationOneCycleLR(optimizer, 1.0, self.num_epochs, self.iterations_per_epoch)
        shares = []
        for epoch in range(self.num_epochs):
            schedule.step(epoch)
            shares.append(optimizer.param_groups[0]["lr"])
        return shares

    def epochs_until_below(self, share: float) -> int:
        """Epochs before the first one from which on all start at less than `share` of the peak learning rate."""
        at_or_above = (epoch for epoch, of_peak in enumerate(self.shares_of_peak()) if of_peak >= share)
        return max(at_or_above, default=-1) + 1

    def step(self, epoch: int | None = None) -> None:
        """One iteration ahead, or to the first iteration of `epoch`."""
        if epoch is None:
            self._go_to(self.last_epoch + 1)
            return
        with warnings.catch_warnings():
            # torch expects a step of the optimizer before the schedule's first; an epoch starts without one
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            self._go_to(epoch * self.iterations_per_epoch)

    def _go_to(self, iteration: int) -> None:
        self.last_epoch = min(iteration, self.total_steps - 1) - 1
        super().step()
