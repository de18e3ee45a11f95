"""Every option in the precisions that nnU-Net's trainer and predictor use, with no, one and all slices to prompt."""

import pytest
import torch

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.trainers.loss import AutoSAM2Loss, WeightedBCEDiceLoss

pytestmark = pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIONS = {
    "defaults": {},
    "all slices": {"slice_fraction": 1.0},
    "one slice": {"slice_fraction": 0.01},
    "SAM2 only": {"enable_unet_decoder": False},
    "UNet only": {"enable_sam2": False},
    "no points": {"num_positive_points": 0, "num_negative_points": 0},
    "no box": {"box_prompt": False},
    "no prompts": {"num_positive_points": 0, "num_negative_points": 0, "box_prompt": False},
    "mask prompt": {"mask_prompt": True},
    "parts and unsure regions": {"boxes_per_region": 3, "prompt_threshold": 0.2},
    "parts, SAM2 only": {"boxes_per_region": 2, "enable_unet_decoder": False},
    "parts, memory": {"boxes_per_region": 2, "propagation": "memory"},
    "parts, a slice at once": {"boxes_per_region": 2, "sam2_chunk_size": 1},
    "parts, all of SAM2 trains": {"boxes_per_region": 2, "sam2_tuning": "full"},
    "fixed fusion": {"fusion": "fixed"},
    "convolutional gate": {"fusion": "convolutional"},
    "joint training": {"joint_training": True},
    "memory": {"propagation": "memory"},
    "memory, all slices": {"propagation": "memory", "slice_fraction": 1.0},
    "memory, SAM2 only": {"propagation": "memory", "enable_unet_decoder": False},
    "memory, mask prompt": {"propagation": "memory", "mask_prompt": True},
    "frozen": {"sam2_tuning": "frozen"},
    "adapters": {"sam2_tuning": "lora"},
    "all of SAM2 trains": {"sam2_tuning": "full"},
    "SAM2 in bfloat16": {"sam2_precision": "bfloat16"},
    "memory in bfloat16": {"propagation": "memory", "sam2_precision": "bfloat16"},
    "a slice at once": {"sam2_chunk_size": 1},
    "memory, a slice at once": {"propagation": "memory", "sam2_chunk_size": 1},
    "each mirror image": {"sam2_mirroring": True},
    "two regions a slice": {"regions_per_slice": 2},
    "three axes": {"slice_axes": 3, "feature_fusion": True},
    "window": {"training_slices": 2},
    "window of one": {"training_slices": 1, "slice_fraction": 1.0},
    "window, SAM2 only": {"training_slices": 2, "enable_unet_decoder": False},
    "features": {"feature_fusion": True},
    "features alone": {"feature_fusion": True, "fusion": "off"},
    "features, all of SAM2 trains": {"feature_fusion": True, "sam2_tuning": "full", "slice_fraction": 1.0},
    "window, joint training": {"training_slices": 2, "joint_training": True},
}
DEPTH = 16
PRESENT = {"no slice": [], "one slice": [5], "all slices": list(range(DEPTH))}
HALF = [torch.float16, torch.bfloat16]
QUICK = ("defaults", "memory", "memory, all slices", "mask prompt", "features", "parts and unsure regions")
"""In the gate, in bfloat16, and the defaults in float16 too: half precision is slow on most CPUs. On a GPU all of them
run."""


def every_option(quick: tuple[str, ...]) -> pytest.MarkDecorator:
    def is_quick(name: str, dtype: torch.dtype) -> bool:
        return name in quick and (dtype == torch.bfloat16 or name == "defaults")

    return pytest.mark.parametrize(
        ("options", "device", "region_based", "dtype"),
        [
            pytest.param(
                name, device, regions, dtype,
                id=f"{name}-{device}-{'regions' if regions else 'labels'}-{dtype}",
                marks=NEEDS_GPU if device == "cuda" else [] if regions and is_quick(name, dtype) else pytest.mark.slow,
            )
            for name in OPTIONS for device in ("cpu", "cuda") for regions in (True, False) for dtype in HALF
        ],
    )  # fmt: skip


def make_foreground(present: list[int], regions: int, device: str) -> torch.Tensor:
    """In two parts on the slices where it is present; the UNet is unsure of another one."""
    foreground = torch.zeros(1, regions, DEPTH, 16, 16, device=device)
    foreground[:, :, 9, 4:11, 5:12] = 0.4
    foreground[:, :, present, 10:, 10:] = 0.9
    foreground[:, :, present, :2, :2] = 0.9
    return foreground


def make_volume(device: str) -> torch.Tensor:
    return torch.randn(1, 2, DEPTH, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)


def make(make_network, region_based: bool, device: str, options: dict) -> AutoSAM2:
    # Four voxels a side at the bottom: on some CPUs torch's bfloat16 gradient of a convolution over 2 is garbage.
    strides = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1))
    network = make_network(region_based=region_based, strides=strides, **options).to(device)
    with torch.no_grad():
        for head in network.unet.decoder.seg_layers.values():
            head.weight *= 20  # strong opinions, as after training
    return network


@every_option(QUICK)
def test_predicts(make_network, options, region_based, dtype, device):
    network = make(make_network, region_based, device, OPTIONS[options]).eval()
    volume = make_volume(device)
    for present in PRESENT.values():
        foreground = make_foreground(present, 3 if region_based else 2, device)
        with torch.inference_mode(), torch.autocast(device, dtype=dtype):
            assert network(volume, foreground).isfinite().all()


@every_option(())
def test_trains(make_network, options, region_based, dtype, device):
    network = make(make_network, region_based, device, OPTIONS[options]).train()
    network.set_deep_supervision(True)
    loss = AutoSAM2Loss(WeightedBCEDiceLoss(3, region_based=region_based), gated=network.config.has_gate)
    for present in PRESENT.values():
        foreground = make_foreground(present, 3 if region_based else 2, device)
        truth = (foreground > 0.5).float() if region_based else (foreground[:, :1] > 0.5).float()
        targets = [truth[..., ::d, ::h, ::w].contiguous() for d, h, w in network.output_strides]
        with torch.autocast(device, dtype=dtype):
            value = loss(network(make_volume(device), foreground), targets)
        network.zero_grad()
        value.backward()
        assert value.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
