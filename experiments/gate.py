"""Does the gate learn what SAM2 is worth? Its masks are replaced by noise and by the truth, on phantom data.

SAM2 itself never runs. Its predicted IoU and its object score are random, so that the gate cannot read off them what
the masks are worth. Exit code 1 unless noise costs next to nothing, truth gains at least half of what is left, and
masks of which half are noise do no harm.

With --closed, the networks go on from the trained UNet with a closed gate, as with `backbone_checkpoint`.

Usage: python -m experiments.gate [--iterations 400] [--seeds 2] [--closed]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from nnunet_autosam2 import AutoSAM2, AutoSAM2Config
from nnunet_autosam2.architectures.backbone import UNetOutput
from nnunet_autosam2.architectures.fusion import GatedFusion
from nnunet_autosam2.architectures.masks import SampleMasks, SliceEmbeddings, SliceMasks, VolumeMasks
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, NUM_CORNERS, Prompts
from nnunet_autosam2.architectures.sam2.volume import segment_volume
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import Fusion
from nnunet_autosam2.dataset_conversion.phantom import MODALITIES, PhantomCase, make_case
from nnunet_autosam2.evaluation.numbering import NUMBERINGS
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR

REGIONS = NUMBERINGS["brats2021"].regions
PHANTOM_SIZE = (40, 48, 48)
PATCH_SIZE = (32, 32, 32)
BATCH_SIZE = 2
CONFIDENCE = 8.0
"""Size of the logits in the place of SAM2's"""
BLOB = 8
"""Pixels"""
TOLERANCE = 0.01
LEAST_GAIN = 0.5

Masks = Callable[[Tensor], Tensor]
"""Truth [N, R, H, W], 0 or 1 → logits"""


def white_noise(truth: Tensor) -> Tensor:
    return CONFIDENCE * torch.randn_like(truth)


def blobs(truth: Tensor) -> Tensor:
    """About one pixel in six is foreground."""
    coarse = torch.randn(*truth.shape[:2], *(side // BLOB for side in truth.shape[2:]))
    noise = F.interpolate(coarse, size=truth.shape[2:], mode="bicubic")
    return CONFIDENCE * (noise / noise.std() - 1)


def perfect(truth: Tensor) -> Tensor:
    return CONFIDENCE * (2 * truth - 1)


def half_perfect(truth: Tensor) -> Tensor:
    """Blobs of noise on the other slices, drawn at random."""
    return torch.where(torch.rand(len(truth), 1, 1, 1) < 0.5, perfect(truth), blobs(truth))


USELESS: dict[str, Masks] = {"white noise": white_noise, "blobs of noise": blobs}
MIXED: dict[str, Masks] = {"half noise, half truth": half_perfect}
PERFECT: dict[str, Masks] = {"truth": perfect}


class Case(NamedTuple):
    image: Tensor
    """[4, D, H, W], z-scores"""
    truth: Tensor
    """[3, D, H, W], 0 or 1"""


class Prediction(NamedTuple):
    foreground: Tensor
    """[3, D, H, W], bool"""
    processed: Tensor
    """[D], SAM2 was asked about this slice"""


class StandIn(AutoSAM2):
    """AutoSAM2 with `masks` in the place of SAM2's, or without SAM2. Set `truth` [B, 3, D, H, W] before each call."""

    truth: Tensor

    def __init__(self, masks: Masks | None, config: AutoSAM2Config) -> None:
        super().__init__(len(REGIONS), len(MODALITIES), config.updated({"enable_sam2": masks is not None}))
        self.sam2_branch = None
        self.masks = masks
        self.training_window = TrainingWindow()
        self.processed = torch.zeros(1, 0, dtype=torch.bool)

    def _segment_with_sam2(
        self,
        volume: Tensor,
        unet: UNetOutput,
        foreground: Tensor,
        size: Sequence[int],
        known: SliceEmbeddings | None,
    ) -> tuple[SampleMasks, VolumeMasks]:
        assert self.masks is not None
        branch: Any = StandInBranch(self.masks, self.training_window).train(self.training)
        with_truth = torch.cat([volume, self.unet.padded(self.truth)], dim=1)
        masks, volume_masks = segment_volume(branch, with_truth, unet, foreground, size, self.config, track=False)
        self.processed = torch.zeros(len(volume), size[0], dtype=torch.bool).scatter(1, masks.slices, masks.prompted)
        return masks, volume_masks


class StandInBranch(nn.Module):
    """Answers like SAM2Branch, with scores at random and `masks` of the truth, the last channels of the slices."""

    def __init__(self, masks: Masks, training_window: TrainingWindow) -> None:
        super().__init__()
        self.masks = masks
        self.training_window = training_window

    def forward(
        self, slices: Tensor, features: Tensor, probabilities: Tensor, config: AutoSAM2Config, embeddings: None
    ) -> tuple[SliceMasks, Prompts, None]:
        truth, scores = slices[:, -len(REGIONS) :], slices.new_empty(len(slices), len(REGIONS))
        masks = SliceMasks(self.masks(truth), torch.rand_like(scores), torch.randn_like(scores), scores[..., None])
        count = NUM_CORNERS + config.num_positive_points + config.num_negative_points
        labels = torch.full((*scores.shape, count), NOT_A_POINT, dtype=torch.int32)
        return masks, Prompts(scores.new_zeros(*labels.shape, 2), labels), None

    def require_weights(self, config: AutoSAM2Config) -> None:
        """Needs none."""


@click.command()
@click.option("--iterations", default=400, show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--cases", default=16, show_default=True, help="To train on.")
@click.option("--held-out", default=8, show_default=True, help="Cases to test on, beside these.")
@click.option("--initial-lr", default=1e-3, show_default=True)
@click.option("--fusion", type=click.Choice(["fixed", "gated"]), default="gated", show_default=True)
@click.option("--closed", is_flag=True, help="First a trained UNet, then as many iterations again from its weights.")
def main(
    iterations: int, seeds: int, cases: int, held_out: int, initial_lr: float, fusion: Fusion, closed: bool
) -> None:
    torch.set_num_threads(1)
    phantoms = make_phantoms(cases + held_out)
    training, test = phantoms[:cases], phantoms[cases:]
    config = AutoSAM2Config(region_based=True, initial_lr=initial_lr, fusion=fusion)
    columns = ("seed", "SAM2's masks", *REGIONS, "mean", "its UNet alone", "on processed slices", "UNet only on these")
    click.echo(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    gains: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        start = None
        if closed:
            start = train(None, training, config, iterations, seed)
            click.echo(row(seed, "none, at the start", dice(predict(start, test), test)))
        unet_only = predict(train(None, training, config, iterations, seed, start), test)
        baseline = dice(unet_only, test)
        click.echo(row(seed, "none", baseline))
        for name, masks in {**USELESS, **MIXED, **PERFECT}.items():
            network = train(masks, training, config, iterations, seed, start)
            hybrid = predict(network, test)
            network.set_mode(enable_sam2=False)
            scores, alone = dice(hybrid, test), dice(predict(network, test), test).mean()
            there, unet_there = (dice(predictions, test, hybrid).mean() for predictions in (hybrid, unet_only))
            click.echo(row(seed, name, scores, alone, there, unet_there))
            gains[f"{name}: Dice against UNet only"].append(scores.mean() - baseline.mean())
            gains[f"{name}: Dice against its UNet alone"].append(scores.mean() - alone)
            gains[f"{name}: gain, of what UNet only left"].append((there - unet_there) / (1 - unet_there))
    click.echo()
    least = {
        **{f"{name}: Dice against UNet only": -TOLERANCE for name in USELESS},
        **{f"{name}: Dice against its UNet alone": -TOLERANCE for name in (*USELESS, *MIXED)},
        **{f"{name}: gain, of what UNet only left": LEAST_GAIN for name in PERFECT},
    }
    passed = [verdict(what, gains[what], bound) for what, bound in least.items()]
    sys.exit(0 if all(passed) else 1)


def make_phantoms(count: int) -> list[Case]:
    """The cases of `autosam2 make-phantom`."""
    return [to_case(make_case(PHANTOM_SIZE, np.random.default_rng([0, number]))) for number in range(1, count + 1)]


def to_case(phantom: PhantomCase) -> Case:
    truth = np.stack([np.isin(phantom.segmentation, labels) for labels in REGIONS.values()])
    image = np.stack([z_score(phantom.images[modality]) for modality in MODALITIES])
    return Case(torch.from_numpy(image).float(), torch.from_numpy(truth).float())


def z_score(image: np.ndarray) -> np.ndarray:
    """Within the brain, 0 outside of it."""
    brain = image[image > 0]
    return np.where(image > 0, (image - brain.mean()) / brain.std(), 0)


def train(
    masks: Masks | None,
    cases: Sequence[Case],
    config: AutoSAM2Config,
    iterations: int,
    seed: int,
    start: StandIn | None = None,
) -> StandIn:
    """The UNet's first weights and the patches depend on the seed alone, or the first weights are those of `start`."""
    torch.manual_seed(seed)
    patches = np.random.default_rng(seed if start is None else (seed, 1))
    network = StandIn(masks, config)
    if start is not None:
        network.unet.load_state_dict(start.unet.state_dict())
        if masks is not None:
            network.fusion = GatedFusion(len(REGIONS), closed=True)
    network.set_deep_supervision(True)
    segmentation = WeightedBCEDiceLoss(
        len(REGIONS), region_based=True, bce_weight=config.bce_weight, dice_weight=config.dice_weight
    )
    loss = AutoSAM2Loss(segmentation, config.unet_loss_weight, config.sam2_loss_weight, config.fusion == "gated")
    optimizer = torch.optim.AdamW(network.parameters(), config.initial_lr, weight_decay=config.weight_decay)
    schedule = IterationOneCycleLR(optimizer, config.initial_lr, 1, iterations)
    for _ in trange(iterations, leave=False):
        batch = [random_patch(cases[int(patches.integers(len(cases)))], patches) for _ in range(BATCH_SIZE)]
        image, network.truth = (torch.stack(volumes) for volumes in zip(*batch, strict=True))
        targets = [network.truth[:, :, ::d, ::h, ::w] for d, h, w in network.output_strides]
        optimizer.zero_grad()
        loss(network(image), targets).backward()
        optimizer.step()
        schedule.step()
    return network


def random_patch(case: Case, rng: np.random.Generator) -> Case:
    """Flipped at random."""
    corner = [rng.integers(have - want + 1) for have, want in zip(case.image.shape[1:], PATCH_SIZE, strict=True)]
    window = [slice(start, start + side) for start, side in zip(corner, PATCH_SIZE, strict=True)]
    flips = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
    return Case(*(volume[(slice(None), *window)].flip(flips) for volume in case))


@torch.no_grad()
def predict(network: StandIn, cases: Sequence[Case]) -> list[Prediction]:
    network.eval()
    network.set_deep_supervision(False)
    predictions = []
    for case in cases:
        network.truth = case.truth[None]
        logits = network(case.image[None])
        predictions.append(Prediction(logits[0] > 0, network.processed[0, : logits.shape[2]]))
    return predictions


def dice(
    predictions: Sequence[Prediction], cases: Sequence[Case], on_slices_of: Sequence[Prediction] | None = None
) -> np.ndarray:
    """Mean over cases of each region, on all slices or on those that another network's SAM2 was asked about."""
    scores = []
    for i, (prediction, case) in enumerate(zip(predictions, cases, strict=True)):
        slices = slice(None) if on_slices_of is None else on_slices_of[i].processed
        found, true = prediction.foreground[:, slices], case.truth[:, slices] > 0
        total = found.sum((1, 2, 3)) + true.sum((1, 2, 3))
        scores.append(2 * (found & true).sum((1, 2, 3)) / total)
    return torch.stack(scores).mean(0).numpy()


def row(seed: int, name: str, scores: np.ndarray, *others: float) -> str:
    cells = [f"{score:.3f}" for score in (*scores, scores.mean(), *others)] + [""] * (3 - len(others))
    return f"| {seed} | {name} | {' | '.join(cells)} |"


def verdict(what: str, values: Sequence[float], least: float) -> bool:
    """Print and return whether the mean over seeds passes."""
    passed = bool(np.mean(values) >= least)
    seeds = ", ".join(f"{value:+.3f}" for value in values)
    click.echo(f"{'PASS' if passed else 'FAIL'}: {what} {np.mean(values):+.3f} ({seeds}), at least {least:+.2f}")
    return passed


if __name__ == "__main__":
    main()
