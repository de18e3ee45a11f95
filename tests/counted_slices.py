"""What SAM2's image encoder is given."""

from collections.abc import Iterator
from contextlib import contextmanager

from nnunet_autosam2 import AutoSAM2


@contextmanager
def counted_slices(network: AutoSAM2) -> Iterator[list[int]]:
    """Slices that the image encoder gets, each time."""
    calls: list[int] = []
    encoder = network.sam2_branch.sam2.image_encoder
    with encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0]))):
        yield calls
