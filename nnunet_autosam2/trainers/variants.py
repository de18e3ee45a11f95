"""Variants of the trainer: each changes parameters that the plans would otherwise decide."""

from nnunet_autosam2.trainers.nnUNetTrainerAutoSAM2 import nnUNetTrainerAutoSAM2


class nnUNetTrainerAutoSAM2_60(nnUNetTrainerAutoSAM2):
    """High-precision hybrid: 60 % of the slices pass through SAM2."""

    parameters = {"slice_fraction": 0.6}


class nnUNetTrainerAutoSAM2_UNetOnly(nnUNetTrainerAutoSAM2):
    """The same UNet, loss and schedule without SAM2."""

    parameters = {"enable_sam2": False}


class nnUNetTrainerAutoSAM2_SAM2Only(nnUNetTrainerAutoSAM2):
    """SAM2's masks alone; the UNet stops at the features that prompt SAM2."""

    parameters = {"enable_unet_decoder": False}


class nnUNetTrainerAutoSAM2_Fixed(nnUNetTrainerAutoSAM2):
    """Blends with fixed weights, as the original AutoSAM2."""

    parameters = {"fusion": "fixed"}


class nnUNetTrainerAutoSAM2_Features(nnUNetTrainerAutoSAM2):
    """SAM2's image embeddings in the UNet's decoder, beside its masks."""

    parameters = {"feature_fusion": True}


class nnUNetTrainerAutoSAM2_Plans(nnUNetTrainerAutoSAM2):
    """The network that nnU-Net planned as the backbone, from scratch."""

    parameters = {"backbone": "plans"}


class nnUNetTrainerAutoSAM2_OnBaseline(nnUNetTrainerAutoSAM2):
    """An upgrade of the network that nnUNetTrainer has trained on this fold, which stays as it is.

    SAM2's half and the gate train for a twentieth of nnU-Net's epochs; the gate starts closed.
    """

    parameters = {"backbone": "plans"}
    defaults = {"backbone_checkpoint": "auto", "freeze_backbone": True, "num_epochs": 50}


class nnUNetTrainerAutoSAM2_5epochs(nnUNetTrainerAutoSAM2):
    """A run for trying out, as nnUNetTrainer_5epochs."""

    parameters = {"num_epochs": 5}


class nnUNetTrainerAutoSAM2_10epochs(nnUNetTrainerAutoSAM2):
    """A run for trying out, as nnUNetTrainer_10epochs."""

    parameters = {"num_epochs": 10}


class nnUNetTrainerAutoSAM2_TestRun(nnUNetTrainerAutoSAM2):
    """A handful of cases and two short epochs, to see within minutes that everything works."""

    parameters = {"test_run": True}
