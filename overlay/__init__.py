"""Installed as `nnunetv2.training.nnUNetTrainer.variants.autosam2`, where nnU-Net looks for trainers."""
