"""Against the sam2 package's own predictor and modules, with the same weights, which are random here."""

import json
import time

import numpy as np
import pytest
import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_image_predictor import SAM2ImagePredictor
from torch.nn import functional as F

from nnunet_autosam2.architectures.prompts import Prompts
from nnunet_autosam2.architectures.sam2.branch import SAM2Branch
from nnunet_autosam2.architectures.sam2.model import SAM2, is_faster_in_bfloat16
from nnunet_autosam2.architectures.sam2.weights import VIDEO_MEMORY, load_into
from nnunet_autosam2.config import AutoSAM2Config
from tests.shared_data import CHECKPOINT_LAYOUTS

LAYOUT = CHECKPOINT_LAYOUTS / "sam2.1_hiera_tiny.pt.json"
TINY, LARGER = "sam2.1-hiera-tiny", "sam2.1-hiera-base-plus"
HEIGHT, WIDTH = 150, 240
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


def make_pair(image_size: int, model: str = TINY) -> tuple[SAM2Base, SAM2]:
    """The whole of SAM2 as its package builds it, and our part of it with the same weights."""
    torch.manual_seed(0)
    whole = build_sam2(
        HF_MODEL_ID_TO_FILENAMES[f"facebook/{model}"][0],
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=[f"++model.image_size={image_size}"],
    )
    with torch.no_grad():
        for parameter in whole.parameters():  # some start at 0, where a mistake would not show
            parameter += 0.02 * torch.randn_like(parameter)
    ours = SAM2.build(model, image_size).eval()
    load_into(ours, whole.state_dict(), "whole")
    return whole, ours


def make_images(count: int) -> np.ndarray:
    """[count, HEIGHT, WIDTH, 3], bytes. The ends of the scale are left out: no MRI intensity maps to them."""
    return np.random.default_rng(0).integers(1, 255, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


class Pair:
    """SAM2's own predictor, and our branch on slices that look to it like the same images."""

    def __init__(self, model: str, num_images: int) -> None:
        whole, ours = make_pair(1024, model)
        images = make_images(num_images)
        self.predictor = SAM2ImagePredictor(whole)
        self.predictor.set_image_batch(list(images))
        config = AutoSAM2Config(sam2_image_size=64, sam2_precision="float32", sam2_tuning="frozen")
        self.branch = SAM2Branch(in_channels=3, middle_channels=32, num_regions=1, config=config).eval()
        self.branch.sam2 = ours
        self.branch.bridge.embedding_size = ours.sam_image_embedding_size
        torch.nn.init.zeros_(self.branch.bridge.scale)  # it is no part of SAM2
        self.branch.mri_to_rgb.image_size = 1024
        slices = torch.logit(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255).float()
        with torch.no_grad():
            self.embeddings = self.branch.encode(slices)

    def decode(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks [N, R, HEIGHT, WIDTH] and predicted IoU [N, R] for [N, R, P, 2] and [N, R, P]."""
        prompts = Prompts(torch.from_numpy(points).float(), torch.from_numpy(labels).int())
        self.branch.bridge.region_embedding.data = torch.zeros(labels.shape[1], 256)
        with torch.no_grad():
            features = torch.zeros(len(points), 32, 8, 8)
            masks = self.branch.decode(self.embeddings, prompts, (features,), (HEIGHT, WIDTH))
            logits = F.interpolate(masks.logits, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)
        return logits.numpy(), masks.predicted_iou.numpy()


@pytest.fixture(
    scope="module", params=[(TINY, 2), pytest.param((LARGER, 1), marks=pytest.mark.slow)], ids=["tiny", "base-plus"]
)
def pair(request) -> Pair:
    return Pair(*request.param)


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float, record_property, name: str) -> None:
    assert np.std(theirs) > 1e-3
    record_property(name, float(np.abs(ours - theirs).max()))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_embeddings_equal_the_image_predictors(pair):
    image = pair.embeddings.image + pair.branch.sam2.no_mem_embed.view(1, -1, 1, 1)
    torch.testing.assert_close(image, pair.predictor._features["image_embed"], rtol=0, atol=1e-4)
    for ours, theirs in zip(pair.embeddings[1:], pair.predictor._features["high_res_feats"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_no_positions_are_kept_with_the_images(pair):
    kept = (module.cache for module in pair.branch.sam2.modules() if isinstance(module, PositionEmbeddingSine))
    assert not any(kept)


def as_points(points: np.ndarray | None, labels: np.ndarray | None, box: np.ndarray | None) -> tuple:
    """A box is two points, which come first."""
    coordinates, kinds = (np.zeros((0, 2)), np.zeros(0)) if box is None else (box.reshape(2, 2), np.array([2, 3]))
    if points is not None:
        coordinates, kinds = np.concatenate([coordinates, points]), np.concatenate([kinds, labels])
    return coordinates, kinds


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_equal_predict(pair, kind, record_property):
    predictor = pair.predictor
    predictor._is_batch = False  # `predict` then takes the last image that was set
    logits, iou, _ = predictor.predict(*PROMPTS[kind][:2], PROMPTS[kind][2], multimask_output=False, return_logits=True)
    predictor._is_batch = True
    points, labels = as_points(*PROMPTS[kind])
    count = len(pair.embeddings.image)
    ours, our_iou = pair.decode(np.tile(points, (count, 1, 1, 1)), np.tile(labels, (count, 1, 1)))
    close(ours[-1], logits, 1e-4, record_property, "logits")
    np.testing.assert_allclose(our_iou[-1], iou, rtol=0, atol=1e-5)


def test_masks_equal_predict_batch(pair, record_property):
    """Another box and other points for each image and each of three regions, all in one call of ours."""
    generator = np.random.default_rng(1)
    count, regions = len(pair.embeddings.image), 3
    low = generator.uniform(0, 60, (count, regions, 2))
    boxes = np.concatenate([low, low + generator.uniform(20, 80, low.shape)], axis=-1)
    points = generator.uniform(0, [WIDTH, HEIGHT], (count, regions, 6, 2))
    labels = generator.integers(-1, 2, (count, regions, 6))
    logits, iou, _ = pair.predictor.predict_batch(
        list(points), list(labels), list(boxes), multimask_output=False, return_logits=True
    )
    corners = np.broadcast_to([2, 3], (count, regions, 2))
    ours, our_iou = pair.decode(
        np.concatenate([boxes.reshape(count, regions, 2, 2), points], axis=2), np.concatenate([corners, labels], axis=2)
    )
    close(ours, np.stack(logits)[:, :, 0], 1e-4, record_property, "logits")
    np.testing.assert_allclose(our_iou, np.stack(iou)[..., 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_size", [256, 512])
def test_masks_equal_sam2s_own_modules_at_another_size(image_size, record_property):
    """SAM2's predictor knows 1024 alone."""
    whole, sam2 = make_pair(image_size)
    grid = image_size // 16
    images, dense = torch.randn(2, 3, image_size, image_size), torch.randn(2, 256, grid, grid)
    points, labels = image_size * torch.rand(2, 4, 2), torch.tensor([[2, 3, 1, 0], [2, 3, 1, -1]], dtype=torch.int32)
    mask = 4 * torch.randn(2, 4 * grid, 4 * grid)
    with torch.no_grad():
        embeddings = sam2.encode(images)
        ours, with_mask = (
            sam2.decode(embeddings, points[:, None], labels[:, None], prompt[:, None])
            for prompt in (dense, sam2.mask_prompt(mask))
        )
        _, features, _, sizes = whole._prepare_backbone_features(whole.forward_image(images))
        features[-1] = features[-1] + whole.no_mem_embed
        fine, middle, image = (x.permute(1, 2, 0).unflatten(-1, size) for x, size in zip(features, sizes, strict=True))
        for i in range(2):
            one = slice(i, i + 1)
            sparse, no_mask = whole.sam_prompt_encoder((points[one], labels[one]), None, None)
            _, mask_prompt = whole.sam_prompt_encoder(None, None, mask[one][:, None])
            for prediction, prompt in ((ours, no_mask + dense[one]), (with_mask, mask_prompt)):
                logits, iou, _, score = whole.sam_mask_decoder(
                    image_embeddings=image[one],
                    image_pe=whole.sam_prompt_encoder.get_dense_pe(),
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=prompt,
                    multimask_output=False,
                    repeat_image=False,
                    high_res_features=[fine[one], middle[one]],
                )
                assert logits.shape == (1, 1, 4 * grid, 4 * grid)
                close(prediction.logits[one].numpy(), logits.numpy(), 1e-4, record_property, "logits")
                torch.testing.assert_close(prediction.predicted_iou[one], iou, rtol=0, atol=1e-5)
                torch.testing.assert_close(prediction.object_score[one], score, rtol=0, atol=1e-4)


def test_an_empty_mask_is_no_mask():
    _, sam2 = make_pair(64)
    prompt = sam2.mask_prompt(torch.stack([torch.full((16, 16), -5.0), torch.full((16, 16), 5.0)]))
    assert not prompt[0].any()
    assert prompt[1].any()


@pytest.mark.real_data
@pytest.mark.parametrize("memory", [False, True])
def test_names_and_shapes_are_the_official_checkpoints(memory):
    """Without the parts for video unless the memory is asked for."""
    if not LAYOUT.is_file():
        pytest.skip("the layouts of the official checkpoints are not beside the project")
    official = json.loads(LAYOUT.read_text())
    expected = {name: shape for name, shape in official.items() if memory or name.split(".")[0] not in VIDEO_MEMORY}
    state = SAM2.build(TINY, 64, memory=memory).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def test_the_precision_chosen_for_a_cpu_is_the_faster_one_for_the_products_of_the_image_encoder():
    """Units for bfloat16 are no reason: Intel's AVX-512 takes up to twice as long in it as in float32."""
    torch.manual_seed(0)
    layers = {dtype: torch.nn.Linear(384, 1536).to(dtype) for dtype in (torch.float32, torch.bfloat16)}
    tokens = torch.randn(4096, 384)
    seconds = dict.fromkeys(layers, float("inf"))
    with torch.no_grad():
        for dtype in list(layers) * 8:
            given, start = tokens.to(dtype), time.perf_counter()
            layers[dtype](given)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    chosen = torch.bfloat16 if is_faster_in_bfloat16(torch.device("cpu")) else torch.float32
    assert seconds[chosen] < 1.3 * min(seconds.values())
