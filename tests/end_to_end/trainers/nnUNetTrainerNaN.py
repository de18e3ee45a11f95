"""AutoSAM2 with images that are not finite, for some steps."""

import torch

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_SometimesNaN(nnUNetTrainerAutoSAM2):
    """In the second step of every epoch."""

    step = 0

    def train_step(self, batch: dict) -> dict:
        if self.is_poisoned():
            batch["data"] = torch.full_like(batch["data"], float("nan"))
        self.step += 1
        return super().train_step(batch)

    def is_poisoned(self) -> bool:
        return self.step % self.num_iterations_per_epoch == 1


class nnUNetTrainerAutoSAM2_NaNFromSecondEpoch(nnUNetTrainerAutoSAM2_SometimesNaN):
    def is_poisoned(self) -> bool:
        return self.current_epoch >= 1
