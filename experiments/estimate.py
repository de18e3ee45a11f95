"""How long a training of experiments/experiment.py takes, by what docs/performance.md says of a step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

MEASURED_PATCH = 128**3


class Measured(NamedTuple):
    """Seconds for two patches of 128³ with 4 modalities, nnU-Net's planned network, SAM2 at 512 pixels."""

    machine: str
    step: float
    """nnU-Net's"""
    step_with_sam2: float
    forward: float
    forward_with_sam2: float
    prediction: float
    """Of a case, mirrored, in eight tiles"""
    start: float
    """Before the first step of a training: Python, and on a GPU compiling"""


MEASURED = {
    "cuda": Measured("an H200 whose CPU cores keep up with augmentation", 0.044, 0.179, 0.022, 0.146, 2.35, 180),
    "cpu": Measured("two CPU cores", 2 * 46.6, 2 * 51.0, 2 * 9.83, 2 * 37.5, 8 * 8 * 9.83, 30),
}
"""On a GPU with all slices in SAM2 and the network trained too, which is more than an upgrade does"""
PREDICTION_START = 31
"""Seconds of a command"""


def training_hours(settings: dict[str, Any], epochs: int, sam2: bool, left_out: int) -> float:
    """Estimate a training and the prediction of what it has left out.

    Args:
        settings: as the experiment keeps them; the device is a key of `MEASURED`.
        sam2: it runs in this training.
        left_out: number of cases to predict.
    """
    measured = MEASURED[settings["device"]]
    step = measured.step_with_sam2 if sam2 else measured.step
    forward = measured.forward_with_sam2 if sam2 else measured.forward
    share = math.prod(settings["patch_size"]) / MEASURED_PATCH
    epoch = share * (settings["iterations"] * step + settings["val_iterations"] * forward)
    return (measured.start + epochs * epoch + PREDICTION_START + left_out * measured.prediction) / 3600


def basis(device: str) -> str:
    """Sentence on what the estimates come from."""
    measured = MEASURED[device]
    return (
        f"By docs/performance.md, on {measured.machine}: {measured.step:g} s a step of nnU-Net with two patches of "
        f"128³, {measured.step_with_sam2:g} s with SAM2 on it; other patches in proportion to their voxels. A network "
        "of fewer features, or fewer pixels in SAM2, takes less; a slower machine takes longer."
    )
