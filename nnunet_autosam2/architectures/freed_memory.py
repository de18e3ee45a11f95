"""Memory that the C library keeps after it was freed."""

import ctypes
import os
import sys

from torch import Tensor

KEEPS_ALL = "MALLOC_TRIM_THRESHOLD_"
"""Environment variable of glibc by which a user asks it to keep what is freed"""


def give_back_before_backward(output: Tensor) -> None:
    """Has freed memory given back to the system when the backward pass, on a CPU, comes to this tensor.

    glibc keeps freed blocks below 32 MiB (M_MMAP_THRESHOLD in mallopt(3)) for others of such sizes. SAM2's activations
    are below it and those of a UNet above, so that what SAM2 is done with would add to what the UNet needs.
    """
    if output.requires_grad and output.device.type == "cpu" and sys.platform == "linux" and KEEPS_ALL not in os.environ:
        output.register_hook(_give_back)


def _give_back(_: Tensor) -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
