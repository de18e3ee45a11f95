"""Parameters that have changed since the checkpoint from which a training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError

OF_THE_START = ("backbone_checkpoint", "encoder_checkpoint", "sam2_checkpoint")
"""Where weights come from before the first step; a checkpoint brings its own"""


def require_same_structure(before: AutoSAM2Config, now: AutoSAM2Config) -> None:
    """
    Raises:
        ConfigurationError: the checkpoint's network consists of other parts, or other parts of it train.
    """
    there, here = _structure(before), _structure(now)
    if there == here:
        return
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    changed = before.differences(now)
    named = "; ".join(f"{key}: {changed[key][0]!r} there, {changed[key][1]!r} here" for key in keys if key in changed)
    raise ConfigurationError(
        f"The checkpoint does not fit this configuration ({named}). Set it back to go on, or start afresh in a "
        "configuration of another name, which `autosam2 configure` adds."
    )


def changes(before: AutoSAM2Config, now: AutoSAM2Config) -> Iterator[str]:
    """A line for each parameter that differs between a checkpoint and this run, and what that means for the run."""
    for key, (old, new) in before.differences(now).items():
        meaning = "no longer matters: the checkpoint has its weights" if key in OF_THE_START else "counts from here on"
        yield f"{key} was {old!r} and is {new!r} now, which {meaning}."


def _structure(config: AutoSAM2Config) -> dict[str, Any]:
    """Whatever decides which parameters there are, their shapes, and which of them train."""
    keys = ["enable_unet_decoder", "backbone", "freeze_backbone", "region_based"]
    if not config.uses_sam2:
        return {"enable_sam2": False, "slice_fraction": 0, **{key: getattr(config, key) for key in keys}}
    keys += ["sam2_model", "sam2_tuning", "propagation", "mask_prompt", "feature_fusion"]
    if config.sam2_tuning == "lora":
        keys.append("lora_rank")
    if config.enable_unet_decoder:
        keys.append("fusion")
    structure = {"enable_sam2": True, **{key: getattr(config, key) for key in keys}}
    if config.enable_unet_decoder and config.has_gate:
        structure["backbone_checkpoint"] = config.backbone_checkpoint is not None  # a gate that starts closed
    return structure
