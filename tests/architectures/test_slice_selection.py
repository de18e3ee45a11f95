import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from nnunet_autosam2.architectures.slice_selection import moved_to_known, num_slices, select_slices


def information(p: np.ndarray) -> np.ndarray:
    """[R, D, H, W] → [D], as the module's docstrings say it, in float64."""
    p = p.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
    value = p.max(0).mean((1, 2)) + entropy.max(0).mean((1, 2))
    offset = np.linspace(-0.5, 0.5, p.shape[1]) if p.shape[1] > 1 else np.array([-0.5])
    return value - value.min() + 1e-3 * np.exp(-0.5 * (offset / 0.25) ** 2)


def systematic_sample(size: np.ndarray, count: int) -> list[int]:
    """Inclusion probability proportional to size, capped at 1; one unit at every half-integer of their running sum."""
    inclusion = np.zeros(len(size))
    while True:
        free = inclusion < 1
        inclusion[free] = (count - (~free).sum()) * size[free] / size[free].sum()
        if (inclusion <= 1).all():
            break
        inclusion[inclusion > 1] = 1
    return np.searchsorted(inclusion.cumsum(), np.arange(count) + 0.5).tolist()


def random_volume(generator: np.random.Generator) -> np.ndarray:
    """Anything from nothing to everything: blobs of foreground on some slices, noise of any strength."""
    shape = (generator.integers(1, 4), generator.integers(1, 70), 4, 5)
    p = generator.random(shape) * generator.choice([0, 1e-3, 1])
    blob = slice(*sorted(generator.integers(0, shape[1] + 1, 2)))
    p[:, blob] = np.maximum(p[:, blob], generator.random(p[:, blob].shape) ** 3)
    return p.astype(np.float32)


@pytest.mark.parametrize("seed", range(40))
def test_equals_systematic_sampling(seed):
    generator = np.random.default_rng(seed)
    p = random_volume(generator)
    count = int(generator.integers(1, p.shape[1] + 1))
    (chosen,) = select_slices(torch.from_numpy(p)[None], count).tolist()
    assert chosen == systematic_sample(information(p), count)


@pytest.mark.parametrize("seed", range(200))
def test_exactly_as_many_as_asked_for_each_once_in_order(seed):
    generator = np.random.default_rng(1000 + seed)
    p = torch.from_numpy(random_volume(generator))[None].expand(3, -1, -1, -1, -1).clone()
    p[1] = (p[1] > 0.5).float()
    p[2] = 1.0
    count = int(generator.integers(1, p.shape[2] + 1))
    chosen = select_slices(p, count)
    assert chosen.shape == (3, count)
    assert (chosen.diff(dim=1) > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < p.shape[2]
    assert torch.equal(chosen, select_slices(p, count))


@pytest.mark.parametrize("depth", [1, 2, 17, 155])
def test_every_slice_at_fraction_one(depth):
    p = torch.rand(2, 1, depth, 3, 3)
    assert select_slices(p, num_slices(depth, 1.0)).tolist() == [list(range(depth))] * 2


@pytest.mark.parametrize("where", [0, 7, 39])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_a_slice_with_most_of_the_information_is_always_there(where, count):
    p = torch.zeros(1, 2, 40, 8, 8)
    p[:, :, where] = 1
    p[:, 1, 20, 0, 0] = 0.5
    assert where in select_slices(p, count)[0].tolist()


def test_all_informative_slices_before_any_empty_one():
    p = torch.zeros(1, 1, 60, 8, 8)
    p[:, :, 10:16] = 0.8
    assert set(range(10, 16)) <= set(select_slices(p, 12)[0].tolist())


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("depth", "count"), [(64, 20), (155, 47), (33, 3), (9, 1)])
def test_where_all_slices_tell_the_same_they_spread_around_the_centre(value, depth, count):
    chosen = select_slices(torch.full((1, 1, depth, 4, 4), value), count)[0].double()
    centre = (depth - 1) / 2
    assert abs(chosen.mean().item() - centre) <= 1
    assert abs(chosen.median().item() - centre) <= 1 + depth / count / 2
    gaps = chosen.diff()
    if count >= 20:
        assert gaps[len(gaps) // 2 - 2 : len(gaps) // 2 + 2].max() <= gaps[[0, -1]].min()
        assert chosen[0] < depth / 6
        assert chosen[-1] > depth * 5 / 6


@pytest.mark.parametrize(("depth", "count"), [(64, 20), (155, 47), (155, 93), (40, 7)])
def test_equally_informative_slices_are_taken_at_even_distances(depth, count):
    p = torch.full((1, 1, depth + 1, 4, 4), 0.9)
    p[:, :, 0] = 0  # the emptiest slice, against which the others count
    chosen = select_slices(p, count)[0]
    limit = math.ceil(depth / count)
    assert chosen.diff().max() <= limit
    assert chosen[0] <= limit
    assert depth - chosen[-1] < limit


def test_samples_do_not_see_each_other():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, 2, 30, 4, 4, generator=generator) ** torch.tensor([1, 8, 30, 2]).view(-1, 1, 1, 1, 1)
    together = select_slices(p, 9)
    assert len(set(map(tuple, together.tolist()))) > 1
    assert torch.equal(together, torch.cat([select_slices(p[i : i + 1], 9) for i in range(4)]))


def test_no_gradient_is_kept():
    assert not select_slices(torch.rand(1, 1, 8, 2, 2, requires_grad=True), 3).requires_grad


def test_number_of_slices_is_the_exact_ceiling():
    assert [num_slices(10, 0.3), num_slices(155, 0.3), num_slices(155, 0.6)] == [3, 47, 93]
    for hundredths in range(101):
        for depth in (1, 2, 3, 10, 20, 50, 64, 100, 128, 155, 160, 240):
            assert num_slices(depth, hundredths / 100) == math.ceil(Fraction(hundredths, 100) * depth)


@pytest.mark.parametrize("share", [0, 0.05, 0.3, 1])
def test_slices_move_to_known_ones_that_no_other_is_as_near_to(share):
    generator = torch.Generator().manual_seed(0)
    batch, depth, count = 40, 60, 11
    slices = torch.rand(batch, depth, generator=generator).argsort(1)[:, :count].sort(1).values
    known = torch.rand(batch, depth, generator=generator) < share
    moved = moved_to_known(slices, known)
    for own, there, now in zip(slices.tolist(), known.tolist(), moved.tolist(), strict=True):
        expected = []
        for position in own:
            others = [each for each in own if each != position]
            free = [
                each
                for each in range(depth)
                if there[each] and all(abs(each - position) < abs(each - other) for other in others)
            ]
            expected.append(min(free, key=lambda each: abs(each - position), default=position))
        assert now == expected == sorted(set(expected))
