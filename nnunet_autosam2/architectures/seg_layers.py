"""Parameters whose shape depends on the labels of a data set."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

MARK = ".seg_layers."


class HasSegLayers(nn.Module):
    """A module with such parameters, which are attributes of it by their names.

    nnU-Net's `-pretrained_weights` starts afresh what has ".seg_layers." in its name, as the segmentation heads of its
    own networks have, and refuses a file in which anything else has another shape. So that is where they are, as
    `<module>.seg_layers.<name>`.
    """

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        self.seg_layers = nn.ParameterDict(parameters)

    def __getattr__(self, name: str) -> Any:
        seg_layers = self.__dict__.get("_modules", {}).get("seg_layers", {})
        return seg_layers[name] if name in seg_layers else super().__getattr__(name)


def with_current_names(state: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """A state dict that may have been written when they were `<module>.<name>`, for a network with the names `own`."""
    current = {name.replace(MARK, "."): name for name in own if MARK in name}
    return {current.get(name, name): value for name, value in state.items()}
