"""The axis along which a volume is cut into slices for SAM2: the first, or others where the network is isotropic."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError


def sliced_along(volume: Tensor, axis: int) -> Tensor:
    """[B, C, D, H, W] → the same with axis 0, 1 or 2 of D, H, W in the first's place. It is its own inverse.

    >>> sliced_along(Tensor(1, 1, 4, 5, 6), 2).shape
    torch.Size([1, 1, 6, 5, 4])
    """
    return volume.transpose(2, 2 + axis)


def size_along(size: Sequence[int], axis: int) -> tuple[int, ...]:
    """Size D, H, W of what `sliced_along` returns.

    >>> size_along((4, 5, 6), 2)
    (6, 5, 4)
    """
    swapped = list(size)
    swapped[0], swapped[axis] = swapped[axis], swapped[0]
    return tuple(swapped)


def are_isotropic(strides: Sequence[Sequence[int]]) -> bool:
    """Says whether each of them is the same along all axes."""
    return all(len(set(stride)) == 1 for stride in strides)


def require_axes(config: AutoSAM2Config, strides: Sequence[Sequence[int]]) -> None:
    """
    Args:
        strides: of the UNet's features that SAM2's half needs.

    Raises:
        ConfigurationError: they are not the same along all axes.
    """
    if config.slice_axes > 1 and not are_isotropic(strides):
        raise ConfigurationError(
            f"slice_axes = {config.slice_axes} is not possible: the UNet's strides are not the same along all axes "
            f"({', '.join(map(str, strides))}), as the voxels or the patch are not. Set slice_axes = 1."
        )
