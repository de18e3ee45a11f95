import copy
import pickle

import pytest
import torch

from nnunet_autosam2.architectures.training_window import TrainingWindow, surroundings

SLICES = torch.tensor([[0, 1, 4, 9, 10, 12], [3, 5, 6, 7, 11, 15]])


def draws(seed: int, steps: int, count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    window = TrainingWindow()
    return [window(SLICES, count) for _ in range(steps)]


def test_a_window_is_of_neighbours_among_the_selected_slices():
    for window in draws(0, 50):
        assert window.shape == (2, 3)
        first = torch.searchsorted(SLICES, window[:, :1].contiguous())
        assert torch.equal(window, SLICES.gather(1, first + torch.arange(3)))


def test_samples_and_steps_differ():
    windows = torch.stack(draws(0, 50))
    assert len(windows.unique(dim=0)) > 10
    starts = torch.searchsorted(SLICES.expand(50, 2, 6).contiguous(), windows[..., :1].contiguous())
    assert (starts[:, 0] != starts[:, 1]).any()


def test_every_selected_slice_is_drawn_at_least_as_often_as_promised():
    slices = torch.arange(10).expand(4000, 10)
    torch.manual_seed(0)
    window = TrainingWindow()(slices, 4)
    often = torch.zeros(10).index_add(0, window.flatten(), torch.ones(window.numel())) / len(slices)
    assert often.min() > 4 / 13 - 0.03


def test_all_where_there_are_no_more_or_none_is_to_be_left_out():
    window = TrainingWindow()
    for count in (6, 7, None):
        assert torch.equal(window(SLICES, count), SLICES)


def test_the_seed_alone_decides_whatever_else_draws():
    expected = torch.stack(draws(1, 5))
    torch.manual_seed(1)
    window = TrainingWindow()
    found = []
    for _ in range(5):
        torch.rand(3)
        found.append(window(SLICES, 3))
    assert torch.equal(torch.stack(found), expected)
    assert not torch.equal(torch.stack(draws(2, 5)), expected)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    TrainingWindow()(SLICES, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_copies_go_on_where_they_were_copied():
    torch.manual_seed(0)
    window = TrainingWindow()
    window(SLICES, 3)
    copies = (copy.deepcopy(window), pickle.loads(pickle.dumps(window)))
    expected = torch.stack([window(SLICES, 3) for _ in range(5)])
    for other in copies:
        assert torch.equal(torch.stack([other(SLICES, 3) for _ in range(5)]), expected)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_surroundings_are_of_one_length_and_hold_the_windows_middle(fraction):
    depth, torch_window = 60, TrainingWindow()
    slices = torch.stack([torch.randperm(depth)[: int(fraction * depth)].sort().values for _ in range(50)])
    window = torch_window(slices, 4)
    around = surroundings(window, depth, fraction)
    assert around.shape[1] % 4 == 0
    assert 4 / fraction <= around.shape[1] < 4 / fraction + 4
    assert torch.equal(around, around[:, :1] + torch.arange(around.shape[1]))
    assert around.min() >= 0
    assert around.max() < depth
    middle = (window[:, 0] + window[:, -1]) // 2
    assert ((around[:, 0] <= middle) & (middle <= around[:, -1])).all()


@pytest.mark.parametrize(("count", "depth"), [(8, 28), (None, 12)])
def test_all_slices_are_the_surroundings_where_there_are_no_more(count, depth):
    window = TrainingWindow()(torch.arange(0, depth, 3)[None], count)
    assert surroundings(window, depth, 0.3) is None
