import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2.architectures.fusion import GATE_LR_MULTIPLIER, FixedFusion, GatedFusion, Reliability, blend
from nnunet_autosam2.architectures.masks import VolumeMasks

C, SIZE = 3, (4, 5, 6)
MODES = pytest.mark.parametrize("region_based", [True, False], ids=["regions", "labels"])
BLENDS = pytest.mark.parametrize("blends", [[0.0] * C, [0.3] * C, [1.0] * C, [0.9, 0.2, 0.4], [0.0, 1.0, 0.5]], ids=str)


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
    fused, _ = FixedFusion().weigh(unet, sam2, make_reliability(), blends, region_based)
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
    fused, _ = FixedFusion().weigh(unet, sam2, make_reliability(), [weight] * 2, region_based)
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


@MODES
@pytest.mark.parametrize("blends", [[0.5] * C, [0.9, 0.2, 0.4]], ids=str)
def test_gated_starts_as_the_fixed_blend(region_based, blends):
    arguments = (*make_logits(), make_reliability(), blends, region_based)
    torch.testing.assert_close(GatedFusion(C).weigh(*arguments), FixedFusion().weigh(*arguments))


@MODES
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gated_starts_close_to_a_blend_of_nothing_or_everything(region_based, weight):
    arguments = (*make_logits(), make_reliability(), [weight] * C, region_based)
    gated, fixed = (
        probability(fusion.weigh(*arguments)[0], region_based) for fusion in (GatedFusion(C), FixedFusion())
    )
    torch.testing.assert_close(gated, fixed, rtol=0, atol=2e-3)


@MODES
@pytest.mark.parametrize(("bias", "winner"), [(50.0, 0), (-50.0, 1)])
def test_gate_can_close_on_either_side(region_based, bias, winner):
    fusion, logits = GatedFusion(C), make_logits()
    torch.nn.init.constant_(fusion.bias, bias)
    fused, _ = fusion.weigh(*logits, make_reliability(), [0.5] * C, region_based)
    expected = logits[winner] if region_based else logits[winner].log_softmax(1)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


@MODES
@pytest.mark.parametrize("bias", [200.0, -200.0])
def test_a_closed_gate_has_finite_gradients(region_based, bias):
    fusion, logits = GatedFusion(C), make_logits()
    torch.nn.init.constant_(fusion.bias, bias)
    leaves = [value.requires_grad_() for value in logits]
    fused, _ = fusion.weigh(*logits, make_reliability(), [0.5] * C, region_based)
    fused.square().sum().backward()
    assert fused.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_an_opening_neither_subtracts_sam2_nor_exaggerates_it():
    fusion, logits = GatedFusion(C, closed=True), make_logits()
    arguments = (*logits, make_reliability(), [0.5] * C, True)
    with torch.no_grad():
        fusion.opening.copy_(torch.tensor([-0.5, 0.5, 1.5]) / GATE_LR_MULTIPLIER)
    unet, (open_wide, _) = logits[0], GatedFusion(C).weigh(*arguments)
    expected = torch.stack([unet[:, 0], (unet[:, 1] + open_wide[:, 1]) / 2, open_wide[:, 2]], 1)
    fused, sam2_weight = fusion.weigh(*arguments)
    torch.testing.assert_close(fused, expected)
    assert ((sam2_weight >= 0) & (sam2_weight <= 1)).all()


@pytest.mark.parametrize(("opening", "can"), [(-0.5, "open"), (0.0, "open"), (1.0, "close"), (1.5, "close")])
@pytest.mark.parametrize("wanted", ["open", "close"])
def test_an_opening_at_its_bound_can_come_back_and_go_no_further(opening, can, wanted):
    fusion, (unet, sam2) = GatedFusion(1, closed=True), torch.full((2, 1, 1, *SIZE), 2.0)
    torch.nn.init.constant_(fusion.opening, opening / GATE_LR_MULTIPLIER)
    _, weight = fusion.weigh(unet, -sam2, Reliability(*[torch.rand(1, 1, SIZE[0])] * 3), [0.5], True)
    (-weight if wanted == "open" else weight).sum().backward()
    assert bool(fusion.opening.grad) == (can == wanted)


def test_gate_is_by_class():
    fusion, (unet, sam2) = GatedFusion(C), make_logits()
    with torch.no_grad():
        fusion.bias[0] = 50
    fused, _ = fusion.weigh(unet, sam2, make_reliability(), [0.5] * C, True)
    even, _ = FixedFusion().weigh(unet, sam2, make_reliability(), [0.5] * C, True)
    torch.testing.assert_close(fused[:, 0], unet[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused[:, 1:], even[:, 1:])


@pytest.mark.parametrize("field", range(3), ids=Reliability._fields)
def test_gate_can_follow_each_kind_of_reliability(field):
    fusion, (unet, sam2), reliability = GatedFusion(C), make_logits(), make_reliability()
    torch.nn.init.constant_(fusion.reliability_weight[field], -2.0)
    gate = fusion.gate(unet, sam2, reliability, [0.5] * C, region_based=True)
    expected = -2 * GATE_LR_MULTIPLIER * reliability[field][..., None, None].expand_as(gate)
    torch.testing.assert_close(gate, expected)


@MODES
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_every_weight_of_the_gate_learns_from_the_first_step(region_based, scale):
    fusion, (unet, sam2), target = GatedFusion(C), make_logits(), torch.rand(2, C, *SIZE)
    _, weight = fusion.weigh(scale * unet, scale * sam2, make_reliability(), [0.5] * C, region_based)
    F.mse_loss(weight, target).backward()
    assert all((parameter.grad.isfinite() & (parameter.grad != 0)).all() for parameter in fusion.parameters())


@pytest.mark.parametrize("closed", [False, True])
def test_the_fused_logits_teach_the_gate_nothing(closed):
    fusion, (unet, sam2) = GatedFusion(C, closed), make_logits()
    fusion.deep_supervision = True
    fused, _ = fusion.weigh(unet.requires_grad_(), sam2, make_reliability(), [0.5] * C, True)
    fused.square().sum().backward()
    assert unet.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in fusion.parameters())


@MODES
def test_what_the_gate_looks_at_gets_no_gradient_from_it(region_based):
    fusion = GatedFusion(C)
    for parameter in fusion.parameters():
        torch.nn.init.ones_(parameter)
    (unet, sam2), reliability = make_logits(), make_reliability()
    inputs = [unet, sam2, *reliability]
    for value in inputs:
        value.requires_grad_()
    gate = fusion.gate(unet, sam2, reliability, [0.5] * C, region_based)
    gate.sum().backward()
    assert all(value.grad is None for value in inputs)


def test_in_label_mode_the_gate_does_not_see_a_constant_that_no_softmax_sees():
    fusion, (unet, sam2), reliability = GatedFusion(C), make_logits(), make_reliability()
    torch.nn.init.ones_(fusion.opinion_weight)
    gate = fusion.gate(unet, sam2, reliability, [0.5] * C, region_based=False)
    shifted = fusion.gate(unet + 7, sam2 - 3, reliability, [0.5] * C, region_based=False)
    torch.testing.assert_close(shifted, gate, atol=1e-4, rtol=1e-4)


CLOSED = pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
SOME = [False, True, False]
BLEND = [0.5, 0.4, 0.3]


def make_trained(closed: bool) -> GatedFusion:
    fusion, generator = GatedFusion(C, closed), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / GATE_LR_MULTIPLIER)
    return fusion


@MODES
@CLOSED
def test_without_a_veto_it_is_the_gates_blend_exactly(region_based, closed):
    fusion, (unet, sam2), reliability = make_trained(closed), make_logits(), make_reliability()
    fused, sam2_weight = fusion.weigh(unet, sam2, reliability, BLEND, region_based)
    gate = fusion.gate(unet, sam2, reliability, BLEND, region_based)
    expected, weight = blend(unet, sam2, F.logsigmoid(gate), F.logsigmoid(-gate), region_based), torch.sigmoid(-gate)
    if closed:
        opening = GATE_LR_MULTIPLIER * fusion.opening.view(1, -1, 1, 1, 1)
        change = expected - (unet if region_based else unet.log_softmax(1))
        expected, weight = unet + opening * change, opening * weight
    assert torch.equal(fused, expected)
    assert torch.equal(sam2_weight, weight)
    assert (fused - unet).abs().amax((0, 2, 3, 4)).min() > 0.1


@MODES
@CLOSED
def test_a_veto_of_all_classes_leaves_the_unets_logits_bit_by_bit(region_based, closed):
    fusion, (unet, sam2) = make_trained(closed), make_logits()
    fusion.veto([True] * C)
    fused, sam2_weight = fusion.weigh(unet, sam2, make_reliability(), BLEND, region_based)
    assert torch.equal(fused, unet)
    assert not sam2_weight.any()
    fusion.veto([False] * C)
    expected = make_trained(closed).weigh(unet, sam2, make_reliability(), BLEND, region_based)
    assert all(map(torch.equal, fusion.weigh(unet, sam2, make_reliability(), BLEND, region_based), expected))


@MODES
@CLOSED
def test_a_veto_of_one_class_leaves_the_others_bit_by_bit(region_based, closed):
    """Where labels compete, log-probabilities stand for the logits of an open gate."""
    fusion, (unet, sam2), reliability = make_trained(closed), make_logits(), make_reliability()
    before, weight_before = fusion.weigh(unet, sam2, reliability, BLEND, region_based)
    fusion.veto(SOME)
    fused, weight = fusion.weigh(unet, sam2, reliability, BLEND, region_based)
    alone = unet if closed or region_based else unet.log_softmax(1)
    assert torch.equal(fused, torch.where(torch.tensor(SOME).view(1, -1, 1, 1, 1), alone, before))
    assert not weight[:, 1].any()
    assert torch.equal(weight[:, ::2], weight_before[:, ::2])


@MODES
@CLOSED
@pytest.mark.parametrize("vetoed", [SOME, [True] * C], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_vetoed_gate_learns_nothing_and_all_gradients_are_finite(region_based, closed, vetoed, scale):
    fusion, (unet, sam2) = make_trained(closed), [(scale * logits).requires_grad_() for logits in make_logits()]
    fusion.veto(vetoed)
    fused, weight = fusion.weigh(unet, sam2, make_reliability(), BLEND, region_based)
    (fused.square().mean() + weight.mean()).backward()
    for parameter in fusion.parameters():
        assert parameter.grad.isfinite().all()
        assert not parameter.grad[..., torch.tensor(vetoed)].any()
    assert unet.grad.isfinite().all()
    assert sam2.grad.isfinite().all()
    assert bool(sam2.grad.any()) == (not all(vetoed))


@MODES
@CLOSED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_veto_holds_in_half_precision_and_compiled_without_another_compilation(region_based, closed, dtype):
    fusion, (unet, sam2), first = make_trained(closed), make_logits(), 0 if region_based else 1
    predicted_iou, presence, nearness = make_reliability()
    regions = (sam2[:, first:], predicted_iou[:, first:], presence[:, first:])
    masks = VolumeMasks(*regions, covered=torch.ones_like(nearness[:, 0], dtype=torch.bool), distance=nearness[:, 0])
    compilations = []

    def backend(graph: torch.fx.GraphModule, _) -> torch.fx.GraphModule:
        compilations.append(graph)
        return graph

    fusion.compile(backend=backend, fullgraph=True)
    unet = unet.to(dtype)
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        for vetoed in ([False] * C, SOME, [True] * C):
            fusion.veto(vetoed)
            fused = fusion(unet, masks, BLEND, region_based)
            alone = [torch.equal(fused.logits[:, c], unet[:, c].float()) for c in range(C)]
            assert alone == (vetoed if region_based or closed or all(vetoed) else [False] * C)
            assert [not fused.sam2_weight[:, c].any() for c in range(C)] == vetoed
    assert len(compilations) == 1
