"""Parameters and buffers whose shape depends on the labels of a data set."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MARK = ".seg_layers."
SAM2_HALF = ("sam2_branch.", "feature_fusion.", "fusion.")


class HasSegLayers(nn.Module):
    """A module with such parameters, or buffers where they are not of floating point: its attributes by their names.

    nnU-Net's `-pretrained_weights` starts afresh what has ".seg_layers." in its name, as the segmentation heads of its
    own networks have, and refuses a file in which anything else has another shape. So that is where they are, as
    `<module>.seg_layers.<name>`.
    """

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.seg_layers = nn.ParameterDict({name: each for name, each in tensors.items() if each.is_floating_point()})
        for name, each in tensors.items():
            if name not in self.seg_layers:
                self.seg_layers.register_buffer(name, each)

    def __getattr__(self, name: str) -> Any:
        seg_layers = self.__dict__.get("_modules", {}).get("seg_layers")
        if seg_layers is not None and (name in seg_layers or name in seg_layers._buffers):
            return getattr(seg_layers, name)
        return super().__getattr__(name)


def in_current_layout(state: Mapping[str, Any], own: Mapping[str, Tensor]) -> dict[str, Any]:
    """A state dict as this version would have written it, for a network with the state dict `own`.

    Earlier ones had `<module>.<name>` for them and none of the flags, which are off where they are missing. What a
    hybrid has beside its UNet is left out for a network that has the UNet alone.
    """
    if any(name.startswith("unet.") for name in own) and not any(name.startswith(SAM2_HALF) for name in own):
        state = {name: value for name, value in state.items() if not name.startswith(SAM2_HALF)}
    ours = {name: tensor for name, tensor in own.items() if MARK in name}
    current = {name.replace(MARK, "."): name for name in ours}
    flags = {name: torch.zeros_like(tensor) for name, tensor in ours.items() if tensor.dtype == torch.bool}
    return {**flags, **{current.get(name, name): value for name, value in state.items()}}


def update_layout(network: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Brings a state dict of an earlier version up to date in place: a pre-hook of `load_state_dict`."""
    beside = {name: value for name, value in state.items() if not name.startswith(prefix)}
    its = {name.removeprefix(prefix): value for name, value in state.items() if name not in beside}
    current = in_current_layout(its, network.state_dict())
    state.clear()
    state.update(beside | {prefix + name: value for name, value in current.items()})
