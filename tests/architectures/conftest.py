import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator

import pytest
import torch

from nnunet_autosam2.architectures.autosam2 import AutoSAM2


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    """The tensors are small: threads would wait for each other more than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


KEPT = 8
"""Networks that are kept to be copied: SAM2 alone is 140 MB"""


@pytest.fixture(scope="session")
def make_network() -> Callable[..., AutoSAM2]:
    """A small network with seeded random weights, SAM2's too; parameters as of AutoSAM2."""

    small = {"sam2_image_size": 64, "sam2_checkpoint": "random", "sam2_precision": "float32"}
    built: OrderedDict[str, AutoSAM2] = OrderedDict()

    def build(num_classes: int = 3, in_channels: int = 2, seed: int = 0, **parameters) -> AutoSAM2:
        key = repr((num_classes, in_channels, seed, sorted(parameters.items())))
        if key not in built:
            torch.manual_seed(seed)
            built[key] = AutoSAM2(num_classes, in_channels, **{**small, **parameters})
        built.move_to_end(key)
        if len(built) > KEPT:
            built.popitem(last=False)
        return copy.deepcopy(built[key])

    return build
