"""What the convolution adds to a linear gate: nothing at the start, then the neighbourhood and the UNet's features."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nnunet_autosam2.architectures.convolutional_gate import ConvolutionalGatedFusion
from nnunet_autosam2.architectures.fusion import FusionInputs, GatedFusion, Reliability

C, NUM_FEATURES, SIZE = 2, 3, (7, 21, 22)
STRIDES = pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)], ids=str)


def make_inputs(region_based: bool = True) -> FusionInputs:
    generator = torch.Generator().manual_seed(0)
    unet, sam2 = 4 * torch.randn(2, 2, C, *SIZE, generator=generator)
    scores = [torch.rand(2, count, SIZE[0], generator=generator) for count in (C, C, 1)]
    features = torch.randn(2, NUM_FEATURES, *SIZE, generator=generator)
    return FusionInputs(unet, sam2, Reliability(*scores), [0.5] * C, region_based, features)


def make_gate(stride: tuple[int, int, int] = (2, 2, 2), closed: bool = False, trained: bool = False) -> GatedFusion:
    torch.manual_seed(1)
    fusion = ConvolutionalGatedFusion(C, NUM_FEATURES, stride, closed)
    if trained:
        torch.nn.init.normal_(fusion.output_weight, std=0.05)
    return fusion


@STRIDES
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
def test_it_starts_as_a_linear_gate_bit_by_bit(stride, closed, region_based):
    fusion, linear, inputs = make_gate(stride, closed), GatedFusion(C, closed), make_inputs(region_based)
    for name, parameter in linear.seg_layers.items():
        torch.nn.init.normal_(parameter, std=0.01)
        fusion.seg_layers[name].data.copy_(parameter)
    assert all(map(torch.equal, fusion.weigh(inputs), linear.weigh(inputs)))


@STRIDES
@pytest.mark.parametrize("where", ["unet", "sam2", "features"])
def test_it_sees_its_neighbourhood_and_no_further(stride, where):
    fusion, inputs = make_gate(stride, trained=True), make_inputs()
    before = fusion.gate(inputs)
    getattr(inputs, where)[0, 0, 3, 10, 10] += 5
    changed = (fusion.gate(inputs) != before).any(1)
    assert not changed[1].any()
    distances = [(torch.arange(side) - at).abs() for side, at in zip(SIZE, (3, 10, 10), strict=True)]
    steps = torch.stack(torch.meshgrid(*[d / s for d, s in zip(distances, stride, strict=True)], indexing="ij")).amax(0)
    assert changed[0][steps <= 1].all()
    assert not changed[0][steps > 4].any()


@STRIDES
@pytest.mark.parametrize("field", range(3), ids=Reliability._fields)
def test_it_sees_how_reliable_sam2_is(stride, field):
    fusion, inputs = make_gate(stride, trained=True), make_inputs()
    before = fusion.gate(inputs)
    inputs.reliability[field][0] += 0.5
    assert (fusion.gate(inputs) != before).any(1)[0].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_it_computes_in_the_precision_of_the_features(dtype):
    fusion, inputs, dtypes = make_gate(trained=True), make_inputs(), []
    fusion.neighbourhood.register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    exact, half = fusion.gate(inputs), fusion.gate(inputs._replace(features=inputs.features.to(dtype)))
    assert dtypes == [torch.float32, dtype]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.3, rtol=0.05)
    half.square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in learning(fusion).values())


def learning(fusion: GatedFusion) -> dict[str, Tensor]:
    """Parameters with a gradient."""
    return {name: each for name, each in fusion.named_parameters() if each.grad is not None and each.grad.any()}


def test_from_the_second_step_on_all_of_it_learns():
    fusion, inputs = make_gate(), make_inputs()
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=1e-3)
    _, weight = fusion.weigh(inputs)
    weight.square().mean().backward()
    linear = {f"seg_layers.{name}" for name in ("bias", "opinion_weight", "reliability_weight")}
    assert learning(fusion).keys() == {*linear, "seg_layers.output_weight"}
    optimizer.step()
    optimizer.zero_grad()
    _, weight = fusion.weigh(inputs)
    weight.square().mean().backward()
    assert learning(fusion).keys() == dict(fusion.named_parameters()).keys()


def loss_after_training(fusion: GatedFusion, inputs: FusionInputs, sam2_is_right: Tensor) -> float:
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.mse_loss(fusion.weigh(inputs)[1], sam2_is_right)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_it_learns_what_only_features_and_neighbours_tell():
    """SAM2 is right on one side of a line that the first feature draws, below much noise."""
    inputs = make_inputs()
    right = (torch.arange(SIZE[2]) < 11).float().expand(2, C, *SIZE)
    inputs.features[:, 0] += 2 * right[:, 0]
    assert loss_after_training(GatedFusion(C), inputs, right) > 0.2
    assert loss_after_training(make_gate(), inputs, right) < 0.05
