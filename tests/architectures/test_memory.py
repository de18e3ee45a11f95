"""Long runs do not grow: resident memory after hundreds of iterations is that after the first fifty."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")]
MOST_GROWTH = 1.02


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_200_iterations(make_network):
    network = make_network(region_based=True).train()
    network.set_deep_supervision(True)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=True))
    used = []
    for _ in range(200):
        output = network(torch.randn(2, 2, 16, 32, 32))
        target = (torch.rand(2, 3, 16, 32, 32) > 0.7).float()
        optimizer.zero_grad()
        loss(output, [F.interpolate(target, logits.shape[2:]) for logits in output.unet]).backward()
        optimizer.step()
        used.append(resident())
    assert max(used[150:]) <= MOST_GROWTH * max(used[:50])


@torch.no_grad()
def test_50_predictions(make_network):
    network = make_network(region_based=True).eval()
    used = []
    for _ in range(50):
        network(torch.randn(1, 2, 16, 32, 32))
        used.append(resident())
    assert max(used[40:]) <= MOST_GROWTH * max(used[:10])
