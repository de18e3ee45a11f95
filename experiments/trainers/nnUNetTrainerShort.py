"""The trainers of experiments/experiment.py, which nnU-Net finds with nnUNet_extTrainer=experiments/trainers."""

import os
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.masks import ImageEmbeddings
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.trainers import (
    nnUNetTrainerAutoSAM2,
    nnUNetTrainerAutoSAM2_OnBaseline,
    nnUNetTrainerAutoSAM2_UNetOnly,
)

STORED = "EXPERIMENT_BATCHES"


class Reproducible(nnUNetTrainer):
    """First weights, patches and augmentation depend on EXPERIMENT_SEED alone.

    So all trainers see the same batches, in a resumed training too: those stored in EXPERIMENT_BATCHES from number
    EXPERIMENT_FIRST_BATCH on, or their own, with nnUNet_n_proc_DA=0.
    """

    def initialize(self) -> None:
        self.save_every = 1
        self._seed(0)
        super().initialize()

    def on_train_epoch_start(self) -> None:
        self._seed(1 + self.current_epoch)
        if STORED in os.environ:
            done = self.current_epoch * self.num_iterations_per_epoch
            self.dataloader_train.next_batch = int(os.environ["EXPERIMENT_FIRST_BATCH"]) + done
            self.dataloader_val.next_batch = 0
        super().on_train_epoch_start()

    def get_dataloaders(self) -> tuple[Any, Any]:
        if STORED not in os.environ:
            return super().get_dataloaders()
        from experiments.stored_batches import PARTS, StoredBatches  # the experiment has put them on the path

        scales = self._get_deep_supervision_scales()
        train, val = (StoredBatches(Path(os.environ[STORED]) / part, scales) for part in PARTS)
        return train, val

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Left out: the experiment predicts the left-out case itself."""

    def _seed(self, step: int) -> None:
        seed = 10_000 * int(os.environ["EXPERIMENT_SEED"]) + step
        np.random.seed(seed)
        torch.manual_seed(seed)


class nnUNetTrainerShort(Reproducible):
    """nnU-Net's own, for as many iterations as AutoSAM2's part of the configuration says."""

    def initialize(self) -> None:
        lengths = self.configuration_manager.configuration[PLANS_KEY]
        for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
            setattr(self, name, lengths[name])
        super().initialize()


class nnUNetTrainerAutoSAM2_Short(Reproducible, nnUNetTrainerAutoSAM2):
    pass


class nnUNetTrainerAutoSAM2_UNetOnly_Short(Reproducible, nnUNetTrainerAutoSAM2_UNetOnly):
    pass


class nnUNetTrainerAutoSAM2_OnBaseline_Short(Reproducible, nnUNetTrainerAutoSAM2_OnBaseline):
    pass


class AtRandom(TrainingWindow):
    """As many selected slices, not next to each other."""

    def __call__(self, slices: Tensor, count: int | None) -> Tensor:
        selected = slices.shape[1]
        if count is None or count >= selected:
            return slices
        chosen = torch.rand(slices.shape, generator=self._own_generator()).argsort(1)[:, :count].sort(1).values
        return slices.gather(1, chosen.to(slices.device))


class nnUNetTrainerAutoSAM2_OnBaseline_Short_AtRandom(nnUNetTrainerAutoSAM2_OnBaseline_Short):
    def initialize(self) -> None:
        super().initialize()
        assert self.autosam2.sam2_branch is not None
        self.autosam2.sam2_branch.training_window = AtRandom()


class nnUNetTrainerAutoSAM2_OnBaseline_Short_Noise(nnUNetTrainerAutoSAM2_OnBaseline_Short):
    """In the place of SAM2's image embeddings noise, with the mean and the spread that each channel has on a slice."""

    @staticmethod
    @wraps(nnUNetTrainerAutoSAM2_OnBaseline_Short.build_network_architecture)  # nnU-Net reads its signature
    def build_network_architecture(*args: Any, **kwargs: Any) -> AutoSAM2:
        network = nnUNetTrainerAutoSAM2_OnBaseline_Short.build_network_architecture(*args, **kwargs)
        branch: Any = network.sam2_branch
        encode = branch.encode
        branch.encode = lambda slices: ImageEmbeddings(*map(noise_like, encode(slices)))
        return network


def noise_like(embeddings: Tensor) -> Tensor:
    """[N, E, h, w], normally distributed."""
    spread, mean = torch.std_mean(embeddings.float(), (-2, -1), keepdim=True, correction=0)
    return (mean + spread * torch.randn_like(embeddings, dtype=torch.float32)).to(embeddings.dtype)
