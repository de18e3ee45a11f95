import numpy as np
import pytest
import torch
from sam2.utils.transforms import SAM2Transforms

from nnunet_autosam2.architectures.mri_to_rgb import MRIToRGB, choose_rgb_channels


@pytest.mark.parametrize("size", [(40, 64), (128, 100), (64, 64)], ids=["smaller", "larger", "equal"])
def test_starts_as_the_chosen_modalities_in_sam2s_own_transform(size):
    image = np.random.default_rng(0).uniform(0.05, 0.95, (*size, 3)).astype(np.float32)
    z_scores = torch.zeros(1, 4, *size)
    z_scores[0, [3, 1, 2]] = torch.from_numpy(image).permute(2, 0, 1).logit()
    ours = MRIToRGB(4, (3, 1, 2), image_size=64)(z_scores)
    expected = SAM2Transforms(resolution=64, mask_threshold=0.0)(image)
    torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("in_channels", [1, 2, 8])
def test_any_number_of_channels(in_channels):
    channels = [i % in_channels for i in range(3)]
    assert MRIToRGB(in_channels, channels, 32)(torch.randn(2, in_channels, 20, 30)).shape == (2, 3, 32, 32)


def test_outliers_stay_between_black_and_white():
    rgb = MRIToRGB(1, (0, 0, 0), 32).rgb(torch.tensor([-1e4, -3, 0, 3, 1e4]).view(1, 1, 1, 5))
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert (rgb[0, 0, 0].diff() > 0).all()


def test_what_is_zero_in_all_channels_is_black_if_it_is_background():
    slices = torch.randn(1, 2, 20, 20)
    slices[:, :, :5] = 1e-5 * torch.randn(1, 2, 5, 20)
    slices[:, 0, 10] = 0  # tissue of average intensity in one channel
    black, grey = (MRIToRGB(2, (0, 1, 0), 32, black_background=black).rgb(slices) for black in (True, False))
    assert not black[:, :, :5].any()
    assert torch.equal(black[:, :, 5:], grey[:, :, 5:])
    torch.testing.assert_close(grey[:, :, :5], torch.full((1, 3, 5, 20), 0.5), atol=1e-4, rtol=0)


def test_other_ranges_are_shown_as_z_scores_are():
    scores = torch.randn(2, 2, 20, 20)
    middles, widths = (3.0, -1.0), (0.5, 10.0)
    slices = scores * torch.tensor(widths).view(2, 1, 1) + torch.tensor(middles).view(2, 1, 1)
    ours = MRIToRGB(2, (0, 1, 0), 32, middles, widths)(slices)
    torch.testing.assert_close(ours, MRIToRGB(2, (0, 1, 0), 32)(scores), atol=1e-4, rtol=1e-4)


def test_mixture_learns_from_every_modality_although_it_starts_at_zero():
    mapper = MRIToRGB(4, (0, 1, 2), 32)
    assert not any(parameter.any() for parameter in mapper.parameters())
    mapper(torch.randn(2, 4, 16, 16)).square().sum().backward()
    assert (mapper.residual.weight.grad.abs() > 0).all()
    assert (mapper.residual.bias.grad.abs() > 0).all()


def test_constants_are_not_in_the_checkpoint():
    assert list(MRIToRGB(2, (0, 1, 0), 32).state_dict()) == ["residual.weight", "residual.bias"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["T1", "T1ce", "T2", "FLAIR"], (3, 1, 2)),
        (["flair", "t1", "t1ce", "t2"], (0, 2, 3)),
        (["t1n", "t1c", "t2w", "t2f"], (3, 1, 2)),
        (["T1", "T1-Gd", "T2", "FLAIR"], (3, 1, 2)),
        (["flair", "t1ce"], (0, 1, 0)),
        (["t1", "t2"], (0, 0, 1)),
        (["t1", "pd", "t2"], (0, 1, 2)),
        (["T2"], (0, 0, 0)),
        (["CT"], (0, 0, 0)),
        (["a", "b"], (0, 1, 1)),
        (["a", "b", "c", "d"], (0, 1, 2)),
    ],
)
def test_flair_t1ce_t2_where_they_are(names, expected):
    assert choose_rgb_channels(names) == expected
