"""Against SAM2's own blocks, at sizes that need padding and at one that does not."""

import copy

import pytest
import torch
from sam2.modeling.backbones.hieradet import MultiScaleBlock
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunet_autosam2.architectures.sam2.model import SAM2
from nnunet_autosam2.architectures.sam2.tuning import add_adapters
from nnunet_autosam2.architectures.sam2.windowed_attention import UnpaddedBlock

MODEL = "sam2.1-hiera-tiny"


def pair(image_size: int, adapters: bool = False) -> tuple[SAM2, SAM2]:
    """Ours and, with the same weights, one with SAM2's own blocks; biases are not 0, as in a trained model."""
    torch.manual_seed(0)
    ours = SAM2.build(MODEL, image_size)
    if adapters:
        add_adapters(ours, rank=4)
    for name, parameter in ours.image_encoder.named_parameters():
        if name.endswith("bias") or "lora" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    theirs = copy.deepcopy(ours)
    for block in theirs.modules():
        if isinstance(block, UnpaddedBlock):
            block.__class__ = MultiScaleBlock
    return ours, theirs


@pytest.mark.parametrize(
    ("image_size", "adapters"), [(96, True), (128, False), (224, False)], ids=["96-lora", "128-plain", "224-plain"]
)
def test_result_and_gradients_are_sam2s_own(image_size, adapters):
    images = torch.randn(2, 3, image_size, image_size)
    for sam2 in (networks := pair(image_size, adapters)):
        sum(values.square().mean() for values in sam2.encode(images)).backward()
    with torch.no_grad():
        for ours, theirs in zip(*(sam2.encode(images) for sam2 in networks), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for (name, ours), (_, theirs) in zip(*(sam2.named_parameters() for sam2 in networks), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("image_size", "share"), [(128, 0.8), (224, 1.0), (256, 0.8), (512, 0.925)])
def test_operations_that_are_left(image_size, share):
    images = torch.empty(1, 3, image_size, image_size, device="meta")
    counted = []
    for sam2 in pair(image_size):
        sam2.to("meta")  # operations without numbers
        # The fused attention of a CPU is counted by recent versions of torch alone.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            sam2.encode(images)
        counted.append(counter.get_total_flops())
    assert counted[0] / counted[1] == pytest.approx(share, abs=0.01)
