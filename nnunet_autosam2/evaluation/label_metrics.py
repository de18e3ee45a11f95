"""Scores of any labels and regions, by MONAI."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

from nnunet_autosam2.evaluation.numbering import Numbering


def score_labels(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], numbering: Numbering, tolerance: float
) -> dict[str, dict[str, float]]:
    """Region → metric → value; NaN in a region that neither truth nor prediction has.

    Args:
        prediction: labels [Z, Y, X], as are those of the truth.
        spacing: of these axes, in mm.
        tolerance: of NSD, in mm.
    """
    torch.set_num_threads(1)  # of one process among several
    counts = truth != numbering.ignored
    return {
        region: _scores(np.isin(prediction, labels) & counts, np.isin(truth, labels) & counts, spacing, tolerance)
        for region, labels in numbering.regions.items()
    }


def _scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> dict[str, float]:
    """Scores of masks [Z, Y, X]. HD95 without one of the surfaces is the diagonal of the image."""
    if not truth.any() or not prediction.any():
        if truth.any() == prediction.any():
            return dict.fromkeys(("Dice", "IoU", "HD95", "NSD"), math.nan)
        return {"Dice": 0.0, "IoU": 0.0, "HD95": math.hypot(*np.multiply(truth.shape, spacing)), "NSD": 0.0}
    predicted, true = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, truth))
    hd95 = compute_hausdorff_distance(predicted, true, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(predicted, true, [tolerance], include_background=True, spacing=spacing)
    return {
        "Dice": compute_dice(predicted, true).item(),
        "IoU": compute_iou(predicted, true).item(),
        "HD95": hd95.item(),
        "NSD": nsd.item(),
    }
