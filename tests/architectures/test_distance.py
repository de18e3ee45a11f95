import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_autosam2.architectures import distance
from nnunet_autosam2.architectures.distance import squared_distance_to


def masks_of(shape: tuple[int, int]) -> np.ndarray:
    """[M, H, W]: noise from dense to a few pixels, blobs, one pixel in each corner, everything, nothing."""
    rng = np.random.default_rng(0)
    noise = [rng.random(shape) < density for density in (0.9, 0.5, 0.1, 0.02, 0.003)]
    smooth = ndimage.gaussian_filter(rng.standard_normal((4, *shape)), (0, 4, 4))
    corners = np.zeros((4, *shape), bool)
    for corner, (y, x) in zip(corners, ((0, 0), (0, -1), (-1, 0), (-1, -1)), strict=True):
        corner[y, x] = True
    return np.stack([*noise, *(smooth > 0), *corners, np.ones(shape, bool), np.zeros(shape, bool)])


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (64, 64), (1, 30), (30, 1), (1, 1)])
@pytest.mark.parametrize("limit", [None, 9, 1])
@pytest.mark.parametrize("at_once", [False, True], ids=["as on a CPU", "as on a GPU"])
def test_squares_equal_scipys(monkeypatch, shape, limit, at_once):
    if at_once:
        monkeypatch.setattr(distance, "AT_ONCE", 20_000)  # a mask or a few
        monkeypatch.setattr(distance, "_least_by_shifts", lambda squares, _limit: distance._least_at_once(squares))
    masks = masks_of(shape)
    squares = squared_distance_to(torch.from_numpy(masks), limit).numpy()
    farthest = sum(shape) if limit is None else limit
    for mask, found in zip(masks, squares, strict=True):
        expected = np.rint(ndimage.distance_transform_edt(~mask) ** 2) if mask.any() else np.full(shape, np.inf)
        np.testing.assert_array_equal(found, np.minimum(expected, farthest**2))


def test_masks_do_not_see_each_other():
    masks = torch.from_numpy(masks_of((40, 50)))
    assert torch.equal(squared_distance_to(masks), torch.cat([squared_distance_to(mask[None]) for mask in masks]))
