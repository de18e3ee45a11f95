"""Against torch's AdamW, and against its GradScaler's rule that a step is skipped as a whole."""

import copy

import pytest
import torch

from nnunet_autosam2.errors import TrainingError
from nnunet_autosam2.trainers.finite_steps import MOST_IN_A_ROW, FiniteAdamW, SkippedSteps


def gradients(step: int, poison: float | None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    values = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    if poison is not None:
        values[1][2] = poison
    return values


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_leaves_no_trace(poison):
    ours = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(1))]
    theirs = copy.deepcopy(ours)
    optimizer, oracle = FiniteAdamW(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(6):
        poisoned = step in (0, 2, 3)
        for parameter, gradient in zip(ours, gradients(step, poison if poisoned else None), strict=False):
            parameter.grad = gradient
        optimizer.step()
        if not poisoned:
            for parameter, gradient in zip(theirs, gradients(step, None), strict=False):
                parameter.grad = gradient
            oracle.step()
    assert optimizer.num_taken == 3
    for parameter, expected in zip(ours, theirs, strict=True):
        assert torch.equal(parameter, expected)
    assert optimizer.state_dict()["state"].keys() == oracle.state_dict()["state"].keys()


def test_ten_in_a_row_are_too_many():
    steps = SkippedSteps()
    for _ in range(3):
        for _ in range(MOST_IN_A_ROW - 1):
            steps.add(taken=False)
        steps.add(taken=True)
    assert steps.total == 3 * (MOST_IN_A_ROW - 1)
    steps.reset()
    assert steps.total == 0
    for _ in range(MOST_IN_A_ROW - 1):
        steps.add(taken=False)
    with pytest.raises(TrainingError, match="10 steps in a row"):
        steps.add(taken=False)
