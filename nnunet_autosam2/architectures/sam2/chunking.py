"""Working through a batch in chunks that fit into memory."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnunet_autosam2.errors import OutOfMemoryError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, XPU and MPS
    "alloc_failed",  # cuDNN, cuBLAS, cuSPARSE, cuSOLVER, cuFFT
    "memoryallocation",  # the CUDA runtime's cudaErrorMemoryAllocation
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "bad_alloc",  # C++
    "could not create a memory object",  # oneDNN
)
"""Words in the messages of errors that are no class of their own"""


class Chunked:
    """Calls a function on chunks of its arguments and joins what it returns, a NamedTuple of tensors.

    Chunks are as equal as they can be: one compiled function then fits them all. Out of memory halves them for good and
    tries again.

    Args:
        size: most of dimension 0 in a chunk.
        name: for messages.
        unit: what dimension 0 counts, for messages.
        recompute: with gradients and more than one chunk, compute the activations within a chunk again in the
            backward pass instead of keeping them.
        size_on_gpu: in the place of `size` there, where every chunk costs the time to launch its kernels.
    """

    def __init__(
        self, size: int, name: str, recompute: bool = True, size_on_gpu: int | None = None, unit: str = "slice"
    ) -> None:
        self.size = size
        self.size_on_gpu = size if size_on_gpu is None else size_on_gpu
        self.name = name
        self.recompute = recompute
        self.unit = unit
        self.at_once, self.cost = size, 1.0
        """Size of the last call's chunks"""

    def __call__(self, function: Callable[..., tuple], *arguments: Tensor | None, cost: float = 1) -> Any:
        """
        Args:
            arguments: to be split along dimension 0, the first of them no None.
            cost: of one of dimension 0, in what the size counts.

        Raises:
            OutOfMemoryError: when a chunk of one does not fit.
        """
        first, self.cost = arguments[0], cost
        assert first is not None
        while True:
            most = max(1, int((self.size_on_gpu if first.is_cuda else self.size) / cost))
            num_chunks = max(1, math.ceil(len(first) / most))
            self.at_once = math.ceil(len(first) / num_chunks)
            try:
                return self._run(function, arguments, num_chunks)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.at_once == 1:
                    raise OutOfMemoryError(
                        f"Out of memory in SAM2's {self.name} with one {self.unit} at once. "
                        "Lower sam2_image_size or slice_fraction, or take a smaller sam2_model."
                    ) from error
            self.halve()

    def halve(self) -> bool:
        """Halves the last call's chunks; False if they had a size of one."""
        if self.at_once == 1:
            return False
        self.at_once //= 2
        self.size = self.size_on_gpu = math.ceil(self.at_once * self.cost)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning("Out of memory: SAM2's %s goes on with %d %ss at once.", self.name, self.at_once, self.unit)
        return True

    def _run(self, function: Callable[..., tuple], arguments: tuple[Tensor | None, ...], num_chunks: int) -> Any:
        split = ([None] * num_chunks if each is None else each.tensor_split(num_chunks) for each in arguments)
        chunks = list(zip(*split, strict=True))
        if len(chunks) == 1:
            return function(*chunks[0])
        if self.recompute and torch.is_grad_enabled():
            parts = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
        else:
            parts = [function(*chunk) for chunk in chunks]
        return _join(parts)


def _join(parts: list[tuple]) -> Any:
    return type(parts[0])(*(torch.cat(values) for values in zip(*parts, strict=True)))


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether memory has run out, on any device: most libraries below torch raise a plain RuntimeError for it."""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY)
    )
