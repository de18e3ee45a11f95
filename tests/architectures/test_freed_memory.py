"""Against the resident memory of this process."""

import sys

import pytest
import torch

from nnunet_autosam2.architectures.freed_memory import KEEPS_ALL, give_back_before_backward
from tests.architectures.test_memory import resident

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and glibc keeps what others give back")
def test_blocks_between_those_in_use_go_back_to_the_system(monkeypatch):
    monkeypatch.delenv(KEEPS_ALL, raising=False)
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


@pytest.mark.parametrize(("gradients", "asked_to_keep"), [(False, False), (True, True)])
def test_nothing_is_given_back_without_gradients_or_against_the_users_will(monkeypatch, gradients, asked_to_keep):
    monkeypatch.delenv(KEEPS_ALL, raising=False)
    if asked_to_keep:
        monkeypatch.setenv(KEEPS_ALL, "17179869184")
    output = torch.zeros(1, requires_grad=gradients) * 2
    give_back_before_backward(output)
    assert output._backward_hooks is None
