"""From which learning rate on should early stopping count? Simulated trainings, and the histories of real ones.

Patience counts once OneCycle's learning rate has fallen below a share of its peak. For each share: at which share of
the peak trainings end, how much Dice that costs beside running to the end, and how many epochs it saves.

The simulation is a guess at how networks learn. What is left to learn decays in proportion to the learning rate.
Weights that are still being thrown about cost Dice in proportion to it, as in a quadratic bowl, which is what annealing
gains. Validation adds noise that is independent from epoch to epoch. nnU-Net averages, and the project's rule stops.

With CHECKPOINTs of trainings that ran to their end, nothing is simulated: each rule is applied to the pseudo Dice in
nnU-Net's log.

Usage: python -m experiments.early_stopping [--seeds 200] [--patience 10] [CHECKPOINT...]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch.optim import SGD

from experiments.report import table
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint
from nnunet_autosam2.trainers.early_stopping import defined_ema
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR

LENGTHS = (50, 100, 300, 1000)
"""Epochs"""
NOISES = (0.005, 0.01, 0.02)
"""Standard deviation of an epoch's pseudo Dice"""
GAINS = (0.01, 0.03)
"""Dice that annealing from the peak to zero gains"""
SHARES = (None, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.02)
"""Of the peak; None: from the end of the warm-up on"""
AROUND = 2
"""Epochs before and after one, whose mean is taken for its Dice in a real history"""
ITERATIONS = 250
LEGEND = """Epochs that run at least; share of the peak at the end, median (highest);
epochs saved; Dice lost, mean (worst setting)."""
CEILING = 0.9
"""Dice of the best weights"""


class Learner(NamedTuple):
    left: float
    """Dice that is left to learn at the start"""
    pace: Callable[[int], float]
    """Epochs at the peak in which that falls to 1/e, by the number of epochs"""


LEARNERS = (
    Learner(0.8, lambda length: 5),
    Learner(0.8, lambda length: length / 10),
    Learner(0.02, lambda length: length / 10),  # trained before
)


class Stopped(NamedTuple):
    """What a rule does to several trainings of one length."""

    epochs: np.ndarray
    """[S], that have run"""
    chosen: np.ndarray
    """[S], epoch whose weights are kept: the best one of a training that is stopped, otherwise the last"""


@click.command()
@click.argument("checkpoints", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seeds", type=click.IntRange(1), default=200, show_default=True, help="Trainings of a setting.")
@click.option("--patience", type=click.IntRange(1), default=10, show_default=True, help="Epochs.")
def main(checkpoints: tuple[Path, ...], seeds: int, patience: int) -> None:
    """Print what early stopping costs and saves, by the share of the peak below which it counts."""
    if not checkpoints:
        report_simulation(seeds, patience)
    for path in checkpoints:
        report_history(path, patience)


def onecycle(length: int) -> np.ndarray:
    """[length], learning rate of each epoch as a share of the peak."""
    schedule = IterationOneCycleLR(SGD([torch.zeros(1)], lr=1.0), 1.0, length, ITERATIONS)
    return np.array(schedule.shares_of_peak())


def learn(shares: np.ndarray, learner: Learner, gain: float) -> np.ndarray:
    """[N], Dice after each epoch, without noise."""
    left = learner.left * np.exp(-np.cumsum(shares) / learner.pace(len(shares)))
    return CEILING - left - gain * shares


def nnunet_average(pseudo_dice: np.ndarray) -> np.ndarray:
    """[S, N], of the same."""
    return np.array([defined_ema(each) for each in pseudo_dice.tolist()])


def counts_from(shares: np.ndarray, share: float | None) -> int:
    """First epoch that is counted."""
    if share is None:
        return int(shares.argmax()) + 1
    return int(np.flatnonzero(shares >= share)[-1]) + 1


def stop(averages: np.ndarray, patience: int, first: int) -> Stopped:
    """EarlyStopping on several histories at once.

    Args:
        averages: [S, N].
        first: epoch that is counted.
    """
    trainings, length = averages.shape
    epochs = np.arange(length)
    before = np.maximum.accumulate(averages, axis=1)[:, :-1]
    improved = np.concatenate([np.ones((trainings, 1), bool), averages[:, 1:] > before], axis=1)
    best = np.maximum.accumulate(np.where(improved, epochs, 0), axis=1)
    exhausted = epochs - np.maximum(best, first - 1) >= patience
    exhausted[:, -1] = True
    last = exhausted.argmax(axis=1)
    chosen = np.where(last < length - 1, best[np.arange(trainings), last], length - 1)
    return Stopped(last + 1, chosen)


def report_simulation(seeds: int, patience: int) -> None:
    settings = list(product(LEARNERS, NOISES, GAINS))
    click.echo(f"{len(settings)} settings of {seeds} trainings, patience {patience}. {LEGEND}\n")
    columns = [simulate(length, settings, seeds, patience) for length in LENGTHS]
    header = ["counts below", *(f"{length} epochs" for length in LENGTHS)]
    rows = [[named(share), *cells] for share, *cells in zip(SHARES, *columns, strict=True)]
    click.echo("\n".join(table(header, rows)))


def simulate(length: int, settings: Sequence[tuple[Learner, float, float]], seeds: int, patience: int) -> list[str]:
    """Cell of each share."""
    shares = onecycle(length)
    dices = np.array([learn(shares, learner, gain) for learner, _, gain in settings])
    noises = np.array([noise for _, noise, _ in settings])[:, None, None]
    drawn = np.random.default_rng(length).standard_normal((len(settings), seeds, length))
    averages = nnunet_average((dices[:, None] + noises * drawn).reshape(-1, length))
    cells = []
    for share in SHARES:
        first = counts_from(shares, share)
        epochs, chosen = (each.reshape(len(settings), seeds) for each in stop(averages, patience, first))
        ends = shares[epochs - 1]
        saved = 1 - epochs.mean() / length
        lost = (dices[:, -1:] - np.take_along_axis(dices, chosen, axis=1)).mean(axis=1)
        cells.append(
            f"≥ {min(first + patience, length)}; at {np.median(ends):.2f} ({ends.max():.2f}); {saved:.0%}; "
            f"{lost.mean():.4f} ({lost.max():.4f})"
        )
    return cells


def report_history(path: Path, patience: int) -> None:
    log = read_nnunet_checkpoint(path)["logging"]
    pseudo_dice, shares = np.array(log["mean_fg_dice"]), np.array(log["lrs"]) / max(log["lrs"])
    length = len(pseudo_dice)
    averages = nnunet_average(pseudo_dice[None])
    smooth = np.array([pseudo_dice[max(0, i - AROUND) : i + AROUND + 1].mean() for i in range(length)])
    noise = np.diff(pseudo_dice, 2)[length // 2 :].std() / 6**0.5
    click.echo(f"\n{path}: {length} epochs, patience {patience}, noise of an epoch in the second half {noise:.3f}\n")
    rows = []
    for share in SHARES:
        stopped = stop(averages, patience, counts_from(shares, share))
        epochs, chosen = int(stopped.epochs[0]), int(stopped.chosen[0])
        at_end, lost = shares[epochs - 1], smooth[-1] - smooth[chosen]
        rows.append([named(share), f"{epochs}", f"{at_end:.2f}", f"{chosen}", f"{smooth[chosen]:.3f}", f"{lost:.3f}"])
    header = ["counts below", "epochs run", "ends at", "keeps epoch", "its pseudo Dice", "lost"]
    click.echo("\n".join(table(header, rows)))


def named(share: float | None) -> str:
    return "end of warm-up" if share is None else f"{share:g}"


if __name__ == "__main__":
    main()
