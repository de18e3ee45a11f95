"""What trains, what does not, and that it is what has a part in the masks."""

import copy

import pytest
import torch
from torch import nn

from nnunet_autosam2.architectures.masks import SliceMasks
from nnunet_autosam2.architectures.sam2.model import SAM2
from nnunet_autosam2.architectures.sam2.tuning import merge_adapters, set_tuning

MODEL = "sam2.1-hiera-tiny"
TUNINGS = ("frozen", "decoder", "lora", "full")


def make_model(tuning: str, mask_prompt: bool = False) -> SAM2:
    torch.manual_seed(0)
    sam2 = SAM2.build(MODEL, 64)
    set_tuning(sam2, tuning, lora_rank=8, mask_prompt=mask_prompt)
    return sam2


def predict(sam2: SAM2, mask_prompt: bool = False) -> SliceMasks:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    points = 64 * torch.rand(2, 1, 5, 2, generator=generator)
    labels = torch.tensor([[[2, 3, 1, 0, -1]]] * 2, dtype=torch.int32)
    dense = torch.zeros(2, 1, 256, 4, 4)
    if mask_prompt:
        dense = dense + sam2.mask_prompt(torch.randn(2, 16, 16, generator=generator))[:, None]
    return sam2.decode(sam2.encode(images), points, labels, dense)


def backward(sam2: SAM2, mask_prompt: bool = False) -> None:
    prediction = predict(sam2, mask_prompt)
    sum(values.square().sum() for values in prediction[:3]).backward()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def under(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def test_what_trains():
    everything = {name for name, _ in make_model("frozen").named_parameters()}
    unused = under(
        everything,
        "sam_prompt_encoder.mask_downscaling",
        *(f"sam_mask_decoder.output_hypernetworks_mlps.{i}" for i in (1, 2, 3)),
    )
    once_an_image = under(everything, "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
    decoder = under(everything, "sam_mask_decoder", "sam_prompt_encoder") - unused - once_an_image
    assert trainable(make_model("frozen")) == trainable(make_model("frozen", mask_prompt=True)) == set()
    assert trainable(make_model("full")) == everything - unused
    assert trainable(make_model("decoder")) == decoder
    assert trainable(make_model("decoder", mask_prompt=True)) == decoder | under(
        everything, "sam_prompt_encoder.mask_downscaling"
    )
    adapters = trainable(make_model("lora")) - decoder
    assert decoder < trainable(make_model("lora"))
    assert len(adapters) == 12 * 2 * 2  # blocks, layers, matrices
    assert all(".attn." in name and ".lora_" in name for name in adapters)


@pytest.mark.parametrize("mask_prompt", [False, True])
@pytest.mark.parametrize("tuning", ["decoder", "lora", "full"])
def test_what_trains_is_what_has_a_part_in_the_masks(tuning, mask_prompt):
    model = make_model(tuning, mask_prompt)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # while it is 0, as at the start, its partner has no gradient
            nn.init.normal_(parameter, std=0.02)
    backward(model, mask_prompt)
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable(model)
    unmoved = {name for name in trainable(model) if not model.get_parameter(name).grad.any()}
    # A softmax over the keys is blind to what is added to all of them; where both images have a mask, SAM2's
    # embedding of "no mask" has no say.
    blind = {"sam_prompt_encoder.no_mask_embed.weight"} if mask_prompt else set()
    assert all(name.endswith("k_proj.bias") for name in unmoved - blind)


def test_adapters_start_as_nothing():
    for ours, plain in zip(predict(make_model("lora")), predict(make_model("frozen")), strict=True):
        assert torch.equal(ours, plain)


def trained_with_adapters() -> tuple[SAM2, SAM2]:
    """Before and after three steps of AdamW with weight decay, as in a training."""
    before = make_model("lora")
    after = copy.deepcopy(before)
    optimizer = torch.optim.AdamW([p for p in after.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        backward(after)
        optimizer.step()
    return before, after


def test_training_with_adapters_leaves_the_encoder_bit_by_bit_and_merging_changes_no_mask(record_property):
    before, after = trained_with_adapters()
    start, end = before.state_dict(), after.state_dict()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert {name for name in changed if name.startswith(("image_encoder", "no_mem_embed"))} == {
        name for name in start if ".lora_" in name
    }
    assert changed <= trainable(before)
    with torch.no_grad():
        adapted, plain = predict(after), predict(before)
        merge_adapters(after)
        merged = predict(after)
    assert (adapted.logits - plain.logits).abs().max() > 1e-2
    assert set(after.state_dict()) == set(make_model("frozen").state_dict())
    record_property("merged", float((merged.logits - adapted.logits).abs().max()))
    for ours, theirs in zip(merged, adapted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_activations_of_a_training_encoder_are_not_kept(tuning):
    """Between forward and backward, the blocks keep what enters them and little else."""

    def kept(model: SAM2) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.image_encoder.trunk(torch.randn(1, 3, 64, 64))
        return sum(sizes)

    recomputing = make_model(tuning)
    keeping = copy.deepcopy(recomputing)
    for block in keeping.image_encoder.trunk.blocks:
        del block.forward
    assert kept(recomputing) < 0.5 * kept(keeping)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_computing_activations_again_changes_no_gradient(tuning):
    recomputing = make_model(tuning)
    keeping = copy.deepcopy(recomputing)
    for block in keeping.image_encoder.trunk.blocks:
        del block.forward
    backward(recomputing)
    backward(keeping)
    for (name, ours), (_, theirs) in zip(recomputing.named_parameters(), keeping.named_parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
