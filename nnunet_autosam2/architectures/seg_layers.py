"""Parameters whose shape depends on the labels of a data set."""

from typing import Any

from torch import Tensor, nn


class HasSegLayers(nn.Module):
    """A module with such parameters, which are attributes of it by their names.

    nnU-Net's `-pretrained_weights` starts afresh what has ".seg_layers." in its name, as the segmentation heads of its
    own networks have, and refuses a file in which anything else has another shape. So that is where they are, as
    `<module>.seg_layers.<name>`; state dicts that have them as `<module>.<name>` are read as well.
    """

    def __init__(self, **parameters: Tensor) -> None:
        super().__init__()
        self.seg_layers = nn.ParameterDict(parameters)

    def __getattr__(self, name: str) -> Any:
        seg_layers = self.__dict__.get("_modules", {}).get("seg_layers", {})
        return seg_layers[name] if name in seg_layers else super().__getattr__(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.seg_layers:
            if prefix + name in state_dict:
                state_dict[f"{prefix}seg_layers.{name}"] = state_dict.pop(prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args)
