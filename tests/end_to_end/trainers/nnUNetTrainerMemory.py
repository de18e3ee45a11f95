"""AutoSAM2 in steps that run out of memory, as on a small GPU."""

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


class nnUNetTrainerAutoSAM2_NoRoomForTheStep(nnUNetTrainerAutoSAM2):
    """Once, when the gradients have been unscaled already, and by a library below torch."""

    def initialize(self) -> None:
        super().initialize()
        self.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        step = self.optimizer.step

        def fails(*arguments):
            self.optimizer.step = step
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

        self.optimizer.step = fails
