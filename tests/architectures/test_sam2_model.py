import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.build_sam import build_sam2
from sam2.sam2_image_predictor import SAM2ImagePredictor

from nnunet_autosam2.architectures.sam2_model import SAM2, ImageEmbeddings
from nnunet_autosam2.weights import VIDEO_MEMORY, load_into

LAYOUT = Path(__file__).parents[3] / "shared" / "data" / "sam2_checkpoint_layout" / "sam2.1_hiera_tiny.pt.json"
MODEL = "sam2.1-hiera-tiny"
BOX = np.array([60.0, 30.0, 190.0, 140.0])
POINTS = np.array([[100.0, 50.0], [150.5, 120.25], [20.0, 140.0], [0.0, 0.0], [3.0, 3.0]])
LABELS = np.array([1, 1, 0, -1, -1])
PROMPTS = {
    "points": (POINTS[:3], LABELS[:3], None),
    "padded points": (POINTS, LABELS, None),
    "box": (None, None, BOX),
    "points and box": (POINTS[:3], LABELS[:3], BOX),
    "padded points and box": (POINTS, LABELS, BOX),
}


def make_pair(image_size: int) -> tuple[torch.nn.Module, SAM2]:
    """The whole of SAM2 as its package builds it, and our part of it with the same weights."""
    torch.manual_seed(0)
    whole = build_sam2(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=[f"++model.image_size={image_size}"],
    )
    with torch.no_grad():
        for parameter in whole.parameters():  # some start at 0, where a mistake would not show
            parameter += 0.02 * torch.randn_like(parameter)
    ours = SAM2(MODEL, image_size, "frozen").eval()
    load_into(ours, whole.state_dict(), "whole")
    return whole, ours


@pytest.fixture(scope="module")
def at_1024() -> tuple[SAM2ImagePredictor, SAM2, ImageEmbeddings]:
    whole, ours = make_pair(1024)
    predictor = SAM2ImagePredictor(whole)
    image = np.random.default_rng(0).integers(0, 256, (150, 240, 3), dtype=np.uint8)
    predictor.set_image(image)
    with torch.no_grad():
        return predictor, ours, ours.encode(predictor._transforms(image)[None])


def test_embeddings_equal_the_image_predictors(at_1024):
    predictor, _, embeddings = at_1024
    torch.testing.assert_close(embeddings.image, predictor._features["image_embed"], rtol=0, atol=1e-5)
    for ours, theirs in zip(embeddings[1:], predictor._features["high_res_feats"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_equal_the_image_predictors(at_1024, kind):
    predictor, sam2, embeddings = at_1024
    points, labels, box = PROMPTS[kind]
    _, iou, logits = predictor.predict(points, labels, box, multimask_output=False, return_logits=True)

    corners, corner_labels = ([], []) if box is None else (box.reshape(2, 2).tolist(), [2, 3])
    coordinates = torch.tensor([*corners, *([] if points is None else points.tolist())])[None]
    coordinates = coordinates * torch.tensor([1024 / 240, 1024 / 150])
    all_labels = torch.tensor([[*corner_labels, *([] if labels is None else labels.tolist())]], dtype=torch.int32)
    with torch.no_grad():
        mask = sam2.decode(embeddings, coordinates, all_labels, torch.zeros(1, 256, 64, 64))
    assert np.abs(logits).max() < 32  # where the predictor clips
    assert np.std(logits) > 1e-2
    np.testing.assert_allclose(mask.logits.numpy(), logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(mask.predicted_iou.numpy(), iou, rtol=0, atol=1e-5)


def test_masks_equal_sam2s_own_modules_at_another_size():
    whole, sam2 = make_pair(256)
    images, dense = torch.randn(2, 3, 256, 256), torch.randn(2, 256, 16, 16)
    points, labels = 256 * torch.rand(2, 4, 2), torch.tensor([[2, 3, 1, 0], [2, 3, 1, -1]], dtype=torch.int32)
    with torch.no_grad():
        ours = sam2.decode(sam2.encode(images), points, labels, dense)
        _, features, _, sizes = whole._prepare_backbone_features(whole.forward_image(images))
        features[-1] = features[-1] + whole.no_mem_embed
        fine, middle, image = (x.permute(1, 2, 0).unflatten(-1, size) for x, size in zip(features, sizes, strict=True))
        for i in range(2):
            one = slice(i, i + 1)
            sparse, no_mask = whole.sam_prompt_encoder((points[one], labels[one]), None, None)
            logits, iou, _, score = whole.sam_mask_decoder(
                image_embeddings=image[one],
                image_pe=whole.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=no_mask + dense[one],
                multimask_output=False,
                repeat_image=False,
                high_res_features=[fine[one], middle[one]],
            )
            assert ours.logits.shape == (2, 64, 64)
            torch.testing.assert_close(ours.logits[one], logits[:, 0], rtol=0, atol=1e-4)
            torch.testing.assert_close(ours.predicted_iou[one], iou[:, 0], rtol=0, atol=1e-5)
            torch.testing.assert_close(ours.object_score[one], score[:, 0], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def models() -> dict[str, SAM2]:
    return {tuning: SAM2(MODEL, 64, tuning) for tuning in ("frozen", "decoder", "full")}


def trainable(model: SAM2) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def under(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def test_what_trains(models):
    everything = {name for name, _ in models["frozen"].named_parameters()}
    unused = under(
        everything,
        "sam_prompt_encoder.mask_downscaling",
        *(f"sam_mask_decoder.output_hypernetworks_mlps.{i}" for i in (1, 2, 3)),
    )
    once_an_image = under(everything, "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
    assert trainable(models["frozen"]) == set()
    assert trainable(models["full"]) == everything - unused
    decoder = under(everything, "sam_mask_decoder", "sam_prompt_encoder") - unused - once_an_image
    assert trainable(models["decoder"]) == decoder
    assert len(decoder) > 100


@pytest.mark.parametrize("tuning", ["decoder", "full"])
def test_what_trains_is_what_has_a_part_in_the_masks(models, tuning):
    model = models[tuning]
    with torch.set_grad_enabled(tuning == "full"):
        embeddings = model.encode(torch.randn(1, 3, 64, 64))
    labels = torch.tensor([[2, 3, 1, 0, -1]], dtype=torch.int32)
    masks = model.decode(embeddings, 64 * torch.rand(1, 5, 2), labels, torch.zeros(1, 256, 4, 4))
    sum(values.square().sum() for values in masks).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trainable(model)
    unmoved = {name for name in trainable(model) if not model.get_parameter(name).grad.any()}
    assert all(name.endswith("k_proj.bias") for name in unmoved)  # to which a softmax over the keys is blind


@pytest.mark.real_data
def test_names_and_shapes_are_the_official_checkpoints_without_the_video_memory(models):
    if not LAYOUT.is_file():
        pytest.skip("the layouts of the official checkpoints are not beside the project")
    official = json.loads(LAYOUT.read_text())
    expected = {name: shape for name, shape in official.items() if name.split(".")[0] not in VIDEO_MEMORY}
    assert {name: list(tensor.shape) for name, tensor in models["frozen"].state_dict().items()} == expected
