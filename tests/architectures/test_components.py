import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_autosam2.architectures import components
from nnunet_autosam2.architectures.components import ROUNDS_ON_GPU, label_components, main_components, number_parts

CORNERS_TOUCH = [[1] * 3] * 3


def make_masks(share: float, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(8, *size, generator=torch.Generator().manual_seed(0)) < share


def spiral(side: int) -> torch.Tensor:
    """One component, half as long as there are pixels."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    y, x, dy, dx, length = 0, 0, 0, 1, side - 1
    while length > 0:
        for _ in range(2):
            for _ in range(length):
                mask[y, x] = True
                y, x = y + dy, x + dx
            dy, dx = dx, -dy
        y, x, length = y, x, length - 2
        for _ in range(2):
            mask[y, x] = True
            y, x = y + dy, x + dx
        length -= 2
    return mask


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 30), (64, 48)], ids=str)
@pytest.mark.parametrize("rounds", [1, ROUNDS_ON_GPU])
def test_components_are_those_of_scipy(monkeypatch, share, size, rounds):
    hooked = components._hooked
    monkeypatch.setattr(components, "_hooked", lambda labels, masks, dtype, _: hooked(labels, masks, dtype, rounds))
    masks = make_masks(share, size)
    for mask, labels in zip(masks, label_components(masks), strict=True):
        expected, count = ndimage.label(mask.numpy(), CORNERS_TOUCH)
        pairs = {(int(a), int(b)) for a, b in zip(labels.flatten(), expected.flatten(), strict=True)}
        assert len(pairs) == len(labels.unique()) == count + int((expected == 0).any())
        assert ((labels == 0) == (torch.from_numpy(expected) == 0)).all()


def test_a_long_component_takes_few_rounds(monkeypatch):
    rounds: list[torch.Tensor] = []
    equal = torch.equal

    def counted(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        rounds.append(ours)
        return equal(ours, theirs)

    monkeypatch.setattr(torch, "equal", counted)
    mask = spiral(129)
    assert ndimage.label(mask.numpy(), CORNERS_TOUCH)[1] == 1
    labels = label_components(mask[None])[0]
    assert len(labels[mask].unique()) == 1
    assert mask.sum() > 3000
    assert len(rounds) < 40


def test_main_components_are_the_heavy_ones():
    masks = make_masks(0.4, (64, 48))
    weights = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1))
    kept = main_components(masks, weights, 0.2)
    for mask, weight, ours in zip(masks, weights, kept, strict=True):
        labels, count = ndimage.label(mask.numpy(), CORNERS_TOUCH)
        sums = ndimage.sum_labels(weight.numpy(), labels, range(1, count + 1))
        heavy = [i + 1 for i, total in enumerate(sums) if total >= 0.2 * sums.max()]
        assert torch.equal(ours, torch.from_numpy(labels)[..., None].eq(torch.tensor(heavy)).any(-1))
        assert 0 < len(heavy) < count


@pytest.mark.parametrize("most", [2, 3, 16])
@pytest.mark.parametrize("reach", [0, 1, 3])
def test_parts_are_components_apart_by_weight(reach, most):
    masks = make_masks(0.02, (64, 48))
    masks[0] = False
    weights = 0.1 + torch.rand(masks.shape, generator=torch.Generator().manual_seed(1))
    found = number_parts(masks, weights, reach, most)
    assert not found[~masks].any()
    for mask, weight, numbers in zip(masks.numpy(), weights.numpy(), found.numpy(), strict=True):
        grown = ndimage.distance_transform_edt(~mask) <= reach if mask.any() else mask
        labels, count = ndimage.label(grown, CORNERS_TOUCH)
        sums = ndimage.sum_labels(weight * mask, labels, range(1, count + 1))
        expected = np.zeros_like(labels)
        for number, component in enumerate(np.argsort(sums)[::-1] + 1, start=1):
            expected[mask & (labels == component)] = min(number, most)
        np.testing.assert_array_equal(numbers, expected)
