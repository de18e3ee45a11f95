"""Against torch itself: what it can load into a network and an optimizer, and what not."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.trainers.resuming import OF_THE_START, changes, require_same_structure

SMALL = AutoSAM2Config(sam2_image_size=64, sam2_checkpoint="random", region_based=True, rgb_channels=(0, 1, 2))
OTHER: dict[str, Any] = {
    "slice_fraction": 0.6,
    "enable_unet_decoder": False,
    "enable_sam2": False,
    "num_positive_points": 5,
    "num_negative_points": 1,
    "box_prompt": False,
    "mask_prompt": True,
    "boxes_per_region": 3,
    "prompt_threshold": 0.3,
    "regions_per_slice": 2,
    "propagation": "memory",
    "fusion": "fixed",
    "bg_blend": 0.4,
    "tumor_blend": 0.4,
    "gate_veto": False,
    "feature_fusion": True,
    "backbone": "plans",
    "sam2_model": "sam2.1-hiera-small",
    "sam2_checkpoint": "auto",
    "sam2_image_size": 96,
    "sam2_tuning": "full",
    "lora_rank": 4,
    "sam2_mirroring": True,
    "slice_axes": 3,
    "sam2_precision": "float32",
    "sam2_chunk_size": 3,
    "training_slices": 8,
    "initial_lr": 1e-3,
    "weight_decay": 1e-3,
    "early_stopping_patience": 5,
    "bce_weight": 0.5,
    "dice_weight": 0.5,
    "class_weights": (1.0, 2.0, 3.0),
    "unet_loss_weight": 0.5,
    "sam2_loss_weight": 0.5,
    "joint_training": True,
    "test_run": True,
    "num_epochs": 7,
    "num_iterations_per_epoch": 7,
    "num_val_iterations_per_epoch": 7,
    "region_based": False,
    "rgb_channels": (2, 1, 0),
    "intensity_middles": (0.0, 0.0, 1.0),
    "intensity_widths": (1.0, 1.0, 2.0),
    "black_background": True,
}
PAIRS = {
    **{key: (SMALL, SMALL.updated({key: value})) for key, value in OTHER.items()},
    "no slice": (SMALL, SMALL.updated({"slice_fraction": 0})),
    "a rank that matters": tuple(SMALL.updated({"sam2_tuning": "lora", "lora_rank": rank}) for rank in (4, 8)),
    "a model that does not matter": tuple(
        SMALL.updated({"enable_sam2": False, "sam2_model": f"sam2.1-hiera-{size}"}) for size in ("tiny", "small")
    ),
    "encoder_checkpoint": tuple(
        SMALL.updated({"backbone": "plans", "encoder_checkpoint": path}) for path in (None, "mae.pth")
    ),
    "backbone_checkpoint": tuple(
        SMALL.updated({"backbone": "plans", "backbone_checkpoint": path}) for path in (None, "auto")
    ),
    "freeze_backbone": tuple(
        SMALL.updated({"backbone": "plans", "backbone_checkpoint": "auto", "freeze_backbone": frozen})
        for frozen in (False, True)
    ),
    "a convolutional gate": tuple(SMALL.updated({"fusion": fusion}) for fusion in ("gated", "convolutional")),
    "a convolutional gate that starts closed": tuple(
        SMALL.updated({"backbone": "plans", "backbone_checkpoint": path, "fusion": "convolutional"})
        for path in (None, "auto")
    ),
    "fusion": tuple(SMALL.updated({"feature_fusion": True, "fusion": fusion}) for fusion in ("gated", "off")),
    "another file": tuple(
        SMALL.updated({"backbone": "plans", "backbone_checkpoint": path}) for path in ("a.pth", "auto")
    ),
}


STARTS = {"backbone_checkpoint", "encoder_checkpoint"}
CHANGED = {
    "no slice": "slice_fraction",
    "a rank that matters": "lora_rank",
    "a convolutional gate": "fusion",
    "a convolutional gate that starts closed": "backbone_checkpoint",
}
"""Parameter by pair, where it has not its name"""


def make(config: AutoSAM2Config) -> tuple[AutoSAM2, torch.optim.Optimizer]:
    planned = None
    if config.backbone == "plans":
        sizes = {"features_per_stage": [8, 8, 8, 8], "strides": [1, 2, 2, 2], "kernel_sizes": 3}
        planned = PlainConvUNet(
            3, 4, conv_op=nn.Conv3d, num_classes=3, n_conv_per_stage=1, n_conv_per_stage_decoder=1, conv_bias=True,
            **sizes,
        )  # fmt: skip
    network = AutoSAM2(3 if config.region_based else 4, 3, config, planned=planned)
    return network, torch.optim.AdamW([parameter for parameter in network.parameters() if parameter.requires_grad])


@lru_cache(maxsize=1)
def trained(config: AutoSAM2Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """States of network and optimizer after a step, kept for the pairs that begin with the same configuration."""
    network, optimizer = make(config)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return network.state_dict(), optimizer.state_dict()


@pytest.fixture(autouse=True, scope="module")
def nothing_is_kept() -> Iterator[None]:
    yield
    trained.cache_clear()


def loads(before: AutoSAM2Config, now: AutoSAM2Config) -> bool:
    state, optimizer_state = trained(before)
    new, new_optimizer = make(now)
    try:
        new.load_state_dict(state)
        new_optimizer.load_state_dict(optimizer_state)
    except (RuntimeError, ValueError):
        return False
    shapes = [(p.shape, new_optimizer.state[p]["exp_avg"].shape) for p in new_optimizer.param_groups[0]["params"]]
    return all(shape == of_state for shape, of_state in shapes)


def test_every_parameter_is_tried():
    assert AutoSAM2Config.model_fields.keys() == {*OTHER, *STARTS, "freeze_backbone"}


@pytest.mark.parametrize("pair", PAIRS)
def test_refused_is_what_torch_cannot_load(pair):
    before, now = PAIRS[pair]
    if loads(before, now):
        require_same_structure(before, now)
    else:
        key = CHANGED.get(pair, pair)
        with pytest.raises(ConfigurationError, match=rf"{key}: .* there, .* here.*autosam2 configure"):
            require_same_structure(before, now)


@pytest.mark.parametrize("key", ["initial_lr", "weight_decay", *OF_THE_START])
def test_each_change_is_told_in_a_line(key):
    before, now = PAIRS["another file" if key == "backbone_checkpoint" else key]
    (line,) = changes(before, now)
    assert line.startswith(f"{key} was ")
    assert ("counts from here on" in line) == (key not in OF_THE_START)


def test_nothing_is_told_where_nothing_has_changed():
    assert not list(changes(SMALL, SMALL))
