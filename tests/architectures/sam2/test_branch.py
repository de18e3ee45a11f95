import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nnunet_autosam2.architectures.prompts import generate_prompts
from nnunet_autosam2.architectures.sam2.branch import SAM2Branch
from nnunet_autosam2.config import AutoSAM2Config

N, R, H, W = 3, 2, 40, 56


def make_branch(**parameters) -> SAM2Branch:
    torch.manual_seed(0)
    small = {"sam2_image_size": 64, "sam2_precision": "float32"}
    return SAM2Branch(
        in_channels=2, middle_channels=32, num_regions=R, config=AutoSAM2Config(**{**small, **parameters})
    )


@pytest.fixture(scope="module")
def branch() -> SAM2Branch:
    return make_branch()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AutoSAM2Config]:
    """Slices, features of the UNet, probabilities, and which prompts."""
    generator = torch.Generator().manual_seed(0)
    slices = torch.randn(N, 2, H, W, generator=generator)
    features = torch.randn(N, 32, H // 4, W // 4, generator=generator)
    coarse = torch.rand(N, R, H // 8, W // 8, generator=generator)
    return slices, features, F.interpolate(coarse, size=(H, W), mode="bilinear"), AutoSAM2Config()


def test_masks_of_every_region_and_slice(branch, inputs):
    masks, prompts, embeddings = branch(*inputs)
    assert masks.logits.shape == (N, R, 16, 16)
    assert masks.predicted_iou.shape == masks.object_score.shape == (N, R)
    assert prompts.points.shape == (N, R, 15, 2)
    assert prompts.labels.shape == (N, R, 15)
    assert len(embeddings.image) == N
    assert ((masks.predicted_iou >= 0) & (masks.predicted_iou <= 1)).all()
    expected = generate_prompts(inputs[2].flatten(0, 1), 10, 3)
    assert torch.equal(prompts.points.flatten(0, 1), expected.points)
    assert torch.equal(prompts.labels.flatten(0, 1), expected.labels)


def test_prompts_are_made_in_chunks_and_stay_in_their_order(inputs):
    branch = make_branch(sam2_chunk_size=1)
    branch.prompt_chunks.size = 3
    sizes: list[int] = []
    generate = branch.prompt_chunks._run

    def counted(function, arguments, num_chunks):
        sizes.extend(len(chunk) for chunk in arguments[0].tensor_split(num_chunks))
        return generate(function, arguments, num_chunks)

    branch.prompt_chunks._run = counted
    prompts = branch.prompts(inputs[2], inputs[3])
    assert sizes == [3, 3]
    for ours, expected in zip(prompts, generate_prompts(inputs[2].flatten(0, 1), 10, 3), strict=True):
        assert torch.equal(ours.flatten(0, 1), expected)


def test_each_mask_is_sam2s_answer_to_its_own_slice_and_prompt(branch, inputs):
    slices, features, probabilities, _ = inputs
    masks, _, _ = branch(*inputs)
    dense = branch.bridge(features)
    for n in range(N):
        embeddings = branch.sam2.encode(branch.mri_to_rgb(slices[n : n + 1]))
        for r in range(R):
            points, labels = generate_prompts(probabilities[n, r][None], 10, 3)
            in_pixels = points * torch.tensor([64 / W, 64 / H])  # x goes with the width
            alone = branch.sam2.decode(embeddings, in_pixels[None], labels[None], dense[n, r][None, None])
            torch.testing.assert_close(masks.logits[n, r], alone.logits[0, 0], rtol=0, atol=1e-4)
            torch.testing.assert_close(masks.predicted_iou[n, r], alone.predicted_iou[0, 0], rtol=0, atol=1e-5)
            torch.testing.assert_close(masks.object_score[n, r], alone.object_score[0, 0], rtol=0, atol=1e-4)


def test_the_encoder_sees_each_slice_once(branch, inputs):
    seen = []
    handle = branch.sam2.image_encoder.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    branch(*inputs)
    handle.remove()
    assert sum(seen) == N


@pytest.mark.parametrize("tuning", ["frozen", "decoder", "lora", "full"])
def test_chunks_change_neither_masks_nor_gradients(inputs, tuning):
    slices, features, *rest = inputs
    results = []
    for chunk_size in (16, 2):
        branch = make_branch(sam2_tuning=tuning, sam2_chunk_size=chunk_size)
        features = features.detach().requires_grad_()
        masks, _, _ = branch(slices, features, *rest)
        (masks.logits.square().mean() + masks.predicted_iou.sum() + masks.object_score.sum()).backward()
        gradients = {name: parameter.grad for name, parameter in branch.named_parameters()}
        assert {name for name, gradient in gradients.items() if gradient is not None} == {
            name for name, parameter in branch.named_parameters() if parameter.requires_grad
        }
        results.append((masks._asdict(), features.grad, {k: g for k, g in gradients.items() if g is not None}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("tuning", "trains"), [("frozen", False), ("decoder", False), ("lora", True), ("full", True)])
def test_mapper_and_encoder_have_gradients_only_when_the_encoder_is_tuned(inputs, tuning, trains):
    branch = make_branch(sam2_tuning=tuning)
    assert {parameter.requires_grad for parameter in branch.mri_to_rgb.parameters()} == {trains}
    assert branch.encode(inputs[0].requires_grad_()).image.requires_grad == trains


def test_bfloat16_is_sam2s_alone_and_stays_close(branch, inputs):
    exact, exact_prompts, exact_embeddings = branch(*inputs)
    half = make_branch(sam2_precision="bfloat16")
    rounded, prompts, embeddings = half(*inputs)
    assert embeddings.fine.dtype == torch.bfloat16
    for ours, theirs in zip(embeddings, exact_embeddings, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
    for ours, theirs in zip(rounded[:3], exact[:3], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.1 * theirs.norm()
    assert not torch.equal(rounded.logits, exact.logits)
    assert torch.equal(prompts.points, exact_prompts.points)


def test_positions_of_points_are_not_rounded(branch, inputs):
    """SAM2 turns them into waves, in which bfloat16 would move a point by pixels."""
    half, sparse = make_branch(sam2_precision="bfloat16"), []
    for each in (branch, half):
        hook = each.sam2.sam_prompt_encoder.register_forward_hook(lambda *hooked: sparse.append(hooked[-1][0]))
        each(*inputs)
        hook.remove()
    torch.testing.assert_close(sparse[1], sparse[0], rtol=0, atol=0)


def test_float32_encoder_is_exact_under_autocast_and_masks_are_float32(branch, inputs):
    exact, _, _ = branch(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = branch.encode(inputs[0])
        masks, _, _ = branch(*inputs)
    assert torch.equal(embeddings.image, branch.encode(inputs[0]).image)
    assert {values.dtype for values in masks} == {torch.float32}
    assert (masks.logits - exact.logits).norm() < 0.05 * exact.logits.norm()


def test_mask_prompt_is_sam2s_own_of_the_unets_logits(branch, inputs):
    """Where a region is on the slice; where it is not, SAM2 gets none."""
    slices, features, probabilities, config = inputs
    probabilities[0, 1] = 0.01
    with_masks, _, _ = branch(slices, features, probabilities, config.updated({"mask_prompt": True}))
    without, prompts, _ = branch(*inputs)
    encoder, dense = branch.sam2.sam_prompt_encoder, branch.bridge(features)
    for n, r in np.ndindex(N, R):
        if (n, r) == (0, 1):
            assert torch.equal(with_masks.logits[n, r], without.logits[n, r])
            continue
        logits = F.interpolate(probabilities[n, r][None, None].logit(), size=(16, 16), mode="bilinear")
        _, prompt = encoder(None, None, logits)
        points, labels = (
            x[None, None] for x in (prompts.points[n, r] * torch.tensor([64 / W, 64 / H]), prompts.labels[n, r])
        )
        expected = branch.sam2.decode(
            branch.encode(slices[n : n + 1]), points, labels, (prompt - no_mask(branch) + dense[n, r])[None]
        )
        torch.testing.assert_close(with_masks.logits[n, r], expected.logits[0, 0], rtol=0, atol=1e-4)
        assert not torch.allclose(with_masks.logits[n, r], without.logits[n, r], atol=1e-3)


def no_mask(branch: SAM2Branch) -> torch.Tensor:
    return branch.sam2.sam_prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)


@pytest.mark.parametrize("without", ["box_prompt", "points"])
def test_kinds_of_prompts_can_be_switched_off(branch, inputs, without):
    off = {"box_prompt": False} if without == "box_prompt" else {"num_positive_points": 0, "num_negative_points": 0}
    masks, prompts, _ = branch(*inputs[:3], inputs[3].updated(off))
    kinds = set(prompts.labels.unique().tolist())
    assert kinds == ({-1, 0, 1} if without == "box_prompt" else {2, 3})
    assert not torch.allclose(masks.logits, branch(*inputs)[0].logits, atol=1e-4)


class TestParts:
    """A region in several parts is prompted part by part."""

    @pytest.fixture
    def scattered(self, inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AutoSAM2Config]:
        """Three parts of the first region on the first slice, two on the second; nothing of the second on the third."""
        slices, features, _, config = inputs
        probabilities = torch.full((N, R, H, W), 0.1)
        probabilities[:, 0, 4:14, 4:18] = 0.9
        probabilities[:2, 0, 26:36, 4:12] = 0.8
        probabilities[:1, 0, 12:20, 40:50] = 0.7
        probabilities[:2, 1, 8:30, 8:40] = 0.9
        return slices, features, probabilities, config.updated({"boxes_per_region": 3})

    def test_masks_are_those_of_the_parts_united(self, branch, scattered):
        _, features, _, _ = scattered
        masks, prompts, embeddings = branch(*scattered)
        assert prompts.points.shape == (N, R, 3 * 15, 2)
        boxes = (prompts.labels == 2).sum(2)
        assert boxes.tolist() == [[3, 1], [2, 1], [1, 0]]
        scale, dense = torch.tensor([64 / W, 64 / H]), branch.bridge(features)
        for n, r in np.ndindex(N, R):
            of_slice = type(embeddings)(*(values[n : n + 1] for values in embeddings))
            points, labels = (values[n, r].unflatten(0, (3, -1))[: max(boxes[n, r], 1)] for values in prompts)
            alone = branch.sam2.decode(
                of_slice, points[None] * scale, labels[None], dense[n, r].expand(1, len(points), -1, -1, -1)
            )
            torch.testing.assert_close(masks.logits[n, r], alone.logits[0].amax(0), rtol=0, atol=1e-4)
            torch.testing.assert_close(masks.object_score[n, r], alone.object_score[0].amax(), rtol=0, atol=1e-4)
            low, high = alone.predicted_iou[0].aminmax()
            assert low - 1e-5 <= masks.predicted_iou[n, r] <= high + 1e-5
            torch.testing.assert_close(masks.token[n, r], alone.token[0, 0], rtol=0, atol=1e-3)

    def test_where_there_is_one_part_nothing_changes(self, branch, scattered):
        masks, _, _ = branch(*scattered)
        together, _, _ = branch(*scattered[:3], scattered[3].updated({"boxes_per_region": 1}))
        alone = [0, 1, 2, 2], [1, 1, 0, 1]
        for ours, theirs in zip(masks, together, strict=True):
            assert torch.equal(ours[alone], theirs[alone])
        assert not torch.allclose(masks.logits[0, 0], together.logits[0, 0], atol=1e-3)

    def test_only_parts_that_exist_are_decoded(self, branch, scattered):
        prompted = []
        hook = branch.sam2.sam_mask_decoder.register_forward_pre_hook(lambda _, given: prompted.append(len(given[4])))
        branch(*scattered)
        hook.remove()
        assert prompted == [N * R, 3]

    def test_chunks_change_neither_masks_nor_gradients(self, scattered):
        slices, features, *rest = scattered
        results = []
        for chunk_size in (16, 1):
            branch = make_branch(sam2_chunk_size=chunk_size)
            features = features.detach().requires_grad_()
            masks, _, _ = branch(slices, features, *rest)
            (masks.logits.square().mean() + masks.predicted_iou.sum() + masks.object_score.sum()).backward()
            gradients = {name: p.grad for name, p in branch.named_parameters() if p.grad is not None}
            assert set(gradients) == {name for name, p in branch.named_parameters() if p.requires_grad}
            results.append((masks._asdict(), features.grad, gradients))
        torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-5)
