"""Tracking by SAM2's memory, against SAM2's own step from frame to frame."""

import pytest
import torch
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2
from sam2.modeling.sam2_base import SAM2Base
from torch.nn import functional as F

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.masks import VolumeMasks
from nnunet_autosam2.architectures.prompts import Prompts
from nnunet_autosam2.architectures.reconstruction import locate_slices
from nnunet_autosam2.architectures.sam2.branch import SAM2Branch
from nnunet_autosam2.architectures.sam2.propagation import propagate
from nnunet_autosam2.architectures.sam2.weights import VIDEO_MEMORY, load_into
from nnunet_autosam2.config import AutoSAM2Config, SAM2Model

SIZE = 64
DEPTH, REGIONS, BATCH = 12, 2, 2
SLICES = torch.tensor([[1, 4, 9], [0, 6, 11]])
ASKED = torch.tensor([[True, True, True], [False, True, True]])


def make_whole(model: str) -> SAM2Base:
    """The sam2 package's own. One mask a slice, as everywhere here."""
    torch.manual_seed(0)
    whole = build_sam2(
        HF_MODEL_ID_TO_FILENAMES[f"facebook/{model}"][0],
        device="cpu",
        apply_postprocessing=False,
        hydra_overrides_extra=[f"++model.image_size={SIZE}", "++model.multimask_output_for_tracking=false"],
    )
    with torch.no_grad():
        for parameter in whole.parameters():  # some start at 0, where a mistake would not show
            parameter += 0.02 * torch.randn_like(parameter)
    return whole


def make_branch(model: SAM2Model, whole: SAM2Base) -> SAM2Branch:
    config = AutoSAM2Config(
        sam2_model=model, sam2_image_size=SIZE, sam2_precision="float32", propagation="memory", sam2_chunk_size=3
    )
    branch = SAM2Branch(1, 32, REGIONS, config).eval()
    load_into(branch.sam2, whole.state_dict(), "whole")
    torch.nn.init.zeros_(branch.bridge.scale)  # it is no part of SAM2
    return branch


class Oracle:
    """SAM2 on one sample as a video: prompted frames first, then the others one after the other."""

    def __init__(self, whole: SAM2Base, images: torch.Tensor) -> None:
        self.whole = whole
        outputs = [whole._prepare_backbone_features(whole.forward_image(image[None])) for image in images]
        self.features = [[x.expand(-1, REGIONS, -1) for x in features] for _, features, _, _ in outputs]
        self.positions = [[x.expand(-1, REGIONS, -1) for x in positions] for _, _, positions, _ in outputs]
        self.sizes = outputs[0][3]

    def step(self, frame: int, cond: dict, others: dict, reverse: bool, points: dict | None = None) -> dict:
        return self.whole.track_step(
            frame, not cond, self.features[frame], self.positions[frame], self.sizes,
            points, None,
            {"cond_frame_outputs": cond, "non_cond_frame_outputs": others}, DEPTH, reverse,
        )  # fmt: skip


class Case:
    """Random volumes of which SAM2 was asked about some slices."""

    def __init__(self, branch: SAM2Branch) -> None:
        self.branch = branch
        generator = torch.Generator().manual_seed(1)
        self.volume = torch.randn(BATCH, 1, DEPTH, 32, 32, generator=generator)
        self.asked = torch.zeros(BATCH, DEPTH, dtype=torch.bool).scatter(1, SLICES, ASKED)
        coarse = torch.rand(int(ASKED.sum()), REGIONS, 4, 4, generator=generator)
        self.foreground = F.interpolate(coarse, scale_factor=8, mode="nearest")
        self.positions = locate_slices(SLICES, ASKED, DEPTH)

    def track(self) -> tuple[Prompts, VolumeMasks]:
        slices = self.volume.transpose(1, 2)[self.asked]
        masks, prompts, embeddings = self.branch(
            slices, torch.zeros(len(slices), 32, 8, 8), self.foreground, AutoSAM2Config()
        )
        scores = torch.zeros(BATCH, REGIONS, DEPTH)
        where = self.positions.covered, self.positions.distance
        empty = VolumeMasks(torch.zeros(BATCH, REGIONS, DEPTH, 32, 32), scores, scores, *where)
        features = torch.zeros(BATCH, 32, DEPTH, 8, 8)
        return prompts, propagate(
            self.branch, self.volume, features, self.asked, masks, embeddings, self.positions, empty
        )


@pytest.mark.parametrize("model", ["sam2.1-hiera-tiny", "sam2-hiera-tiny"])
@torch.no_grad()
def test_masks_equal_sam2s_own_tracking(model, record_property):
    whole = make_whole(model)
    case = Case(make_branch(model, whole))
    tracked = case.positions.covered & (case.positions.distance > 0)
    for _ in range(3):  # so that there is an object on about half of the slices; each shift changes what is remembered
        usual = case.track()[1].presence.transpose(1, 2)[tracked].logit().quantile(0.5)  # between two, on none of them
        for sam2 in (whole, case.branch.sam2):
            sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias -= usual
    prompts, masks = case.track()
    row = torch.full((BATCH, DEPTH), -1).masked_scatter(case.asked, torch.arange(len(prompts.points)))

    appearing, largest = [], 0.0
    for b in range(BATCH):
        oracle = Oracle(whole, case.branch.mri_to_rgb(case.volume[b].transpose(0, 1)))
        known = {}
        for frame in SLICES[b].tolist():
            if case.asked[b, frame]:
                points, labels = (values[row[b, frame]] for values in prompts)
                given = {"point_coords": points * SIZE / 32, "point_labels": labels}
                known[frame] = oracle.step(frame, {}, {}, reverse=False, points=given)
        order = sorted(tracked[b].nonzero().flatten().tolist(), key=lambda frame: case.positions.distance[b, frame])
        for frame in order:
            nearest, opposite = (int(ends[b, frame]) for ends in (case.positions.nearest, case.positions.opposite))
            path = {f: out for f, out in known.items() if min(nearest, frame) < f < max(nearest, frame)}
            ends = {end: known[end] for end in (nearest, opposite)}
            known[frame] = out = oracle.step(frame, ends, path, reverse=frame < nearest)
            score = out["object_score_logits"][:, 0]
            torch.testing.assert_close(masks.presence[b, :, frame], score.sigmoid(), rtol=0, atol=1e-5)
            appears = score > 0  # elsewhere SAM2 erases the mask
            appearing += appears.tolist()
            expected = F.interpolate(out["pred_masks"], (32, 32), mode="bilinear")[appears, 0]
            torch.testing.assert_close(masks.logits[b, appears, frame], expected, rtol=0, atol=1e-4)
            largest = max([largest, *(masks.logits[b, appears, frame] - expected).abs().flatten().tolist()])
        assert not masks.logits[b, :, ~tracked[b]].any()
    record_property("logits", largest)
    assert any(appearing)
    assert not all(appearing)


@torch.no_grad()
def test_chunks_change_no_mask():
    whole = make_whole("sam2.1-hiera-tiny")
    in_chunks, at_once = (make_branch("sam2.1-hiera-tiny", whole) for _ in range(2))
    at_once.encoder_chunks.size = at_once.decoder_chunks.size = 100
    for ours, theirs in zip(Case(in_chunks).track()[1], Case(at_once).track()[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def network_with(propagation: str, make_network) -> AutoSAM2:
    network = make_network(propagation=propagation, region_based=True, slice_fraction=0.4)
    with torch.no_grad():
        for head in network.unet.decoder.seg_layers.values():
            head.weight *= 20  # strong opinions, as after training
    return network


@torch.no_grad()
def test_a_prediction_tracks_and_a_training_interpolates(make_network):
    volume = torch.randn(1, 2, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with_memory, linear = (network_with(propagation, make_network) for propagation in ("memory", "linear"))
    linear.load_state_dict(with_memory.state_dict(), strict=False)
    for supervised, training, tracks in ((False, False, True), (True, False, False), (False, True, False)):
        outputs = []
        for network in (with_memory, linear):
            network.train(training).set_deep_supervision(supervised)
            output = network(volume)
            outputs.append(output.logits if supervised else output)
        assert torch.allclose(*outputs, atol=1e-5) != tracks
    with_memory.eval().set_deep_supervision(True)
    at = with_memory(volume).sam2.slices[0]
    for network in (with_memory, linear):
        network.eval().set_deep_supervision(False)
    torch.testing.assert_close(with_memory(volume)[:, :, at], linear(volume)[:, :, at])


def test_training_gradients_need_no_memory(make_network):
    network = network_with("memory", make_network).train()
    network(torch.randn(1, 2, 16, 32, 32)).square().mean().backward()
    memory = [p for name, p in network.sam2_branch.sam2.named_parameters() if name.split(".")[0] in VIDEO_MEMORY]
    assert memory
    assert not any(parameter.requires_grad for parameter in memory)
