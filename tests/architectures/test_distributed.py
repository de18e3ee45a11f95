"""Distributed data parallel with two processes, as nnU-Net's: no parameter of the network may be unused."""

import os
import subprocess
import sys

import pytest

TRAINING = """
import sys
import warnings

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss

warnings.simplefilter("ignore")
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
modes = {"hybrid": {}, "UNet only": {"enable_sam2": False}, "SAM2 only": {"enable_unet_decoder": False}}
for mode, parameters in modes.items():
    torch.manual_seed(rank)  # other weights and other data in each process
    network = AutoSAM2(
        3, 1, region_based=True, sam2_image_size=64, sam2_checkpoint="random", sam2_chunk_size=2, **parameters
    )
    network.set_deep_supervision(True)
    ddp = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW([p for p in ddp.parameters() if p.requires_grad], lr=1e-3)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=True, batch_dice=True, ddp=True))
    before = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
    for _ in range(2):
        output = ddp(torch.randn(1, 1, 16, 32, 32))
        target = (torch.rand(1, 3, 16, 32, 32) > 0.7).float()
        targets = [F.interpolate(target, logits.shape[2:]) for logits in output.unet]
        optimizer.zero_grad()
        loss(output, targets).backward()
        optimizer.step()
    for name, parameter in network.named_parameters():
        both = [torch.empty_like(parameter) for _ in range(2)]
        torch.distributed.all_gather(both, parameter.detach())
        assert torch.equal(*both), f"{mode}: {name} differs between the processes"
    assert all(not torch.equal(before[name], p) for name, p in network.named_parameters() if name in before)
    print(mode, "done")
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file rendezvous")
def test_two_processes_stay_identical_in_every_mode(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (stdout, stderr) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, stderr
        assert stdout.splitlines() == ["hybrid done", "UNet only done", "SAM2 only done"]
