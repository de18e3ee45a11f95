import pytest
import torch

from nnunet_autosam2.architectures.log_odds import one_versus_rest

C = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_one_versus_rest_is_the_softmax_as_a_sigmoid():
    logits = 3 * torch.randn(2, C, 4, 6, 5, dtype=torch.double)
    torch.testing.assert_close(one_versus_rest(logits).sigmoid(), logits.softmax(1))
    ties = torch.zeros(1, C, 2)
    torch.testing.assert_close(one_versus_rest(ties).sigmoid(), ties.softmax(1))


@pytest.mark.parametrize("difference", [0.0, 1e-3, 20.0, 200.0, 2e4])
def test_one_versus_rest_of_two_classes_is_their_difference(difference):
    logits = torch.tensor([[difference, 0.0]])
    torch.testing.assert_close(one_versus_rest(logits), torch.tensor([[difference, -difference]]))


def test_one_versus_rest_has_the_right_gradient():
    logits = torch.randn(2, C, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(one_versus_rest, logits)
