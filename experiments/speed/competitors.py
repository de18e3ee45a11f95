"""The networks that are measured, each with what trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from experiments.speed.setting import Setting
from experiments.speed.slice_by_slice import SliceBySlice
from nnunet_autosam2 import AutoSAM2
from nnunet_autosam2.architectures.unet import strides_for
from nnunet_autosam2.config import SAM2_SIZE_STEP
from nnunet_autosam2.trainers.loss import AutoSAM2Loss

NNUNET, LOOP = "nnU-Net", "slice by slice"
BACKBONES = {"autosam2": "AutoSAM2", "plans": "on nnU-Net's"}
FROZEN = {"backbone": "plans", "backbone_checkpoint": "auto", "freeze_backbone": True}
PARTS: dict[str, dict[str, Any]] = {
    "features": {"feature_fusion": True},
    "features alone": {"feature_fusion": True, "fusion": "off"},
    "convolutional gate": {"fusion": "convolutional"},
    "prompts by part": {"boxes_per_region": 4, "prompt_threshold": 0.3},
    "three axes": {"slice_axes": 3},
}
PARTS["all parts"] = {
    key: value for part, parameters in PARTS.items() if part != "features alone" for key, value in parameters.items()
}
"""As `nnUNetTrainerAutoSAM2_OnBaseline`; what the weights are changes no time."""


class Competitor(Protocol):
    def forward(self, volume: Tensor) -> Any: ...

    def compile(self, way: str) -> None: ...


class Trained:
    """A network that trains as nnU-Net's trainer does it: mixed precision on a GPU, clipped gradients."""

    def __init__(
        self, setting: Setting, network: nn.Module, loss: nn.Module, compiled_loss: nn.Module, optimizer: Callable
    ) -> None:
        self.network = network.to(setting.device)
        self.loss = loss
        self.compiled_loss = compiled_loss
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = optimizer(self.parameters)
        self.autocast = partial(torch.autocast, torch.device(setting.device).type, enabled=setting.on_gpu)
        self.scaler = torch.amp.GradScaler(enabled=setting.on_gpu)

    @torch.no_grad()
    def forward(self, volume: Tensor) -> Any:
        self._train(False)
        with self.autocast():
            return self.network(volume)

    def step(self, volume: Tensor, targets: list[Tensor]) -> None:
        self._train(True)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            output = self.network(volume)
        loss = self.loss(output, targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def compile(self, way: str) -> None:
        """In a way of COMPILED."""
        options = {"mode": "reduce-overhead"} if way == "graphs" else {}
        self.network.compile(**options)
        self.compiled_loss.compile(**options)
        if way == "regions" and isinstance(self.network, AutoSAM2) and self.network.sam2_branch is not None:
            encoder = self.network.sam2_branch.sam2.image_encoder
            encoder._compiled_call_impl = None
            for block in encoder.trunk.blocks:
                block.compile()

    def _train(self, trains: bool) -> None:
        self.network.train(trains)
        for parameter in self.parameters:
            parameter.requires_grad_(trains)  # torch's counter of operations trips over views that ask for a gradient
        if isinstance(self.network, AutoSAM2):
            self.network.set_deep_supervision(trains)
        else:
            setattr(self.network.decoder, "deep_supervision", trains)  # noqa: B010 (a Module to a type checker)


def nnunet(setting: Setting) -> Trained:
    network = setting.planned_network()
    weights = 0.5 ** np.arange(len(setting.strides) - 1)
    weights[-1] = 0
    soft_dice = {"batch_dice": False, "smooth": 1e-5, "ddp": False}
    loss: Any
    if setting.classes is None:
        loss = DC_and_BCE_loss({}, {**soft_dice, "do_bg": True}, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss({**soft_dice, "do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss)
    optimizer = partial(torch.optim.SGD, lr=1e-4, momentum=0.99, nesterov=True)
    return Trained(setting, network, DeepSupervisionWrapper(loss, weights / weights.sum()), loss.dc, optimizer)


def autosam2(setting: Setting, **changes: Any) -> Trained:
    network = autosam2_network(setting, **changes)
    loss = AutoSAM2Loss.for_network(network)
    return Trained(setting, network, loss, loss, partial(torch.optim.AdamW, lr=1e-4))


def autosam2_network(setting: Setting, **changes: Any) -> AutoSAM2:
    config = setting.config(**changes)
    planned = setting.planned_network() if config.backbone == "plans" else None
    return AutoSAM2(
        setting.outputs, setting.channels, config, strides_for(setting.patch_size, setting.strides), planned
    )


def slice_by_slice(setting: Setting, fraction: float) -> SliceBySlice:
    unet = autosam2_network(setting, slice_fraction=0).to(setting.device).eval()
    unet.set_deep_supervision(False)
    return SliceBySlice(unet, setting.sam2_model, fraction, setting.device)


def competitors(
    setting: Setting, fractions: tuple[float, ...], loop_fraction: float
) -> Iterator[tuple[str, Callable[[], Competitor]]]:
    """Names and what makes them."""
    yield NNUNET, partial(nnunet, setting)
    yield LOOP, partial(slice_by_slice, setting, loop_fraction)
    for backbone in BACKBONES:
        for fraction in (0.0, *fractions):
            changes = {"backbone": backbone, "slice_fraction": fraction}
            yield title(backbone, fraction), partial(autosam2, setting, **changes)
        every = {"backbone": backbone, "slice_fraction": loop_fraction, "training_slices": None}
        yield f"{title(backbone, loop_fraction)}, all in training", partial(autosam2, setting, **every)
    frozen = f"frozen, {100 * loop_fraction:g} %"
    yield frozen, partial(autosam2, setting, slice_fraction=loop_fraction, **FROZEN)
    for name, base in ((title("plans", loop_fraction), {"backbone": "plans"}), (frozen, FROZEN)):
        for part, parameters in PARTS.items():
            yield f"{name}, {part}", partial(autosam2, setting, slice_fraction=loop_fraction, **base, **parameters)
    if setting.classes is not None:
        every = {"backbone": "plans", "slice_fraction": loop_fraction, "regions_per_slice": None}
        yield f"{title('plans', loop_fraction)}, all classes", partial(autosam2, setting, **every)
    half = setting.sam2_image_size // 2
    if half % SAM2_SIZE_STEP == 0:
        smaller = setting._replace(sam2_image_size=half)
        name = f"{title('autosam2', loop_fraction)}, SAM2 at {half}"
        yield name, partial(autosam2, smaller, slice_fraction=loop_fraction)


def title(backbone: str, fraction: float) -> str:
    return f"{BACKBONES[backbone]}, {100 * fraction:g} %"
