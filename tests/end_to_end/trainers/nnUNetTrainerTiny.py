"""Trainers of the tests, which nnU-Net finds with nnUNet_extTrainer=tests/end_to_end/trainers."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerTiny(nnUNetTrainer):
    """nnU-Net's own, for two epochs of two iterations."""

    def initialize(self) -> None:
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1
        super().initialize()


class nnUNetTrainerFails(nnUNetTrainer):
    def initialize(self) -> None:
        raise RuntimeError("this trainer cannot train")
