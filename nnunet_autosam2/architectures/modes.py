"""Parameters that change what a network does after it has been built."""

from collections.abc import Mapping
from typing import Any

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

CHANGEABLE = (
    "slice_fraction",
    "enable_unet_decoder",
    "enable_sam2",
    "bg_blend",
    "tumor_blend",
    "num_positive_points",
    "num_negative_points",
    "box_prompt",
    "boxes_per_region",
    "prompt_threshold",
    "regions_per_slice",
    "mask_prompt",
    "sam2_mirroring",
    "slice_axes",
    "training_slices",
)


def changed_mode(
    config: AutoSAM2Config, changes: Mapping[str, Any], *, has_sam2: bool, has_decoder: bool
) -> AutoSAM2Config:
    """The configuration of a network after `changes`.

    Args:
        has_sam2, has_decoder: parts that the network was built with.

    Raises:
        ConfigurationError: for a key that cannot change, or for a part that is not there.
    """
    for key in changes:
        if key not in CHANGEABLE:
            raise ConfigurationError(f"{key} cannot be changed after construction. Possible: {', '.join(CHANGEABLE)}.")
    changed = config.updated(changes)
    if changed.uses_sam2 and not has_sam2:
        raise ConfigurationError(
            "This network was built without SAM2. Build it with enable_sam2=True and a slice_fraction above 0."
        )
    if changed.enable_unet_decoder and not has_decoder:
        raise ConfigurationError(
            "This network was built without the UNet's decoder. Build it with enable_unet_decoder=True."
        )
    return changed
