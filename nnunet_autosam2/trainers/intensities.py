"""How the images that nnU-Net's plans make are to be shown to SAM2, whose own are pictures from black to white."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Z_SCORES = (0.0, 1.0)
ZERO_TO_ONE = (0.5, 1 / 6)
WIDTHS = 6
"""Range from end to end, so that its ends are shown as z-scores of -3 and 3"""


def intensities(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Values of AutoSAM2Config for what such a configuration of the plans makes of images."""
    properties = plans.get("foreground_intensity_properties_per_channel", {})
    schemes = configuration["normalization_schemes"]
    ranges = [_range(scheme, properties.get(str(channel), {})) for channel, scheme in enumerate(schemes)]
    z_scores = set(ranges) == {Z_SCORES}
    middles, widths = zip(*ranges, strict=True)
    return {
        "intensity_middles": None if z_scores else list(middles),
        "intensity_widths": None if z_scores else list(widths),
        "black_background": all(configuration.get("use_mask_for_norm", [])) and z_scores,
    }


def _range(scheme: str, properties: Mapping[str, float]) -> tuple[float, float]:
    """Middle and width of the intensities of a channel. Schemes of others are taken for z-scores."""
    if scheme in ("RescaleTo01Normalization", "RGBTo01Normalization"):
        return ZERO_TO_ONE
    low, high = properties.get("percentile_00_5", 0.0), properties.get("percentile_99_5", 0.0)
    if scheme == "NoNormalization" and high > low:
        return (low + high) / 2, (high - low) / WIDTHS
    return Z_SCORES
