"""nnU-Net's training in two processes, as with `-num_gpus 2`, on CPUs: by gloo in the place of NCCL.

Usage: python two_processes.py DATASET CONFIGURATION FOLD TRAINER [--val]
"""

import os
import sys

import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from torch.nn.parallel import DistributedDataParallel

dataset, configuration, fold, trainer, *flags = sys.argv[1:]
torch.set_num_threads(1)
torch.cuda.set_device = lambda device: None
trainer_module.DDP = lambda network, device_ids: DistributedDataParallel(network)
run_training.setup_ddp = lambda rank, world_size: torch.distributed.init_process_group(
    "gloo", rank=rank, world_size=world_size
)


def run(rank: int, port: int) -> None:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    names = (dataset, configuration, int(fold), trainer, "nnUNetPlans")
    options = {"disable_checkpointing": False, "c": False, "val": "--val" in flags, "pretrained_weights": None}
    run_training.run_ddp(rank, *names, **options, npz=False, val_with_best=False, world_size=2)


if __name__ == "__main__":  # both processes, and nnU-Net's workers in them, import this file
    torch.multiprocessing.spawn(run, args=(run_training.find_free_network_port(),), nprocs=2)
