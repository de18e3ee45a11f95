"""AutoSAM2 with a checkpoint at the end of every epoch, for trainings that are killed."""

from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_SavesEveryEpoch(nnUNetTrainerAutoSAM2):
    def initialize(self) -> None:
        self.save_every = 1
        super().initialize()
