import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from nnunet_autosam2.architectures.sam2.chunking import Chunked, is_out_of_memory
from nnunet_autosam2.errors import OutOfMemoryError


class Pair(NamedTuple):
    doubled: Tensor
    mean: Tensor


def evaluate(size: int) -> tuple[Pair, list[Tensor]]:
    """Result and gradients of a small network on seven items."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    x, scale = torch.randn(7, 6, dtype=torch.double, requires_grad=True), torch.rand(7, 1, dtype=torch.double)
    result = Chunked(size, "test")(lambda a, b: Pair(2 * network(a) * b, network(a).mean(1)), x, scale)
    loss = result.doubled.square().sum() + result.mean.sum()
    return result, list(torch.autograd.grad(loss, [x, *network.parameters()]))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_chunks_change_neither_result_nor_gradients(size):
    (expected, expected_gradients), (result, gradients) = evaluate(7), evaluate(size)
    assert isinstance(result, Pair)
    torch.testing.assert_close(tuple(result), tuple(expected))
    torch.testing.assert_close(gradients, expected_gradients)


def test_activations_are_computed_again_instead_of_kept():
    calls = []

    def function(x: Tensor) -> Pair:
        calls.append(len(x))
        return Pair(x.exp(), x.mean(1))

    x = torch.randn(4, 3, requires_grad=True)
    Chunked(2, "test")(function, x).doubled.sum().backward()
    assert calls == [2, 2, 2, 2]
    with torch.no_grad():
        Chunked(2, "test")(function, x)
    assert calls == [2] * 6


@pytest.mark.parametrize(("total", "expected"), [(78, [16, 16, 16, 15, 15]), (20, [10, 10]), (16, [16]), (1, [1])])
def test_chunks_are_as_equal_as_they_can_be(total, expected):
    sizes = []

    def function(x: Tensor) -> Pair:
        sizes.append(len(x))
        return Pair(x, x)

    x = torch.randn(total, 2)
    assert torch.equal(Chunked(16, "test")(function, x).mean, x)
    assert sizes == expected


def limited_to(limit: int, error: Exception):
    sizes = []

    def function(x: Tensor) -> Pair:
        sizes.append(len(x))
        if len(x) > limit:
            raise copy.copy(error)  # an error that is kept keeps what was going on when it was raised
        return Pair(2 * x, x.mean(1))

    return function, sizes


@pytest.mark.parametrize("gradients", [True, False])
def test_out_of_memory_halves_the_chunk_for_good(gradients, caplog):
    function, sizes = limited_to(3, torch.OutOfMemoryError("CUDA out of memory."))
    chunked = Chunked(16, "image encoder")
    x = torch.randn(10, 3, requires_grad=gradients)
    assert torch.equal(chunked(function, x).doubled, 2 * x)
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    assert chunked.size == 2
    assert "image encoder" in caplog.text

    sizes.clear()
    chunked(function, x[:4])
    assert sizes == [2, 2]

    if gradients:
        x.square().sum().backward()
        assert sizes == [2, 2], "nothing of the first try is left"


def test_out_of_memory_on_the_cpu_is_a_runtime_error_and_counts_too():
    def function(x: Tensor) -> Pair:
        torch.empty(1 << (50 if len(x) > 1 else 1))
        return Pair(x, x)

    chunked = Chunked(4, "test")
    assert chunked(function, torch.randn(4, 2)).mean.shape == (4, 2)
    assert chunked.size == 1


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "HIP out of memory. Tried to allocate 20.00 MiB",
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_by_any_name(message):
    function, sizes = limited_to(2, RuntimeError(message))
    assert torch.equal(Chunked(4, "test")(function, torch.ones(4, 2)).mean, torch.ones(4))
    assert sizes == [4, 2, 2]


def test_out_of_memory_in_python():
    function, sizes = limited_to(1, MemoryError())
    Chunked(2, "test")(function, torch.ones(2, 2))
    assert sizes == [2, 1, 1]


def test_what_is_not_memory_is_not_taken_for_it():
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive"))


def test_nnunets_predictor_takes_it_for_what_it_is():
    """It catches RuntimeError, and tries again with its results on the CPU."""
    assert issubclass(OutOfMemoryError, RuntimeError)


def test_one_that_does_not_fit_names_part_and_remedies():
    function, sizes = limited_to(0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(OutOfMemoryError, match=r"mask decoder.*sam2_image_size.*slice_fraction.*sam2_model"):
        Chunked(4, "mask decoder")(function, torch.randn(3, 2))
    assert sizes == [3, 1]


def test_other_errors_pass_through():
    function, sizes = limited_to(0, RuntimeError("shapes cannot be multiplied"))
    chunked = Chunked(4, "test")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        chunked(function, torch.randn(3, 2))
    assert sizes == [3]
    assert chunked.size == 4
