"""Against the decoder of SAM2's own package, with the same weights, one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from sam2.build_sam import build_sam2
from torch import Tensor

from nnunet_autosam2.architectures.masks import SliceMasks
from nnunet_autosam2.architectures.sam2.model import SAM2

E = 4
"""Side of SAM2's embeddings, for images of 64 pixels"""
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def pair():
    """SAM2's own decoder and ours."""
    torch.manual_seed(0)
    theirs = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu", apply_postprocessing=False).sam_mask_decoder
    with torch.no_grad():
        for parameter in theirs.parameters():  # some start at 0, where a mistake would not show
            parameter += 0.02 * torch.randn_like(parameter)
    ours = SAM2.build("sam2.1-hiera-tiny", 64).sam_mask_decoder
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def make_inputs(images: int, prompts: int) -> Inputs:
    generator = torch.Generator().manual_seed(images * 10 + prompts)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return (
        random(images, 256, E, E), random(images, 32, 4 * E, 4 * E), random(images, 64, 2 * E, 2 * E),
        random(1, 256, E, E), random(prompts, 5, 256), random(prompts, 256, E, E),
    )  # fmt: skip


@torch.no_grad()
def one_by_one(decoder, image, fine, middle, positions, sparse, dense) -> list[Tensor]:
    """Masks, predicted IoU and object scores as the package gives them."""
    found = []
    for number in range(len(sparse)):
        prompt, of = slice(number, number + 1), number * len(image) // len(sparse)
        logits, iou, _, score = decoder(
            image[of : of + 1], positions, sparse[prompt], dense[prompt], multimask_output=False, repeat_image=False,
            high_res_features=[fine[of : of + 1], middle[of : of + 1]],
        )  # fmt: skip
        found.append((logits[:, 0], iou[:, 0], score[:, 0]))
    return [torch.cat(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize(("images", "prompts"), [(1, 1), (1, 3), (2, 6), (3, 3)])
def test_masks_and_scores_are_the_packages(pair, images: int, prompts: int):
    """Of as many prompts an image as there are, which follow one another."""
    theirs, ours = pair
    inputs = make_inputs(images, prompts)
    with torch.no_grad():
        found = ours(*inputs)
    assert isinstance(found, SliceMasks)
    assert found.logits.shape == (images, prompts // images, 4 * E, 4 * E)
    assert found.token.shape == (images, prompts // images, 256)
    for mine, expected in zip(found[:3], one_by_one(theirs, *inputs), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(mine.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_images_prompts_and_every_weight_that_has_a_part(pair):
    _, ours = pair
    inputs = make_inputs(2, 4)
    for tensor in inputs:
        tensor.requires_grad_()
    found = ours(*inputs)
    (found.logits.square().sum() + found.predicted_iou.sum() + found.object_score.sum()).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in inputs)
    without = {name for name, parameter in ours.named_parameters() if parameter.grad is None}
    ours.zero_grad(set_to_none=True)
    # The other masks of SAM2 and the layers that belong to an image are not asked.
    allowed = ("output_hypernetworks_mlps.1", "output_hypernetworks_mlps.2", "output_hypernetworks_mlps.3", "conv_s")
    assert without
    assert all(name.startswith(allowed) for name in without)
