"""AutoSAM2 in distributed training without GPUs, see two_processes.py."""

import numpy as np
import torch

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_TwoCPUs(nnUNetTrainerAutoSAM2):
    """With images that are not finite in the second step of each epoch, in the second process alone.

    Its UNet alone is perfect in the first region and finds nothing of the others.
    """

    step = 0

    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None

    def train_step(self, batch: dict) -> dict:
        if self.local_rank == 1 and self.step % self.num_iterations_per_epoch == 1:
            batch["data"] = torch.full_like(batch["data"], float("nan"))
        self.step += 1
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        return {**super().validation_step(batch), "UNet": np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1]])}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        print(f"Gates of process {self.local_rank}: {self.autosam2.fusion.vetoed.tolist()}")
        super().perform_actual_validation(save_probabilities)
