"""Simulated trainings stop where the trainer stops them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from nnunet_autosam2.trainers.early_stopping import EarlyStopping

PROGRAM = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "early_stopping.py"))
"""By its path: `experiments` is a folder of the tests as well"""
CEILING, Learner, counts_from, learn, nnunet_average, onecycle, stop = (
    PROGRAM[name] for name in ("CEILING", "Learner", "counts_from", "learn", "nnunet_average", "onecycle", "stop")
)


def one_by_one(history: list[float], rule: EarlyStopping) -> tuple[int, int]:
    """Epochs that run, and the one whose weights are kept."""
    for epochs in range(1, len(history)):
        if rule.should_stop(history[:epochs]):
            return epochs, int(np.argmax(history[:epochs]))
    return len(history), len(history) - 1


@pytest.mark.parametrize("patience", [1, 4, 10])
@pytest.mark.parametrize("first", [0, 5, 30])
def test_stops_as_the_trainer(patience: int, first: int):
    averages = nnunet_average(np.random.default_rng(patience).random((20, 40)).round(1))
    stopped = stop(averages, patience, first)
    rule = EarlyStopping(patience, first)
    expected = [one_by_one(history, rule) for history in averages.tolist()]
    assert list(zip(stopped.epochs, stopped.chosen, strict=True)) == expected
    assert len({epochs for epochs, _ in expected}) > 1 or first + patience >= 40


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_counts_from_where_the_schedule_has_fallen(share: float):
    shares = onecycle(50)
    first = counts_from(shares, share)
    assert shares[first] < share <= shares[first - 1]


def test_counted_from_the_end_of_the_warm_up_before():
    assert counts_from(onecycle(1000), None) == 301


def test_annealing_gains_what_it_is_told_to():
    shares = onecycle(300)
    dice = learn(shares, Learner(0.8, lambda length: 5), gain=0.03)
    assert dice[0] == pytest.approx(CEILING - 0.8 * np.exp(-0.04 / 5) - 0.03 * 0.04)
    assert dice[-1] - dice[shares.argmax()] == pytest.approx(0.03, abs=1e-3)
