"""Setting that all networks of a run share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn
from torch.nn import functional as F

from nnunet_autosam2 import AutoSAM2Config
from nnunet_autosam2.cli.configure import refit_architecture
from nnunet_autosam2.dataset_conversion.regions import REGIONS

NUM_REGIONS = len(REGIONS)
COMPILED = {
    "no": "nothing",
    "parts": "UNet, image encoder, mask decoder, fusion and loss, as the trainers do it on a GPU",
    "regions": "the same, but each block of the image encoder by itself: they are alike",
    "graphs": "parts, and their launches captured in CUDA graphs (mode=reduce-overhead)",
}
BRATS = {
    "spacing": [1.0, 1.0, 1.0],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 6,
            "features_per_stage": [32, 64, 128, 256, 320, 320],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 6,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
            "n_conv_per_stage": [2] * 6,
            "n_conv_per_stage_decoder": [2] * 5,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
"""Plans of nnU-Net for BraTS; the patch is 128³."""


class Setting(NamedTuple):
    patch_size: tuple[int, int, int]
    batch_size: int
    channels: int
    features: tuple[int, int]
    """Features of nnU-Net's network, at full resolution and at most"""
    sam2_model: str
    sam2_image_size: int
    sam2_precision: str
    device: str
    compiled: str
    """A way of COMPILED"""
    gpu_memory: float | None
    """GiB that the peak of memory may reach; None: what the GPU has"""
    classes: int | None = None
    """Exclusive foreground classes; None: the regions of BraTS"""

    @property
    def outputs(self) -> int:
        return NUM_REGIONS if self.classes is None else self.classes + 1

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @property
    def architecture(self) -> dict[str, Any]:
        return refit_architecture(BRATS, self.patch_size, *self.features)

    @property
    def strides(self) -> Sequence[Sequence[int]]:
        return self.architecture["arch_kwargs"]["strides"]

    def planned_network(self) -> nn.Module:
        architecture = self.architecture
        return get_network_from_plans(
            architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"],
            self.channels, self.outputs, deep_supervision=True,
        )  # fmt: skip

    def config(self, **changes: Any) -> AutoSAM2Config:
        sam2 = {key: value for key, value in self._asdict().items() if key.startswith("sam2_")}
        given = AutoSAM2Config(region_based=self.classes is None, sam2_checkpoint="random")
        return given.updated({**sam2, **changes})

    def volume(self) -> Tensor:
        """[B, C, D, H, W], smooth, as images are."""
        coarse = torch.randn(self.batch_size, self.channels, *(max(1, side // 8) for side in self.patch_size))
        return F.interpolate(coarse, size=self.patch_size, mode="trilinear").to(self.device)

    def targets(self) -> list[Tensor]:
        """Random regions, or labels, at the resolutions of deep supervision, finest first."""
        if self.classes is None:
            truth = (torch.rand(self.batch_size, NUM_REGIONS, *self.patch_size) > 0.9).float().to(self.device)
        else:
            truth = torch.randint(self.outputs, (self.batch_size, 1, *self.patch_size), device=self.device).float()
        strides = np.cumprod(self.strides, axis=0)[:-1]
        return [truth[..., ::depth, ::height, ::width].contiguous() for depth, height, width in strides]
