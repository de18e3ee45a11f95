"""AutoSAM2 with something else in the place of SAM2's masks, which it makes nonetheless."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2

CONFIDENCE = 8.0
"""Size of the logits"""
SEED = 0
"""Of a short training that finds every region: one that finds none says nothing about SAM2"""


class nnUNetTrainerAutoSAM2_Truth(nnUNetTrainerAutoSAM2):
    """The truth, which selects slices and prompts as well; in predictions, which have none, the UNet's opinion."""

    truth: Tensor | None = None
    """[B, R, D, H, W] of the batch, 0 or 1"""

    def initialize(self) -> None:
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        super().initialize()
        self.autosam2.register_forward_pre_hook(self._with_truth)
        self.autosam2.sam2_branch.register_forward_hook(self._replace)

    def _with_truth(self, _: Any, arguments: tuple) -> tuple:
        return arguments if self.truth is None else (*arguments, self.truth)

    def _replace(self, _: Any, arguments: tuple, answer: tuple) -> tuple:
        masks, *others = answer
        probabilities = F.interpolate(arguments[2], masks.logits.shape[2:])
        return masks._replace(logits=self.logits(probabilities)), *others

    def logits(self, probabilities: Tensor) -> Tensor:
        return CONFIDENCE * (2 * probabilities - 1)

    def train_step(self, batch: dict) -> dict:
        self.truth = batch["target"][0].to(self.device, torch.float32)
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        self.truth = batch["target"][0].to(self.device, torch.float32)
        return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        self.truth = None
        super().perform_actual_validation(save_probabilities)


class nnUNetTrainerAutoSAM2_Noise(nnUNetTrainerAutoSAM2_Truth):
    """White noise that misses the regions, except in training steps.

    So the gate has learned to trust it and cannot have closed by itself, and however little the UNet finds, noise
    finds less.
    """

    def logits(self, probabilities: Tensor) -> Tensor:
        if self.autosam2.training:
            return super().logits(probabilities)
        noise = CONFIDENCE * torch.randn_like(probabilities)
        return torch.where(probabilities > 0, -CONFIDENCE, noise)
