import copy

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from nnunet_autosam2.trainers.early_stopping import ANNEALED
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR

pytestmark = pytest.mark.filterwarnings("error")

EPOCHS, ITERATIONS = 10, 7


def adamw(num_groups: int = 1) -> Optimizer:
    return AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(num_groups)], lr=1e-4)


def state(optimizer: Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["betas"][0]) for group in optimizer.param_groups]


def oracle(max_lr, num_groups: int = 1, epochs: int = EPOCHS, iterations: int = ITERATIONS):
    """LR and beta1 of torch's own schedule, for every iteration of the run."""
    optimizer = adamw(num_groups)
    schedule = OneCycleLR(optimizer, max_lr, epochs=epochs, steps_per_epoch=iterations)
    states = [state(optimizer)]
    for _ in range(epochs * iterations - 1):
        optimizer.step()
        schedule.step()
        states.append(state(optimizer))
    return states


def train_epoch(optimizer: Optimizer, schedule: IterationOneCycleLR, epoch: int, iterations: int = ITERATIONS):
    """The states in which the optimizer steps, in nnU-Net's order of calls."""
    schedule.step(epoch)
    states = []
    for _ in range(iterations):
        states.append(state(optimizer))
        optimizer.step()
        schedule.step()
    return states


@pytest.mark.parametrize(("max_lr", "num_groups"), [(1e-4, 1), ([1e-4, 1e-5, 3e-4], 3)])
@pytest.mark.parametrize(("epochs", "iterations"), [(EPOCHS, ITERATIONS), (1, 1), (1, 2), (2, 5), (3, 1)])
def test_equals_torch_step_by_step(max_lr, num_groups, epochs, iterations):
    optimizer = adamw(num_groups)
    schedule = IterationOneCycleLR(optimizer, max_lr, epochs, iterations)
    states = [s for epoch in range(epochs) for s in train_epoch(optimizer, schedule, epoch, iterations)]
    assert states == oracle(max_lr, num_groups, epochs, iterations)


@pytest.mark.parametrize("last_epoch", [0, 2, 5, 9])
def test_resumes_on_the_same_curve(last_epoch):
    """nnU-Net builds optimizer and schedule anew, then loads the optimizer's state."""
    optimizer = adamw(2)
    schedule = IterationOneCycleLR(optimizer, 1e-4, EPOCHS, ITERATIONS)
    states = [s for epoch in range(last_epoch) for s in train_epoch(optimizer, schedule, epoch)]

    resumed = adamw(2)
    resumed_schedule = IterationOneCycleLR(resumed, 1e-4, EPOCHS, ITERATIONS)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    states += [s for epoch in range(last_epoch, EPOCHS) for s in train_epoch(resumed, resumed_schedule, epoch)]
    assert states == oracle(1e-4, 2)


def test_an_epoch_can_be_entered_again():
    optimizer = adamw()
    schedule = IterationOneCycleLR(optimizer, 1e-4, EPOCHS, ITERATIONS)
    expected = oracle(1e-4)
    for epoch in (0, 8, 3, 3, 9, 0):
        states = train_epoch(optimizer, schedule, epoch)
        assert states == expected[epoch * ITERATIONS : (epoch + 1) * ITERATIONS]
    assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_stays_at_the_end_after_the_last_iteration():
    optimizer = adamw()
    schedule = IterationOneCycleLR(optimizer, 1e-4, EPOCHS, ITERATIONS)
    train_epoch(optimizer, schedule, EPOCHS - 1)
    last = oracle(1e-4)[-1]
    for _ in range(3):
        schedule.step()
        assert state(optimizer) == last
    schedule.step(EPOCHS + 4)
    assert state(optimizer) == last


@pytest.mark.parametrize(("epochs", "iterations"), [(1, 1), (2, 5), (5, 16), (10, 4), (40, 1), (101, 7)])
def test_shares_of_the_peak_are_torchs(epochs, iterations):
    schedule = IterationOneCycleLR(adamw(2), [3e-4, 1e-4], epochs, iterations)
    starts = oracle(3e-4, 1, epochs, iterations)[::iterations]
    assert schedule.shares_of_peak() == pytest.approx([states[0][0] / 3e-4 for states in starts])
    assert schedule.last_epoch == 0, "it has not moved itself"


@pytest.mark.parametrize("share", [0.75, 0.25, ANNEALED])
@pytest.mark.parametrize("epochs", [2, 5, 10, 50, 100])
def test_patience_counts_from_the_last_time_that_the_rate_falls_below_a_share(epochs, share):
    rates = [states[0][0] / 1e-4 for states in oracle(1e-4, 1, epochs, 20)]
    annealed = IterationOneCycleLR(adamw(), 1e-4, epochs, 20).epochs_until_below(share)
    assert max(rates[annealed * 20 :], default=0) < share
    assert rates[(annealed - 1) * 20] >= share


@pytest.mark.parametrize(("epochs", "annealed"), [(5, 5), (10, 9), (15, 13), (50, 43), (100, 86), (1000, 857)])
def test_the_documented_numbers_of_epochs(epochs, annealed):
    assert IterationOneCycleLR(adamw(), 1e-4, epochs, 250).epochs_until_below(ANNEALED) == annealed


def test_momentum_cycles_as_in_torch_without_betas():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = IterationOneCycleLR(optimizer, 0.1, EPOCHS, ITERATIONS)
    schedule.step(0)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)
    schedule.step(3)
    assert optimizer.param_groups[0]["momentum"] < 0.86
