"""Against the resident memory of this process."""

import sys

import pytest
import torch

from nnunet_autosam2.architectures.freed_memory import give_back_before_backward
from tests.architectures.test_memory import resident

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and glibc keeps what others give back")
def test_blocks_between_those_in_use_go_back_to_the_system():
    output = torch.zeros(1, requires_grad=True) * 2
    give_back_before_backward(output)
    torch.ones(6 * MIB)  # 24 MiB: once freed, glibc keeps whatever is smaller
    blocks = [torch.ones(MIB // 8) for _ in range(400)]  # half a MiB each
    kept = blocks[::8]
    del blocks
    before = resident()
    output.backward(torch.ones(1))
    assert before - resident() > 100 * MIB, "175 MiB of them are free"
    assert all(bool(block.all()) for block in kept)


def test_without_gradients_nothing_waits():
    output = torch.zeros(1)
    give_back_before_backward(output)
    assert output._backward_hooks is None
