"""AutoSAM2 with a backward pass that runs out of memory, as on a small GPU."""

import torch
from torch import Tensor

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_RoomForTwoSlices(nnUNetTrainerAutoSAM2):
    room = 2

    def initialize(self) -> None:
        super().initialize()
        next(self.autosam2.unet.parameters()).register_hook(self._allocate)

    def _allocate(self, gradient: Tensor) -> Tensor:
        if self.autosam2.sam2_branch.decoder_chunks.at_once > self.room:
            raise torch.OutOfMemoryError("no room")
        return gradient


class nnUNetTrainerAutoSAM2_NoRoom(nnUNetTrainerAutoSAM2_RoomForTwoSlices):
    room = 0
