import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_autosam2.architectures.mirrored_masks import MirroredMasks
from nnunet_autosam2.architectures.reconstruction import VolumeMasks

MIRRORED = [axes for count in (1, 2, 3) for axes in itertools.combinations((2, 3, 4), count)]


class SAM2:
    """Whose masks are any function of the volume that commutes with mirroring."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, volume: Tensor) -> tuple[Any, VolumeMasks]:
        self.asked += 1
        scores = volume.mean((-1, -2))
        return None, VolumeMasks(3 * volume, scores, -scores, scores[:, 0] > 0, scores.abs()[:, 0])


@pytest.fixture
def sam2() -> SAM2:
    return SAM2()


def make_volume(seed: int = 0, size: tuple[int, ...] = (2, 3, 4, 5, 6)) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def check(masks: MirroredMasks, sam2: SAM2, volume: Tensor, state: int = 0) -> None:
    _, got = masks(volume, state, lambda: sam2(volume))
    for value, expected in zip(got, SAM2()(volume)[1], strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("axes", MIRRORED)
def test_a_mirror_image_gets_the_masks_mirrored(sam2, axes):
    masks, volume = MirroredMasks(), make_volume()
    for shown in (volume, volume.flip(axes), volume.flip(2)):
        check(masks, sam2, shown)
    assert sam2.asked == 1


def test_the_same_volume_is_asked_about_again(sam2):
    masks, symmetric = MirroredMasks(), torch.ones(1, 1, 2, 2, 2)
    for volume in (symmetric, symmetric.clone(), symmetric.flip(2)):
        check(masks, sam2, volume)
    assert sam2.asked == 3


def test_another_volume_size_or_state_is_asked_about(sam2):
    masks, volume = MirroredMasks(), make_volume()
    almost = volume.flip(2)
    almost[0, 0, 0, 0, 0] += 1e-6
    shown = [(volume, 0), (almost, 0), (volume, 0), (volume.flip(3), 1), (volume[..., :3], 1), (make_volume(1), 1)]
    for asked, (other, state) in enumerate(shown, start=1):
        check(masks, sam2, other, state)
        assert sam2.asked == asked


def test_a_volume_that_is_overwritten_is_another_one(sam2):
    masks, volume = MirroredMasks(), make_volume()
    check(masks, sam2, volume)
    mirrored = volume.flip(2)
    volume.zero_()
    check(masks, sam2, mirrored)
    assert sam2.asked == 1


def test_what_is_forgotten_is_asked_about(sam2):
    masks, volume = MirroredMasks(), make_volume()
    check(masks, sam2, volume)
    masks.forget()
    check(masks, sam2, volume.flip(2))
    assert sam2.asked == 2


def test_masks_of_the_first_voxels():
    volume = make_volume()
    for value, expected in zip(SAM2()(volume)[1].cropped((3, 4, 5)), SAM2()(volume)[1], strict=True):
        size = (3, 4, 5)[: value.ndim - 2] if value.ndim == 5 else (3,)
        torch.testing.assert_close(value, expected[(..., *map(slice, size))])
