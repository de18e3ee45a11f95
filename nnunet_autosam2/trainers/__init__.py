"""nnU-Net trainers, found by their names through the overlay."""

from nnunet_autosam2.trainers.nnUNetTrainerAutoSAM2 import nnUNetTrainerAutoSAM2
from nnunet_autosam2.trainers.variants import (
    nnUNetTrainerAutoSAM2_5epochs,
    nnUNetTrainerAutoSAM2_10epochs,
    nnUNetTrainerAutoSAM2_60,
    nnUNetTrainerAutoSAM2_Features,
    nnUNetTrainerAutoSAM2_Fixed,
    nnUNetTrainerAutoSAM2_OnBaseline,
    nnUNetTrainerAutoSAM2_Plans,
    nnUNetTrainerAutoSAM2_SAM2Only,
    nnUNetTrainerAutoSAM2_TestRun,
    nnUNetTrainerAutoSAM2_UNetOnly,
)

__all__ = [
    "nnUNetTrainerAutoSAM2",
    "nnUNetTrainerAutoSAM2_5epochs",
    "nnUNetTrainerAutoSAM2_10epochs",
    "nnUNetTrainerAutoSAM2_60",
    "nnUNetTrainerAutoSAM2_Features",
    "nnUNetTrainerAutoSAM2_Fixed",
    "nnUNetTrainerAutoSAM2_OnBaseline",
    "nnUNetTrainerAutoSAM2_Plans",
    "nnUNetTrainerAutoSAM2_SAM2Only",
    "nnUNetTrainerAutoSAM2_TestRun",
    "nnUNetTrainerAutoSAM2_UNetOnly",
]
