"""A veto from validation: when a training ends, the gate closes where the hybrid has been below its UNet alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.fusion import GatedFusion
from nnunet_autosam2.trainers.diagnostics import HybridProgress
from nnunet_autosam2.trainers.early_stopping import defined_ema

ROUNDING = 1e-6
"""The fused pseudo Dice is nnU-Net's, in float32: so much below the UNet's it may be where both predict the same."""


class GateVerdict(NamedTuple):
    """EMA of the pseudo Dice that a training has reached, of R regions (or foreground classes)."""

    regions: Sequence[str]
    unet: Sequence[float]
    """NaN where no epoch tells, here and below"""
    hybrid: Sequence[float]

    @classmethod
    def after(cls, progress: HybridProgress, epochs: int) -> GateVerdict:
        """The verdict on the weights after so many epochs. Epochs count in which both values are defined."""
        unet, hybrid = (progress.dice(output, before=epochs) for output in ("UNet", "fused"))
        untold = np.isnan(unet) | np.isnan(hybrid)
        averages = [[_last_ema(column) for column in np.where(untold, np.nan, each).T] for each in (unet, hybrid)]
        return cls(progress.classes, *averages)

    @property
    def harmed(self) -> list[bool]:
        """The hybrid is below its UNet alone."""
        return [hybrid < unet - ROUNDING for unet, hybrid in zip(self.unet, self.hybrid, strict=True)]


def close_gates(network: AutoSAM2, verdict: GateVerdict) -> list[str]:
    """Closes the gates of harmed regions, unless the configuration leaves that out; returns lines for the log.

    A background has its gate closed with the last one of the foreground. Without a single epoch that tells, the gates
    stay as they are.
    """
    lines = [
        f"EMA of the pseudo Dice of {name}: UNet alone {unet:.4f}, hybrid {hybrid:.4f}."
        for name, unet, hybrid in zip(*verdict, strict=True)
    ]
    if not isinstance(network.fusion, GatedFusion) or np.isnan(verdict.unet).all():
        return lines
    harmed = [each and network.config.gate_veto for each in verdict.harmed]
    network.fusion.veto(harmed if network.config.region_based else [all(harmed), *harmed])
    closed = [name for name, each in zip(verdict.regions, harmed, strict=True) if each]
    why = ", where the hybrid was below its UNet alone" if closed else ""
    left_out = "" if network.config.gate_veto else ", since gate_veto is false"
    return [*lines, f"Closed gates: {', '.join(closed) or 'none'}{why}{left_out}."]


def open_gates(network: AutoSAM2) -> bool:
    """Lets all gates decide again, as a training goes on; False if they did so already."""
    if not isinstance(network.fusion, GatedFusion) or not network.fusion.vetoed.any():
        return False
    network.fusion.veto([False] * network.num_classes)
    return True


def _last_ema(values: Sequence[float]) -> float:
    return next((average for average in reversed(defined_ema(values)) if average == average), np.nan)
