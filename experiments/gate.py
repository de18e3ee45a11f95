"""Does the gate learn what SAM2 is worth? Its masks are replaced by noise and by the truth, on phantom data.

SAM2 itself never runs. Its predicted IoU and its object score are random, so that the gate cannot read off them what
the masks are worth. Exit code 1 unless noise costs next to nothing, truth gains at least half of what is left, and
masks of which half are noise do no harm.

A UNet trains alone, whatever is beside it. So all hybrids of a run share one, which is computed once a step.

With --closed, it goes on from its trained weights, beside closed gates, as with `backbone_checkpoint`.

Usage: python -m experiments.gate [--iterations 400] [--seeds 2] [--fusion gated --fusion convolutional] [--closed]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from nnunet_autosam2 import AutoSAM2, AutoSAM2Config
from nnunet_autosam2.architectures.backbone import Backbone, UNetOutput
from nnunet_autosam2.architectures.masks import SliceEmbeddings, SliceMasks
from nnunet_autosam2.architectures.parts import make_gate
from nnunet_autosam2.architectures.prompts import NOT_A_POINT, NUM_CORNERS, Prompts
from nnunet_autosam2.architectures.training_window import TrainingWindow
from nnunet_autosam2.config import Fusion
from nnunet_autosam2.dataset_conversion.phantom import MODALITIES, PhantomCase, make_case
from nnunet_autosam2.evaluation.numbering import NUMBERINGS
from nnunet_autosam2.trainers.loss import AutoSAM2Loss
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR

REGIONS = NUMBERINGS["brats2021"].regions
PHANTOM_SIZE = (40, 48, 48)
PATCH_SIZE = (32, 32, 32)
BATCH_SIZE = 2
CONFIDENCE = 8.0
"""Size of the logits in the place of SAM2's"""
BLOB = 8
"""Pixels"""
GAIN, SHARE = "Dice against UNet only", "gain, of what UNet only left"
WANTED_OF_NOISE, WANTED_OF_TRUTH = (GAIN, -0.01), (SHARE, 0.5)
"""What is measured, and how much of it there has to be at least"""

Masks = Callable[[Tensor], Tensor]
"""Truth [N, R, H, W], 0 or 1 → logits"""
Arm = tuple[Fusion, str]
"""A fusion and what stands for SAM2's masks"""


def white_noise(truth: Tensor) -> Tensor:
    return CONFIDENCE * torch.randn_like(truth)


def blobs(truth: Tensor) -> Tensor:
    """About one pixel in six is foreground."""
    noise = smooth_noise(truth, BLOB)
    return CONFIDENCE * (noise / noise.std() - 1)


def smooth_noise(like: Tensor, blob: int) -> Tensor:
    coarse = torch.randn(*like.shape[:2], *(side // blob for side in like.shape[2:]))
    return F.interpolate(coarse, size=like.shape[2:], mode="bicubic")


def perfect(truth: Tensor) -> Tensor:
    return CONFIDENCE * (2 * truth - 1)


def half_perfect(truth: Tensor) -> Tensor:
    """Blobs of noise on the other slices, drawn at random."""
    return torch.where(torch.rand(len(truth), 1, 1, 1) < 0.5, perfect(truth), blobs(truth))


def patchy(truth: Tensor) -> Tensor:
    """Blobs of noise in one half of each slice, in patches of twice their size."""
    return torch.where(smooth_noise(truth[:, :1], 2 * BLOB) < 0, perfect(truth), blobs(truth))


USELESS: dict[str, Masks] = {"white noise": white_noise, "blobs of noise": blobs}
MIXED: dict[str, Masks] = {"half noise, half truth": half_perfect, "noise in patches": patchy}
PERFECT: dict[str, Masks] = {"truth": perfect}
MASKS = {**USELESS, **MIXED, **PERFECT}


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
    """AutoSAM2 with `masks` in the place of SAM2's, and the UNet of another network.

    Set the UNet's output before each call. The volume has the truth behind its modalities.
    """

    unet_output: UNetOutput

    def __init__(self, masks: Masks, config: AutoSAM2Config, unet: Backbone, closed: bool) -> None:
        super().__init__(len(REGIONS), len(MODALITIES), config)
        self.image_channels = len(MODALITIES) + len(REGIONS)
        self.unet = unet
        if config.has_gate:
            self.fusion = make_gate(config, len(REGIONS), unet, closed)
        assert self.fusion is not None
        unet.gives_finest_features |= self.fusion.sees_features
        branch: Any = StandInBranch(masks)
        self.sam2_branch = branch

    def _run_unet(
        self, volume: Tensor, foreground: Tensor | None, size: Sequence[int], known: SliceEmbeddings | None, axis: int
    ) -> tuple[UNetOutput, None]:
        return self.unet_output, None


class StandInBranch(nn.Module):
    """Answers like SAM2Branch, with scores at random and `masks` of the truth, the last channels of the slices."""

    deep_supervision = False
    encoded_before = None

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.masks = masks
        self.training_window = TrainingWindow()

    def forward(
        self, slices: Tensor, features: Tensor, probabilities: Tensor, config: AutoSAM2Config, *_: None
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
@click.option(
    "--fusion",
    "fusions",
    type=click.Choice(["fixed", "gated", "convolutional"]),
    default=("gated",),
    multiple=True,
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--masks",
    "names",
    type=click.Choice(list(MASKS)),
    default=tuple(MASKS),
    multiple=True,
    help="In the place of SAM2's. May be repeated. Default: all.",
)
@click.option("--closed", is_flag=True, help="First a trained UNet, then as many iterations again from its weights.")
def main(
    iterations: int,
    seeds: int,
    cases: int,
    held_out: int,
    initial_lr: float,
    fusions: tuple[Fusion, ...],
    names: tuple[str, ...],
    closed: bool,
) -> None:
    torch.set_num_threads(1)
    phantoms = make_phantoms(cases + held_out)
    training, test = phantoms[:cases], phantoms[cases:]
    config = AutoSAM2Config(region_based=True, initial_lr=initial_lr)
    arms = {(fusion, name): (MASKS[name], config.updated({"fusion": fusion})) for fusion in fusions for name in names}
    columns = ("seed", "fusion", "SAM2's masks", *REGIONS, "mean", "on processed slices", "UNet only on these")
    click.echo(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    gains: dict[str, list[float]] = defaultdict(list)
    for seed in range(seeds):
        start = None
        if closed:
            start, _ = train({}, training, config, iterations, seed)
            click.echo(row(seed, "", "none, at the start", dice(predict(start, {}, test)[0], test)))
        unet, hybrids = train(arms, training, config, iterations, seed, start)
        unet_only, predictions = predict(unet, hybrids, test)
        baseline = dice(unet_only, test)
        click.echo(row(seed, "", "none", baseline))
        for (fusion, name), hybrid in predictions.items():
            scores = dice(hybrid, test)
            there, unet_there = (dice(each, test, hybrid).mean() for each in (hybrid, unet_only))
            click.echo(row(seed, fusion, name, scores, there, unet_there))
            gains[f"{fusion}, {name}: {GAIN}"].append(scores.mean() - baseline.mean())
            gains[f"{fusion}, {name}: {SHARE}"].append((there - unet_there) / (1 - unet_there))
    click.echo()
    passed = []
    for fusion, name in arms:
        what, least = WANTED_OF_TRUTH if name in PERFECT else WANTED_OF_NOISE
        passed.append(verdict(f"{fusion}, {name}: {what}", gains[f"{fusion}, {name}: {what}"], least))
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
    arms: Mapping[Arm, tuple[Masks, AutoSAM2Config]],
    cases: Sequence[Case],
    config: AutoSAM2Config,
    iterations: int,
    seed: int,
    start: AutoSAM2 | None = None,
) -> tuple[AutoSAM2, dict[Arm, StandIn]]:
    """The network without SAM2, and the hybrids on its UNet.

    The UNet's first weights and the patches depend on the seed alone, or the first weights are those of `start`. The
    UNet's outputs have their loss, and each gate its own: nothing else that a loss consists of trains anything here.
    """
    torch.manual_seed(seed)
    patches = np.random.default_rng(seed if start is None else (seed, 1))
    alone = AutoSAM2(len(REGIONS), len(MODALITIES), config, enable_sam2=False)
    if start is not None:
        alone.load_state_dict(start.state_dict())
    hybrids = {arm: StandIn(masks, its, alone.unet, start is not None) for arm, (masks, its) in arms.items()}
    loss = AutoSAM2Loss.for_network(alone)
    networks = nn.ModuleList([alone, *hybrids.values()])  # the UNet that they share has its parameters in it once
    optimizer = torch.optim.AdamW(networks.parameters(), config.initial_lr, weight_decay=config.weight_decay)
    schedule = IterationOneCycleLR(optimizer, config.initial_lr, 1, iterations)
    for network in (alone, *hybrids.values()):
        network.set_deep_supervision(True)
    for _ in trange(iterations, leave=False):
        batch = [random_patch(cases[int(patches.integers(len(cases)))], patches) for _ in range(BATCH_SIZE)]
        image, truth = (torch.stack(volumes) for volumes in zip(*batch, strict=True))
        unet = alone.unet(image)
        total = loss.deep_supervision(unet.logits, [truth[:, :, ::d, ::h, ::w] for d, h, w in alone.output_strides])
        for hybrid in hybrids.values():
            hybrid.unet_output = unet
            if hybrid.config.has_gate:
                total = total + loss.gate(hybrid(torch.cat([image, truth], dim=1)).fused, truth)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
    return alone, hybrids


def random_patch(case: Case, rng: np.random.Generator) -> Case:
    """Flipped at random."""
    corner = [rng.integers(have - want + 1) for have, want in zip(case.image.shape[1:], PATCH_SIZE, strict=True)]
    window = [slice(start, start + side) for start, side in zip(corner, PATCH_SIZE, strict=True)]
    flips = [axis for axis in (1, 2, 3) if rng.random() < 0.5]
    return Case(*(volume[(slice(None), *window)].flip(flips) for volume in case))


@torch.no_grad()
def predict(
    alone: AutoSAM2, hybrids: Mapping[Arm, StandIn], cases: Sequence[Case]
) -> tuple[list[Prediction], dict[Arm, list[Prediction]]]:
    """Without SAM2, and those of the hybrids."""
    for network in (alone, *hybrids.values()):
        network.eval().set_deep_supervision(False)
    without: list[Prediction] = []
    predictions: dict[Arm, list[Prediction]] = {arm: [] for arm in hybrids}
    for case in cases:
        image = case.image[None]
        without.append(Prediction(alone(image)[0] > 0, torch.zeros(image.shape[2], dtype=torch.bool)))
        unet = alone.unet(alone.unet.padded(image))
        for arm, hybrid in hybrids.items():
            hybrid.unet_output = unet
            logits, sam2 = hybrid(torch.cat(case)[None], return_sam2=True)
            processed = sam2.masks.covered & (sam2.masks.distance == 0)
            predictions[arm].append(Prediction(logits[0] > 0, processed[0]))
    return without, predictions


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


def row(seed: int, fusion: str, name: str, scores: np.ndarray, *others: float) -> str:
    cells = [f"{score:.3f}" for score in (*scores, scores.mean(), *others)] + [""] * (2 - len(others))
    return f"| {seed} | {fusion} | {name} | {' | '.join(cells)} |"


def verdict(what: str, values: Sequence[float], least: float) -> bool:
    """Print and return whether the mean over seeds passes."""
    passed = bool(np.mean(values) >= least)
    seeds = ", ".join(f"{value:+.3f}" for value in values)
    click.echo(f"{'PASS' if passed else 'FAIL'}: {what} {np.mean(values):+.3f} ({seeds}), at least {least:+.2f}")
    return passed


if __name__ == "__main__":
    main()
