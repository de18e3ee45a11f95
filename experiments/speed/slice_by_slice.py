"""SAM2 as the original AutoSAM2 asks it, for comparison."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch import Tensor

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, generate_prompts
from nnunet_autosam2.architectures.slice_selection import num_slices, select_slices

NUM_POSITIVE, NUM_NEGATIVE = 10, 3


class SliceBySlice:
    """Our UNet, slices and prompts; SAM2's own predictor at 1024 pixels, one slice and one mask after the other, with
    NumPy in between. It cannot train: no gradient leaves NumPy.
    """

    def __init__(self, unet: AutoSAM2, sam2_model: str, fraction: float, device: str) -> None:
        self.unet = unet.requires_grad_(False)
        self.fraction = fraction
        config_file, _ = HF_MODEL_ID_TO_FILENAMES[f"facebook/{sam2_model}"]
        self.predictor = SAM2ImagePredictor(build_sam2(config_file, device=device).requires_grad_(False))

    @torch.no_grad()
    def forward(self, volume: Tensor) -> np.ndarray:
        """[B, C, D, H, W] → probabilities [B, R, D, H, W]"""
        probabilities = self.unet(volume).sigmoid()
        slices = select_slices(probabilities, num_slices(volume.shape[2], self.fraction))
        fused = probabilities.cpu().numpy()
        for sample, selected in enumerate(slices.tolist()):
            prompted = {z: self._masks(volume[sample, :, z], probabilities[sample, :, z]) for z in selected}
            for z in range(selected[0], selected[-1] + 1):
                below = bisect_right(selected, z) - 1
                lower, upper = selected[below], selected[min(below + 1, len(selected) - 1)]
                weight = (z - lower) / max(1, upper - lower)
                for region in range(fused.shape[1]):
                    mask = (1 - weight) * prompted[lower][region] + weight * prompted[upper][region]
                    fused[sample, region, z] = 0.5 * fused[sample, region, z] + 0.5 / (1 + np.exp(-mask))
        return fused

    def compile(self, way: str) -> None:
        """Nothing: NumPy lies between its calls."""

    def _masks(self, image: Tensor, probabilities: Tensor) -> list[np.ndarray]:
        """[C, H, W] and [R, H, W] → a mask [H, W] of logits for each region."""
        rgb = torch.sigmoid(image[torch.arange(3) % len(image)]).permute(1, 2, 0)
        self.predictor.set_image((255 * rgb).byte().cpu().numpy())
        prompts = generate_prompts(probabilities, NUM_POSITIVE, NUM_NEGATIVE, box=True)
        masks = []
        for points, labels in zip(prompts.points.cpu().numpy(), prompts.labels.cpu().numpy(), strict=True):
            # SAM2 takes the two corners of a box as points with labels of their own.
            given = labels != NOT_A_POINT
            arguments = {"point_coords": points[given], "point_labels": labels[given]} if given.any() else {}
            masks.append(self.predictor.predict(multimask_output=False, return_logits=True, **arguments)[0][0])
        return masks
