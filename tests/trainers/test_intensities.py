"""Images as nnU-Net's own normalisations make them, shown to SAM2."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ImageNormalization,
    NoNormalization,
    RescaleTo01Normalization,
    RGBTo01Normalization,
    ZScoreNormalization,
)
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_autosam2.architectures.mri_to_rgb import MRIToRGB
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2
from nnunet_autosam2.trainers.intensities import intensities

SCHEMES = [ZScoreNormalization, CTNormalization, NoNormalization, RescaleTo01Normalization, RGBTo01Normalization]


def make_image(scheme: type[ImageNormalization]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """An image, where it shows a body, and what nnU-Net's fingerprint says of the foreground, a part of the body."""
    rng = np.random.default_rng(0)
    body = np.zeros((8, 64, 64), bool)
    body[:, 8:56, 8:56] = True
    image = np.where(body, rng.normal(150, 30, body.shape), -1000 if scheme is CTNormalization else 0)
    image = image.clip(0 if scheme is RGBTo01Normalization else -1000, 255).astype(np.float32)
    foreground = image[:, 20:40, 20:40]
    low, high = np.percentile(foreground, [0.5, 99.5])
    properties = {"mean": foreground.mean(), "std": foreground.std(), "percentile_00_5": low, "percentile_99_5": high}
    return image, body, {key: float(value) for key, value in properties.items()}


def rgb(image: np.ndarray, found: dict) -> np.ndarray:
    """[C, D, H, W] → [D, H, W], the red of each slice."""
    mapper = MRIToRGB(
        len(image), [0, 0, 0], 64, found["intensity_middles"], found["intensity_widths"], found["black_background"]
    )
    with torch.no_grad():
        return mapper.rgb(torch.from_numpy(image).transpose(0, 1))[:, 0].numpy()


@pytest.mark.parametrize("masked", [True, False], ids=["within the brain", "everywhere"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tissue_is_between_black_and_white(scheme, masked):
    image, body, properties = make_image(scheme)
    normalised = scheme(masked, properties, np.float32).run(image.copy(), np.where(body, 0, -1))
    configuration = {"normalization_schemes": [scheme.__name__], "use_mask_for_norm": [masked]}
    plans = {"foreground_intensity_properties_per_channel": {"0": properties}}
    grey = rgb(normalised[None], intensities(plans, configuration))
    darkest, brightest = np.percentile(grey[body], [2, 98])
    assert 0.03 < darkest < brightest - 0.3
    assert brightest < 0.97
    if scheme is CTNormalization or (scheme is ZScoreNormalization and masked):
        assert grey[~body].max() <= darkest
    if scheme is ZScoreNormalization and masked:
        assert not grey[~body].any()


def test_every_scheme_of_nnunet_is_tried():
    """A new one would be taken for z-scores."""
    assert {get_normalization_scheme(name) for name in ("CT", "noNorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")} == {
        *SCHEMES
    }
    assert {*ImageNormalization.__subclasses__()} == {*SCHEMES}


def test_the_trainer_writes_them_into_the_plans_unless_they_say_otherwise(plans, dataset_json):
    block = plans["configurations"]["tiny"].setdefault("autosam2", {})
    config = nnUNetTrainerAutoSAM2.resolve_config(plans, "tiny", dataset_json)
    channels = len(dataset_json["channel_names"])
    assert config.intensity_middles is config.intensity_widths is None
    assert config.black_background
    block |= {"black_background": False, "intensity_middles": [2.0] * channels}
    config = nnUNetTrainerAutoSAM2.resolve_config(plans, "tiny", dataset_json)
    assert not config.black_background
    assert config.intensity_middles == (2,) * channels
