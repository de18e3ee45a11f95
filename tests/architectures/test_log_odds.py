import pytest
import torch

from nnunet_autosam2.architectures.log_odds import decisions, one_versus_rest, versus_rival

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


@pytest.mark.parametrize("classes", [2, 3, 21])
def test_a_class_is_above_its_rivals_where_it_is_the_decision(classes):
    logits = torch.randn(2, classes, 4, 6, 5)
    against = versus_rival(logits)
    assert torch.equal(against > 0, decisions(logits, region_based=False))
    p = logits.double().softmax(1)
    for c in range(classes):
        rival = p[:, [i for i in range(classes) if i != c]].amax(1)
        torch.testing.assert_close(against[:, c].sigmoid().double(), p[:, c] / (p[:, c] + rival), atol=1e-6, rtol=1e-5)
    if classes == 2:
        torch.testing.assert_close(against, one_versus_rest(logits), atol=1e-5, rtol=1e-5)
