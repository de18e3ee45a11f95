"""Batches that all arms of an experiment share: augmented once, by many processes, and stored.

Usage: python -m experiments.stored_batches DATASET PLANS CONFIGURATION FOLD FOLDER [--train 1000] [--val 10] [--seed 0]
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.run.run_training import get_trainer_from_args
from torch import Tensor
from tqdm import tqdm

from nnunet_autosam2.support.staging import replaced_file

PARTS = ("train", "val")
PATIENCE = 300
"""Seconds that a training waits for its next batch"""


class StoredBatches(Iterator[dict[str, Any]]):
    """The batches of a folder in their order, from `next_batch` on; waits for those that are still to come.

    Args:
        folder: of a part of PARTS.
        scales: nnU-Net's, of the targets under deep supervision; None: the target itself.

    Raises:
        TimeoutError: a batch has not come.
    """

    def __init__(self, folder: Path, scales: Sequence[Sequence[float]] | None) -> None:
        self.folder, self.next_batch = folder, 0
        self.downsampled = None if scales is None else DownsampleSegForDSTransform(scales)

    def __next__(self) -> dict[str, Any]:
        batch = torch.load(self._when_there(batch_file(self.folder, self.next_batch)), weights_only=True)
        self.next_batch += 1
        target: Tensor = batch["target"].to(torch.int16)
        return {"data": batch["data"].float(), "target": self._at_scales(target)}

    def _at_scales(self, target: Tensor) -> Tensor | list[Tensor]:
        if self.downsampled is None:
            return target
        samples = [self.downsampled(segmentation=sample)["segmentation"] for sample in target]
        return [torch.stack(scale) for scale in zip(*samples, strict=True)]

    @staticmethod
    def _when_there(path: Path) -> Path:
        end = time.monotonic() + PATIENCE
        while not path.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{path} has not come within {PATIENCE} s.")
            time.sleep(0.01)
        return path


def batch_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.pt"


def write_batch(path: Path, data: Tensor, target: Tensor) -> None:
    """Data in float16, the target at full resolution; the file is there once it is whole."""
    with replaced_file(path) as temporary:
        torch.save({"data": data.half(), "target": target.to(torch.int8)}, temporary)


class Maker:
    """Makes batches of a fold, each of which depends on its number and the seed alone."""

    def __init__(self, dataset: str, plans: str, configuration: str, fold: int, folder: Path, seed: int) -> None:
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (nnU-Net's spelling)
        torch.set_num_threads(1)
        trainer = get_trainer_from_args(
            dataset, configuration, fold, plans_identifier=plans, device=torch.device("cpu"), continue_training=False
        )
        trainer.initialize()
        self.loaders = dict(zip(PARTS, trainer.get_dataloaders(), strict=True))
        self.folder, self.seed = folder, seed

    def make(self, part: str, number: int) -> None:
        path = batch_file(self.folder / part, number)
        if path.exists():
            return
        seed = np.random.SeedSequence([self.seed, PARTS.index(part), number]).generate_state(1)[0]
        np.random.seed(seed)
        torch.manual_seed(int(seed))
        batch = next(self.loaders[part])
        write_batch(path, batch["data"], batch["target"][0])


maker: Maker


def _begin(*arguments: Any) -> None:
    global maker
    maker = Maker(*arguments)


def _make(part: str, number: int) -> None:
    maker.make(part, number)


@click.command()
@click.argument("dataset")
@click.argument("plans")
@click.argument("configuration")
@click.argument("fold", type=int)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--train", default=1000, show_default=True, help="Batches.")
@click.option("--val", default=10, show_default=True, help="Batches.")
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", default=os.cpu_count(), show_default=True)
def main(
    dataset: str,
    plans: str,
    configuration: str,
    fold: int,
    folder: Path,
    train: int,
    val: int,
    seed: int,
    processes: int,
) -> None:
    """Make the batches of FOLD below FOLDER, but for those that are there."""
    for part in PARTS:
        (folder / part).mkdir(parents=True, exist_ok=True)
    arguments = (dataset, plans, configuration, fold, folder, seed)
    with ProcessPoolExecutor(processes, initializer=_begin, initargs=arguments) as pool:
        made = [pool.submit(_make, "val", number) for number in range(val)]
        made += [pool.submit(_make, "train", number) for number in range(train)]
        for each in tqdm(made, desc="batches"):
            each.result()


if __name__ == "__main__":
    main()
