import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2.architectures.convolutional_gate import ConvolutionalGatedFusion
from nnunet_autosam2.architectures.fusion import (
    GATE_LR_MULTIPLIER,
    FixedFusion,
    FusionInputs,
    GatedFusion,
    Reliability,
    blend,
)
from nnunet_autosam2.architectures.masks import VolumeMasks

C, NUM_FEATURES, SIZE = 3, 2, (4, 5, 6)
MODES = pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
BLENDS = pytest.mark.parametrize("blends", [[0.0] * C, [0.3] * C, [1.0] * C, [0.9, 0.2, 0.4], [0.0, 1.0, 0.5]], ids=str)


KINDS = pytest.mark.parametrize("kind", ["gated", "convolutional"])


def make_gate(kind: str, closed: bool = False, num_classes: int = C) -> GatedFusion:
    if kind == "gated":
        return GatedFusion(num_classes, closed)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ConvolutionalGatedFusion(num_classes, NUM_FEATURES, (1, 2, 2), closed)


def probability(logits: torch.Tensor, region_based: bool) -> torch.Tensor:
    return logits.sigmoid() if region_based else logits.softmax(1)


def make_logits(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    unet, sam2 = 4 * torch.randn(2, 2, C, *SIZE, generator=generator, dtype=dtype)
    return unet, sam2


def make_reliability() -> Reliability:
    generator = torch.Generator().manual_seed(1)
    return Reliability(
        torch.rand(2, C, SIZE[0], generator=generator),
        torch.rand(2, C, SIZE[0], generator=generator),
        torch.rand(2, 1, SIZE[0], generator=generator),
    )


def make_features(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, NUM_FEATURES, *SIZE, generator=torch.Generator().manual_seed(4))


def make_inputs(
    unet: torch.Tensor,
    sam2: torch.Tensor,
    blends: list[float],
    region_based: bool,
    reliability: Reliability | None = None,
) -> FusionInputs:
    return FusionInputs(unet, sam2, reliability or make_reliability(), blends, region_based, make_features())


def expected_probability(unet, sam2, blends, region_based):
    weight = torch.tensor(blends, dtype=torch.double).view(1, -1, 1, 1, 1)
    blended = weight * probability(unet.double(), region_based) + (1 - weight) * probability(
        sam2.double(), region_based
    )
    return blended if region_based else blended / blended.sum(1, keepdim=True)


@MODES
@BLENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fixed_is_the_blend_of_the_probabilities(region_based, blends, dtype):
    unet, sam2 = make_logits(dtype)
    fused, _ = FixedFusion().weigh(make_inputs(unet, sam2, blends, region_based))
    assert fused.dtype == dtype
    torch.testing.assert_close(
        probability(fused.double(), region_based),
        expected_probability(unet, sam2, blends, region_based),
        rtol=0,
        atol=1e-12 if dtype == torch.float64 else 1e-6,
    )


@MODES
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_huge_logits_stay_finite_and_so_do_their_gradients(region_based, weight):
    signs = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * 4)
    unet, sam2 = signs[:, :2, None, None, None].clone(), signs[:, 2:, None, None, None].clone()
    leaves = [unet.requires_grad_(), sam2.requires_grad_()]
    fused, _ = FixedFusion().weigh(FusionInputs(unet, sam2, make_reliability(), [weight] * 2, region_based))
    fused.sum().backward()
    assert fused.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@MODES
def test_gradient_is_the_blends(region_based):
    unet, sam2 = (t[:1, :, :1, :1, :2].requires_grad_() for t in make_logits(torch.double))
    log_weight = torch.rand(C, dtype=torch.double).view(1, C, 1, 1, 1).log().requires_grad_()

    def function(unet, sam2, log_weight):
        return blend(unet, sam2, log_weight, torch.log1p(-log_weight.exp()), region_based)

    assert torch.autograd.gradcheck(function, (unet, sam2, log_weight))


@KINDS
@MODES
@pytest.mark.parametrize("blends", [[0.5] * C, [0.9, 0.2, 0.4]], ids=str)
def test_gated_starts_as_the_fixed_blend(kind, region_based, blends):
    arguments = make_inputs(*make_logits(), blends, region_based)
    torch.testing.assert_close(make_gate(kind).weigh(arguments), FixedFusion().weigh(arguments))


@KINDS
@MODES
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gated_starts_close_to_a_blend_of_nothing_or_everything(kind, region_based, weight):
    arguments = make_inputs(*make_logits(), [weight] * C, region_based)
    gated, fixed = (
        probability(fusion.weigh(arguments)[0], region_based) for fusion in (make_gate(kind), FixedFusion())
    )
    torch.testing.assert_close(gated, fixed, rtol=0, atol=2e-3)


@KINDS
@MODES
@pytest.mark.parametrize(("bias", "winner"), [(50.0, 0), (-50.0, 1)])
def test_gate_can_close_on_either_side(kind, region_based, bias, winner):
    fusion, logits = make_gate(kind), make_logits()
    torch.nn.init.constant_(fusion.bias, bias)
    fused, _ = fusion.weigh(make_inputs(*logits, [0.5] * C, region_based))
    expected = logits[winner] if region_based else logits[winner].log_softmax(1)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


@KINDS
@MODES
@pytest.mark.parametrize("bias", [200.0, -200.0])
def test_a_closed_gate_has_finite_gradients(kind, region_based, bias):
    fusion, logits = make_gate(kind), make_logits()
    torch.nn.init.constant_(fusion.bias, bias)
    leaves = [value.requires_grad_() for value in logits]
    fused, _ = fusion.weigh(make_inputs(*logits, [0.5] * C, region_based))
    fused.square().sum().backward()
    assert fused.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@KINDS
def test_an_opening_neither_subtracts_sam2_nor_exaggerates_it(kind):
    fusion, logits = make_gate(kind, closed=True), make_logits()
    arguments = make_inputs(*logits, [0.5] * C, True)
    with torch.no_grad():
        fusion.opening.copy_(torch.tensor([-0.5, 0.5, 1.5]) / GATE_LR_MULTIPLIER)
    unet, (open_wide, _) = logits[0], make_gate(kind).weigh(arguments)
    expected = torch.stack([unet[:, 0], (unet[:, 1] + open_wide[:, 1]) / 2, open_wide[:, 2]], 1)
    fused, sam2_weight = fusion.weigh(arguments)
    torch.testing.assert_close(fused, expected)
    assert ((sam2_weight >= 0) & (sam2_weight <= 1)).all()


@KINDS
@pytest.mark.parametrize(("opening", "can"), [(-0.5, "open"), (0.0, "open"), (1.0, "close"), (1.5, "close")])
@pytest.mark.parametrize("wanted", ["open", "close"])
def test_an_opening_at_its_bound_can_come_back_and_go_no_further(kind, opening, can, wanted):
    fusion, (unet, sam2) = make_gate(kind, closed=True, num_classes=1), torch.full((2, 1, 1, *SIZE), 2.0)
    torch.nn.init.constant_(fusion.opening, opening / GATE_LR_MULTIPLIER)
    reliability = Reliability(*[torch.rand(1, 1, SIZE[0])] * 3)
    _, weight = fusion.weigh(FusionInputs(unet, -sam2, reliability, [0.5], True, make_features(1)))
    (-weight if wanted == "open" else weight).sum().backward()
    assert bool(fusion.opening.grad) == (can == wanted)


@KINDS
def test_gate_is_by_class(kind):
    fusion, (unet, sam2) = make_gate(kind), make_logits()
    with torch.no_grad():
        fusion.bias[0] = 50
    fused, _ = fusion.weigh(make_inputs(unet, sam2, [0.5] * C, True))
    even, _ = FixedFusion().weigh(make_inputs(unet, sam2, [0.5] * C, True))
    torch.testing.assert_close(fused[:, 0], unet[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused[:, 1:], even[:, 1:])


@KINDS
@pytest.mark.parametrize("field", range(3), ids=Reliability._fields)
def test_gate_can_follow_each_kind_of_reliability(kind, field):
    fusion, (unet, sam2), reliability = make_gate(kind), make_logits(), make_reliability()
    torch.nn.init.constant_(fusion.reliability_weight[field], -2.0)
    gate = fusion.gate(make_inputs(unet, sam2, [0.5] * C, True, reliability))
    expected = -2 * GATE_LR_MULTIPLIER * reliability[field][..., None, None].expand_as(gate)
    torch.testing.assert_close(gate, expected)


@KINDS
@MODES
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_every_weight_of_the_gate_learns_from_the_first_step(kind, region_based, scale):
    fusion, (unet, sam2), target = make_gate(kind), make_logits(), torch.rand(2, C, *SIZE)
    if kind == "convolutional":  # what is behind a layer of zeros learns from the second step on
        torch.nn.init.constant_(fusion.output_weight, 1e-3)
    inputs = make_inputs(scale * unet, scale * sam2, [0.5] * C, region_based)
    _, weight = fusion.weigh(inputs)
    F.mse_loss(weight, target).backward()
    assert all((p.grad.isfinite() & (p.grad != 0)).all() for p in fusion.parameters())


@KINDS
@pytest.mark.parametrize("closed", [False, True])
def test_the_fused_logits_teach_the_gate_nothing(kind, closed):
    fusion, (unet, sam2) = make_gate(kind, closed), make_logits()
    fusion.deep_supervision = True
    fused, _ = fusion.weigh(make_inputs(unet.requires_grad_(), sam2, [0.5] * C, True))
    fused.square().sum().backward()
    assert unet.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in fusion.parameters())


@KINDS
@MODES
def test_what_the_gate_looks_at_gets_no_gradient_from_it(kind, region_based):
    fusion = make_gate(kind)
    for parameter in fusion.parameters():
        torch.nn.init.ones_(parameter)
    (unet, sam2), reliability, features = make_logits(), make_reliability(), make_features()
    inputs = [unet, sam2, *reliability, features]
    for value in inputs:
        value.requires_grad_()
    gate = fusion.gate(FusionInputs(unet, sam2, reliability, [0.5] * C, region_based, features))
    gate.sum().backward()
    assert all(value.grad is None for value in inputs)


@KINDS
def test_in_label_mode_the_gate_does_not_see_a_constant_that_no_softmax_sees(kind):
    fusion, (unet, sam2), reliability = make_gate(kind), make_logits(), make_reliability()
    for parameter in fusion.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    gate = fusion.gate(make_inputs(unet, sam2, [0.5] * C, False, reliability))
    shifted = fusion.gate(make_inputs(unet + 7, sam2 - 3, [0.5] * C, False, reliability))
    torch.testing.assert_close(shifted, gate, atol=1e-4, rtol=1e-4)


CLOSED = pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
SOME = [False, True, False]
BLEND = [0.5, 0.4, 0.3]


def make_trained(kind: str, closed: bool) -> GatedFusion:
    fusion, generator = make_gate(kind, closed), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / GATE_LR_MULTIPLIER)
    return fusion


@KINDS
@MODES
@CLOSED
def test_without_a_veto_it_is_the_gates_blend_exactly(kind, region_based, closed):
    fusion, (unet, sam2), reliability = make_trained(kind, closed), make_logits(), make_reliability()
    fused, sam2_weight = fusion.weigh(make_inputs(unet, sam2, BLEND, region_based, reliability))
    gate = fusion.gate(make_inputs(unet, sam2, BLEND, region_based, reliability))
    log_weight, weight = F.logsigmoid(gate), torch.sigmoid(-gate)
    torch.testing.assert_close(log_weight - gate, F.logsigmoid(-gate))
    expected = blend(unet, sam2, log_weight, log_weight - gate, region_based)
    if closed:
        opening = GATE_LR_MULTIPLIER * fusion.opening.view(1, -1, 1, 1, 1)
        change = expected - (unet if region_based else unet.log_softmax(1))
        expected, weight = torch.addcmul(unet, opening, change), opening * weight
    assert torch.equal(fused, expected)
    assert torch.equal(sam2_weight, weight)
    assert (fused - unet).abs().amax((0, 2, 3, 4)).min() > 0.1


@KINDS
@MODES
@CLOSED
def test_a_veto_of_all_classes_leaves_the_unets_logits_bit_by_bit(kind, region_based, closed):
    fusion, (unet, sam2) = make_trained(kind, closed), make_logits()
    fusion.veto([True] * C)
    fused, sam2_weight = fusion.weigh(make_inputs(unet, sam2, BLEND, region_based))
    assert torch.equal(fused, unet)
    assert not sam2_weight.any()
    fusion.veto([False] * C)
    inputs = make_inputs(unet, sam2, BLEND, region_based)
    assert all(map(torch.equal, fusion.weigh(inputs), make_trained(kind, closed).weigh(inputs)))


@KINDS
@MODES
@CLOSED
def test_a_veto_of_one_class_leaves_the_others_bit_by_bit(kind, region_based, closed):
    """Where labels compete, log-probabilities stand for the logits of an open gate."""
    fusion, (unet, sam2), reliability = make_trained(kind, closed), make_logits(), make_reliability()
    before, weight_before = fusion.weigh(make_inputs(unet, sam2, BLEND, region_based, reliability))
    fusion.veto(SOME)
    fused, weight = fusion.weigh(make_inputs(unet, sam2, BLEND, region_based, reliability))
    alone = unet if closed or region_based else unet.log_softmax(1)
    assert torch.equal(fused, torch.where(torch.tensor(SOME).view(1, -1, 1, 1, 1), alone, before))
    assert not weight[:, 1].any()
    assert torch.equal(weight[:, ::2], weight_before[:, ::2])


@KINDS
@MODES
@CLOSED
@pytest.mark.parametrize("vetoed", [SOME, [True] * C], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_vetoed_gate_learns_nothing_and_all_gradients_are_finite(kind, region_based, closed, vetoed, scale):
    fusion, (unet, sam2) = make_trained(kind, closed), [(scale * logits).requires_grad_() for logits in make_logits()]
    fusion.veto(vetoed)
    fused, weight = fusion.weigh(make_inputs(unet, sam2, BLEND, region_based))
    (fused.square().mean() + weight.mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())
    by_class = {name: each for name, each in fusion.seg_layers.items() if name != "input_weight"}
    assert not any(each.grad[..., torch.tensor(vetoed)].any() for each in by_class.values())
    assert unet.grad.isfinite().all()
    assert sam2.grad.isfinite().all()
    assert bool(sam2.grad.any()) == (not all(vetoed))


@KINDS
@MODES
@CLOSED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_veto_holds_in_half_precision_and_compiled_without_another_compilation(kind, region_based, closed, dtype):
    fusion, (unet, sam2), first = make_trained(kind, closed), make_logits(), 0 if region_based else 1
    predicted_iou, presence, nearness = make_reliability()
    regions = (sam2[:, first:], predicted_iou[:, first:], presence[:, first:])
    masks = VolumeMasks(*regions, covered=torch.ones_like(nearness[:, 0], dtype=torch.bool), distance=nearness[:, 0])
    compilations = []

    def backend(graph: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        compilations.append(graph)
        return graph

    torch.compiler.reset()  # what other parameters of this test have compiled counts towards a limit
    fusion.compile(backend=backend, fullgraph=True)
    unet = unet.to(dtype)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        for vetoed in ([False] * C, SOME, [True] * C):
            fusion.veto(vetoed)
            fused = fusion(unet, masks, BLEND, region_based, make_features().to(dtype))
            alone = [torch.equal(fused.logits[:, c], unet[:, c].float()) for c in range(C)]
            assert alone == (vetoed if region_based or closed or all(vetoed) else [False] * C)
            assert [not fused.sam2_weight[:, c].any() for c in range(C)] == vetoed
    assert len(compilations) == 1
