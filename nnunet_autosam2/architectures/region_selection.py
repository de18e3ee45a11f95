"""The regions of a slice that SAM2 is prompted for, where there are more than it need be."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_autosam2.config import AutoSAM2Config


@torch.no_grad()
def select_regions(probabilities: Tensor, config: AutoSAM2Config, training: bool) -> Tensor | None:
    """[N, M], the regions (or foreground classes) that SAM2 is prompted for on each of N slices; None: all of them.

    They are those of which the UNet sees most there. In training M is `regions_per_slice`, so that compiled code and
    distributed processes keep their shapes; in a prediction it is as many as there are on any of the slices.

    Args:
        probabilities: [N, R, H, W].
    """
    limit, regions = config.regions_per_slice, probabilities.shape[1]
    # SAM2's memory follows every region from slice to slice.
    if limit is None or regions <= limit or config.propagation == "memory":
        return None
    present = (probabilities > config.prompt_threshold).flatten(2).any(2)
    pixels = probabilities.flatten(2).sum(2, dtype=torch.float32) + present * probabilities[0, 0].numel()
    count = limit if training else max(1, int(present.sum(1).amax()))
    return pixels.topk(count, dim=1).indices.sort(dim=1).values
