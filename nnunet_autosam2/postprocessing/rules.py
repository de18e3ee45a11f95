"""Rules for what is taken out of a segmentation: small components, and regions that are implausible as a whole.

A voxel that leaves a region stays in the regions around it: small enhancing tumour becomes core, core becomes oedema,
and oedema background.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeFloat
from scipy.ndimage import label

Regions = Mapping[str, tuple[int, ...]]
"""Region → its labels"""
TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels of a component share a face, an edge or a corner, as in the metrics of the challenges"""


class Rule(BaseModel):
    """Sizes that a region has to have, to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    smallest_component: NonNegativeFloat = 0.0
    """mm³; smaller components go"""
    smallest_total: NonNegativeFloat = 0.0
    """mm³ of the whole region in a case; below it, all of it goes"""
    smallest_share: NonNegativeFloat = 0.0
    """Share of the volume of the region around it; below it, all of it goes"""

    def __str__(self) -> str:
        parts = [f"components below {self.smallest_component:g} mm³"] * bool(self.smallest_component)
        parts += [f"all of it below {self.smallest_total:g} mm³"] * bool(self.smallest_total)
        parts += [f"all of it below {self.smallest_share:g} of the region around it"] * bool(self.smallest_share)
        return ", ".join(parts) or "nothing"


Rules = Mapping[str, Rule]


def outermost_first(regions: Regions) -> list[str]:
    """Names in an order in which each region comes after all that it lies within."""
    return sorted(regions, key=lambda region: -len(regions[region]))


def around(region: str, regions: Regions) -> str | None:
    """Smallest region that holds this one and more; None: it lies in the background."""
    holding = [name for name in regions if set(regions[name]) > set(regions[region])]
    return min(holding, key=lambda name: len(regions[name]), default=None)


def clean(voxels: np.ndarray, voxel_volume: float, regions: Regions, rules: Rules) -> np.ndarray:
    """Segmentation without what the rules take out, from the outermost region to the innermost.

    Args:
        voxels: labels [Z, Y, X].
        voxel_volume: in mm³.
        rules: of some of the regions.
    """
    cleaned = voxels.copy()
    filled = np.nonzero(cleaned)
    if not len(filled[0]):
        return cleaned
    voxels = cleaned[tuple(slice(axis.min(), axis.max() + 1) for axis in filled)]  # most of an image is background
    for region in outermost_first(regions):
        if (rule := rules.get(region, Rule())) != Rule():
            mask = np.isin(voxels, regions[region])
            outer = around(region, regions)
            whole = np.isin(voxels, regions[outer]).sum() if outer else 0
            removed = mask & ~_kept(mask, voxel_volume, whole * voxel_volume, rule)
            for before in regions[region]:
                voxels[removed & (voxels == before)] = label_without(before, region, regions)
    return cleaned


def _kept(mask: np.ndarray, voxel_volume: float, whole: float, rule: Rule) -> np.ndarray:
    components, _ = label(mask, TOUCHING)
    sizes = np.bincount(components.ravel()) * voxel_volume
    large = sizes >= rule.smallest_component
    large[0] = False
    total = sizes[large].sum()
    if total < rule.smallest_total or total < rule.smallest_share * whole:
        large[:] = False
    return large[components]


def label_without(before: int, region: str, regions: Regions) -> int:
    """Label of a voxel that leaves a region and all within it: the first that is in the same other regions, or 0."""
    removed = {name for name in regions if set(regions[name]) <= set(regions[region])}
    left = {name for name in regions if before in regions[name]} - removed
    labels = sorted({value for values in regions.values() for value in values})
    same = (value for value in labels if {name for name in regions if value in regions[name]} == left)
    return next(same, 0) if left else 0
