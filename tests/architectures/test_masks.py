import itertools

import pytest
import torch

from nnunet_autosam2.architectures.masks import VolumeMasks, cropped

MIRRORED = [axes for count in range(4) for axes in itertools.combinations((2, 3, 4), count)]


def masks_of(volume: torch.Tensor) -> VolumeMasks:
    """A function of the volume that commutes with mirroring and cropping."""
    scores = volume[..., 0, 0]
    return VolumeMasks(3 * volume, scores, -scores, scores[:, 0] > 0, scores.abs()[:, 0])


def make_volume() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("axes", MIRRORED)
def test_mirrored_masks_are_those_of_the_mirrored_volume(axes):
    volume = make_volume()
    logits, *scores = masks_of(volume).mirrored(axes)
    torch.testing.assert_close(logits, 3 * volume.flip(axes))
    expected = masks_of(volume.flip([axis for axis in axes if axis == 2]))[1:]
    for values, of_mirrored in zip(scores, expected, strict=True):
        torch.testing.assert_close(values, of_mirrored)


def test_cropped_masks_are_those_of_the_first_voxels():
    volume = make_volume()
    for values, expected in zip(masks_of(volume).cropped((3, 4, 5)), masks_of(volume[..., :3, :4, :5]), strict=True):
        torch.testing.assert_close(values, expected)


def test_cropping_to_the_whole_copies_nothing():
    volume = make_volume()
    assert cropped(volume, volume.shape[2:]) is volume
