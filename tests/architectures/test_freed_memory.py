"""Against the resident memory of this process."""

import sys

import pytest
import torch

from nnunet_autosam2.architectures import freed_memory
from nnunet_autosam2.architectures.freed_memory import KEEPS_ALL, give_back_before_backward
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss
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


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
def test_a_training_step_gives_back_between_sam2_and_the_unet(make_network, monkeypatch):
    monkeypatch.delenv(KEEPS_ALL, raising=False)
    network, order = make_network(region_based=True).train(), []
    monkeypatch.setattr(freed_memory, "_give_back", lambda _: order.append("given back"))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: order.append(name))
    output = network.training_outputs(torch.randn(2, 2, 16, 32, 32))
    targets = [torch.ones_like(logits) for logits in output.unet]
    AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=True))(output, targets).backward()
    assert order.count("given back") == 1
    at = order.index("given back")
    assert order[:at]
    assert not any(name.startswith("unet.") for name in order[:at])
    assert all(name.startswith("unet.") for name in order[at + 1 :])
