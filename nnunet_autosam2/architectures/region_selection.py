"""The regions of a slice that SAM2 is prompted for, where there are more than it need be."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import AutoSAM2Config


@torch.no_grad()
def select_regions(probabilities: Tensor, config: AutoSAM2Config, window: TrainingWindow | None) -> Tensor | None:
    """[N, M], the regions (or foreground classes) that SAM2 is prompted for on each of N slices; None: all of them.

    In a prediction M is as many as there are on any of the slices. In training it is `regions_per_slice`, so that
    compiled code and distributed processes keep their shapes: any of those that are there, as of the largest alone
    nothing would be learned about the small ones, and where these are too few, others of which the UNet sees most.

    Args:
        probabilities: [N, R, H, W].
        window: which draws, in training; None: in a prediction.
    """
    limit, regions = config.regions_per_slice, probabilities.shape[1]
    # SAM2's memory follows every region from slice to slice.
    if limit is None or regions <= limit or config.propagation == "memory":
        return None
    present = (probabilities > config.prompt_threshold).flatten(2).any(2)
    share = probabilities.flatten(2).mean(2, dtype=torch.float32)
    if window is None:
        count, rank = max(1, int(present.sum(1).amax())), share
    else:
        count, rank = limit, torch.where(present, window.random(present.shape, present.device), share)
    return (rank + present).topk(count, dim=1).indices.sort(dim=1).values
