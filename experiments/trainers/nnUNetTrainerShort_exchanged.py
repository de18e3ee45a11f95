"""nnU-Net's trainer with one thing after the other exchanged for that of nnUNetTrainerAutoSAM2_UNetOnly.

The learning rate of AdamW is that of the configuration's part for AutoSAM2, as in the other arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Any

from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch.optim import AdamW

from experiments.trainers.nnUNetTrainerShort import nnUNetTrainerShort
from nnunet_autosam2.architectures.unet import GroupNorm, ResidualUNet3d, strides_for
from nnunet_autosam2.config import PLANS_KEY, AutoSAM2Config
from nnunet_autosam2.trainers.loss import AutoSAM2Loss
from nnunet_autosam2.trainers.lr_schedule import IterationOneCycleLR


class OriginalUNet(nn.Module):
    """AutoSAM2's UNet as nnU-Net's trainer expects a network."""

    def __init__(self, in_channels: int, num_classes: int, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.unet = ResidualUNet3d(in_channels, num_classes, strides)

    @property
    def decoder(self) -> ResidualUNet3d:
        return self.unet

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        logits = self.unet(volume).logits
        return list(logits) if self.unet.deep_supervision else logits[0]


class WithOriginalUNet(nnUNetTrainerShort):
    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        strides = strides_for(configuration_manager.patch_size, configuration_manager.pool_op_kernel_sizes)
        network = OriginalUNet(num_input_channels, num_output_channels, strides)
        network.unet.deep_supervision = enable_deep_supervision
        return network

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        if not self.enable_deep_supervision:
            return None
        network: Any = self.network
        return [[1 / step for step in strides] for strides in network.unet.strides]


class WithOneCycle(nnUNetTrainerShort):
    """AdamW and OneCycle, a step an iteration."""

    def configure_optimizers(self) -> tuple[AdamW, IterationOneCycleLR]:
        config = AutoSAM2Config.from_dict(self.configuration_manager.configuration[PLANS_KEY])
        optimizer = AdamW(self.network.parameters(), config.initial_lr, weight_decay=config.weight_decay)
        return optimizer, IterationOneCycleLR(
            optimizer, config.initial_lr, self.num_epochs, self.num_iterations_per_epoch
        )

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        self.lr_scheduler.step()
        return result


class ListLoss(nn.Module):
    """AutoSAM2's loss of the UNet's outputs."""

    def __init__(self, loss: AutoSAM2Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        return self.loss.deep_supervision(outputs, targets)


class WithWeightedLoss(nnUNetTrainerShort):
    """0.3 BCE and 0.7 Dice; no output under deep supervision is without weight."""

    def _build_loss(self) -> ListLoss:
        config = AutoSAM2Config.from_dict(self.configuration_manager.configuration[PLANS_KEY])
        batch_dice = self.configuration_manager.batch_dice
        return ListLoss(AutoSAM2Loss.from_config(config, self.label_manager, batch_dice, ddp=False)).to(self.device)


class nnUNetTrainerShort_DeepSupervision(nnUNetTrainerShort):
    """The coarsest output has a weight too, as in AutoSAM2's loss."""

    def _build_loss(self) -> nn.Module:
        loss: Any = super()._build_loss()
        weights = [0.5**scale for scale in range(len(loss.weight_factors))]
        loss.weight_factors = tuple(weight / sum(weights) for weight in weights)
        return loss


class nnUNetTrainerShort_OriginalUNet(WithOriginalUNet):
    pass


class nnUNetTrainerShort_OneCycle(WithOneCycle):
    pass


class nnUNetTrainerShort_WeightedLoss(WithWeightedLoss):
    pass


class nnUNetTrainerShort_OriginalUNet_OneCycle(WithOriginalUNet, WithOneCycle):
    pass


class nnUNetTrainerShort_OriginalUNet_WeightedLoss(WithOriginalUNet, WithWeightedLoss):
    pass


class nnUNetTrainerShort_OriginalUNet_He(WithOriginalUNet):
    """Weights start as nnU-Net's."""

    def initialize(self) -> None:
        super().initialize()
        self.network.apply(InitWeights_He(1e-2))


class nnUNetTrainerShort_OriginalUNet_InstanceNorm(WithOriginalUNet):
    """Group norms with a group a channel."""

    @staticmethod
    @wraps(WithOriginalUNet.build_network_architecture)  # nnU-Net reads its signature
    def build_network_architecture(*args: Any, **kwargs: Any) -> nn.Module:
        network = WithOriginalUNet.build_network_architecture(*args, **kwargs)
        for module in network.modules():
            if isinstance(module, GroupNorm):
                module.num_groups = module.num_channels
        return network
