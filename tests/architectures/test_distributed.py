"""Distributed data parallel as nnU-Net uses it, in which no parameter of the network may be unused.

The test is one of the two processes; this file, run as a script, is the other.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss

MODES = {
    "hybrid": {},
    "UNet only": {"enable_sam2": False},
    "SAM2 only": {"enable_unet_decoder": False},
    "adapters": {"sam2_tuning": "lora"},
    "all of SAM2 trains": {"sam2_tuning": "full"},
    "mask prompts": {"mask_prompt": True},
}


def join(rank: int, folder: str | Path) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )


def train(rank: int, mode: str) -> AutoSAM2:
    """Two steps, with other weights and other data in each process."""
    torch.manual_seed(rank)
    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "sam2_chunk_size": 2}
    network = AutoSAM2(3, 1, region_based=True, **small, **MODES[mode])
    network.set_deep_supervision(True)
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW([p for p in parallel.parameters() if p.requires_grad], lr=1e-3)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=True, batch_dice=True, ddp=True))
    for _ in range(2):
        output = parallel(torch.randn(1, 1, 16, 16, 16))
        target = (torch.rand(1, 3, 16, 16, 16) > 0.7).float()
        optimizer.zero_grad()
        loss(output, [F.interpolate(target, logits.shape[2:]) for logits in output.unet]).backward()
        optimizer.step()
    return network


def gather(network: AutoSAM2) -> list[torch.Tensor]:
    """What trains, of both processes."""
    trained = torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad])
    both = [torch.empty_like(trained) for _ in range(2)]
    torch.distributed.all_gather(both, trained)
    return both


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_two_processes_stay_identical_in_every_mode_and_tuning(tmp_path):
    other = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    join(0, tmp_path)
    try:
        for mode in MODES:
            network = train(0, mode)
            assert torch.equal(*gather(network)), mode
    finally:
        torch.distributed.destroy_process_group()
        code = other.wait(timeout=120)
    assert code == 0


if __name__ == "__main__":
    join(1, sys.argv[1])
    for mode in MODES:
        gather(train(1, mode))
    torch.distributed.destroy_process_group()
