"""Distributed data parallel as nnU-Net uses it, in which no parameter of the network may be unused.

The test is one of the two processes; this file, run as a script, is the other.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss, sample_weight_of

MODES: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "UNet only": {"enable_sam2": False},
    "SAM2 only": {"enable_unet_decoder": False},
    "adapters and mask prompts": {"sam2_tuning": "lora", "mask_prompt": True},
    "all of SAM2 trains": {"sam2_tuning": "full"},
    "features on a window": {
        "feature_fusion": True,
        "training_slices": 2,
        "boxes_per_region": 3,
        "slice_axes": 3,
        "slice_fraction": 0.6,
        "regions_per_slice": 2,
    },
    "features alone": {"feature_fusion": True, "fusion": "off", "sam2_tuning": "full"},
}


def join(rank: int, folder: str | Path) -> None:
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )


def make(seed: int, mode: str) -> AutoSAM2:
    return copy.deepcopy(_make(seed, mode))


@lru_cache(maxsize=1)
def _make(seed: int, mode: str) -> AutoSAM2:
    torch.manual_seed(seed)
    small = {
        "sam2_image_size": 64, "sam2_checkpoint": "random", "sam2_chunk_size": 2, "sam2_precision": "float32",
        "slice_fraction": 0.2,
    }  # fmt: skip
    network = AutoSAM2(3, 1, region_based=True, **{**small, **MODES[mode]})
    network.set_deep_supervision(True)
    return network


def batch(step: int, size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    volume = torch.randn(size, 1, 16, 16, 16, generator=generator)
    return volume, (torch.rand(size, 3, 16, 16, 16, generator=generator) > 0.7).float()


def starts(size: int, mode: str) -> torch.Tensor:
    return torch.arange(size) * (mode == "features on a window")


class From(TrainingWindow):
    """Windows that begin at `starts`, one a sample: what is drawn differs from process to process."""

    def __init__(self, starts: torch.Tensor) -> None:
        self.starts = starts

    def __call__(self, slices: torch.Tensor, count: int | None) -> torch.Tensor:
        return (
            slices if count is None else slices.gather(1, self.starts[:, None] + torch.arange(count)[: slices.shape[1]])
        )

    def draw(self, count: int) -> int:
        return count - 1

    def random(self, shape: Sequence[int], device: torch.device) -> torch.Tensor:
        return torch.linspace(0, 1, shape[-1], device=device).expand(*shape)


def with_windows(network: AutoSAM2, starts: torch.Tensor) -> AutoSAM2:
    if network.sam2_branch is not None:
        network.sam2_branch.training_window = From(starts)
    return network


def share(rank: int, values: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What process `rank` of two gets of a batch: the first one gets more of an odd number, as in nnU-Net."""
    volume, target = (parts.tensor_split(2)[rank] for parts in values)
    return volume, target


def loss_of(
    network: nn.Module,
    volume: torch.Tensor,
    target: torch.Tensor,
    ddp: bool,
    batch_dice: bool,
    sample_weight: float = 1.0,
) -> torch.Tensor:
    segmentation = WeightedBCEDiceLoss(3, region_based=True, batch_dice=batch_dice, ddp=ddp)
    return AutoSAM2Loss(segmentation, sample_weight=sample_weight)(network(volume), target)


def train(rank: int, mode: str) -> AutoSAM2:
    """Two steps, with other weights at first and other data in each process.

    Torch refuses the second where the first has left a parameter without a gradient.
    """
    network = make(rank, mode)
    parallel = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW([p for p in parallel.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        volume, target = share(rank, batch(step))
        optimizer.zero_grad()
        loss_of(parallel, volume, target, ddp=True, batch_dice=True).backward()
        optimizer.step()
    return network


def first_step(rank: int, mode: str, batch_dice: bool, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, as the mean of the two processes, and gradients of what trains."""
    network = with_windows(make(0, mode), starts(size, mode).tensor_split(2)[rank])
    parallel = DistributedDataParallel(network)
    volume, target = share(rank, batch(0, size))
    weight = sample_weight_of(len(volume), 2, size)
    loss = loss_of(parallel, volume, target, ddp=True, batch_dice=batch_dice, sample_weight=weight)
    loss.backward()
    mean = loss.detach()
    torch.distributed.all_reduce(mean)
    return mean / 2, gradients(network)


def gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])


def gather(network: AutoSAM2) -> list[torch.Tensor]:
    """What trains, of both processes."""
    trained = torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad])
    both = [torch.empty_like(trained) for _ in range(2)]
    torch.distributed.all_gather(both, trained)
    return both


JOINT = [
    ("hybrid", True, 3),
    ("hybrid", False, 2),
    ("UNet only", False, 3),
    ("SAM2 only", True, 2),
    *(("features on a window", batch_dice, 3) for batch_dice in (True, False)),
]
"""Mode, whether the Dice is the batch's, and the size of the batch, which two processes share evenly or not"""


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_two_processes_stay_identical_and_compute_what_one_does(tmp_path):
    other = subprocess.Popen([sys.executable, __file__, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    join(0, tmp_path)
    try:
        for mode in MODES:
            network = train(0, mode)
            assert torch.equal(*gather(network)), mode
        for mode, batch_dice, size in JOINT:
            loss, gradient = first_step(0, mode, batch_dice, size)
            network = with_windows(make(0, mode), starts(size, mode))
            joint = loss_of(network, *batch(0, size), ddp=False, batch_dice=batch_dice)
            joint.backward()
            torch.testing.assert_close(loss, joint.detach(), rtol=0, atol=1e-5)
            torch.testing.assert_close(gradient, gradients(network), rtol=1e-3, atol=1e-5)
    finally:
        torch.distributed.destroy_process_group()
        code = other.wait(timeout=120)
    assert code == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    join(1, sys.argv[1])
    for mode in MODES:
        gather(train(1, mode))
    for mode, batch_dice, size in JOINT:
        first_step(1, mode, batch_dice, size)
    torch.distributed.destroy_process_group()
