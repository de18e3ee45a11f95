"""What do prompts for each part of a region, and those from a lower threshold, cover on real cases? SAM2 does not run.

The UNet's opinion is the truth, blurred at the boundary; `--shift` below 0 makes it under-confident. `--predicted`
takes it from nnU-Net's `.npz` files instead (`nnUNetv2_predict --save_probabilities`). Every third slice counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from nnunet_autosam2.architectures.components import label_components, main_components, number_parts
from nnunet_autosam2.architectures.prompts import (
    BOTTOM_RIGHT,
    MAIN_SHARE,
    PART_REACH,
    THRESHOLD,
    TOP_LEFT,
    generate_prompts,
)

REGIONS = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
PARTS = (1, 2, 3, 8)
STEP = 3
BLUR = 1.5
"""Voxels"""
THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1)


@click.command(help=__doc__)
@click.argument("cases", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--shift", type=float, default=0, show_default=True, help="Of the simulated logits.")
@click.option("--predicted", type=click.Path(path_type=Path, exists=True), help="Folder with CASE.npz.")
@torch.no_grad()
def main(cases: tuple[Path, ...], shift: float, predicted: Path | None) -> None:
    totals: dict[str, dict] = {name: defaultdict(float) for name in REGIONS}
    for folder in cases:
        for name, truth, p in opinions(folder, shift, predicted):
            count_boxes(totals[name], truth, p)
            count_prompted(totals[name], truth, p)
    print("| region | seen on slices | several components | several parts | T | masks | boxes | true voxels |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, n in totals.items():
        seen = max(n["seen"], 1)
        first = f"{name} | {seen:.0f} | {n['scattered'] / seen:.1%} | {n['several'] / seen:.1%}"
        for parts in PARTS:
            area, inside = n["area", parts] / max(n["area", 1], 1), n["inside", parts] / max(n["true"], 1)
            print(f"| {first} | {parts} | {n['masks', parts] / seen:.3f} | {area:.3f} | {inside:.1%} |")
            first = " | | | "
    print("\n| region | slices with it, without it |", " | ".join(map(str, THRESHOLDS)), "|")
    print("| --- | --- |", " | ".join("---" for _ in THRESHOLDS), "|")
    for name, n in totals.items():
        shares = (
            f"{n['right', t] / max(n['with'], 1):.1%}, {n['wrong', t] / max(n['without'], 1):.1%}" for t in THRESHOLDS
        )
        print(f"| {name} | {n['with']:.0f}, {n['without']:.0f} |", " | ".join(shares), "|")


def opinions(folder: Path, shift: float, predicted: Path | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name of each region, its truth and its probabilities, [D, H, W]."""
    (file,) = folder.glob("*_seg.nii.gz")
    labels = sitk.GetArrayFromImage(sitk.ReadImage(file))
    found = None if predicted is None else np.load(predicted / f"{folder.name}.npz")["probabilities"]
    for number, (name, values) in enumerate(REGIONS.items()):
        truth = np.isin(labels, values)
        if found is None:
            blurred = ndimage.gaussian_filter(truth.astype(np.float32), BLUR)
            p = torch.from_numpy(8 * (blurred - 0.5) + shift).sigmoid()
        else:
            p = torch.from_numpy(found[number]).float()
        yield name, torch.from_numpy(truth)[::STEP], p[::STEP]


def count_boxes(n: dict, truth: Tensor, p: Tensor) -> None:
    """Areas and true voxels count where there are several parts; elsewhere T changes nothing."""
    seen = (p > THRESHOLD).flatten(1).any(1)
    if not seen.any():
        return
    truth, p = truth[seen], p[seen]
    inside = main_components(p > THRESHOLD, p, MAIN_SHARE)
    components = label_components(inside).flatten(1).sort().values
    several = number_parts(inside, p, PART_REACH, max(PARTS)).flatten(1).amax(1) > 1
    n["seen"] += len(p)
    n["scattered"] += int((((components[:, 1:] != components[:, :-1]) & (components[:, :-1] > 0)).any(1)).sum())
    n["several"] += int(several.sum())
    n["true"] += int(truth[several].sum())
    for parts in PARTS:
        points, labels = generate_prompts(p, 0, 0, parts=parts)
        n["masks", parts] += int((labels == TOP_LEFT).sum())
        boxes = within_boxes(points[several], labels[several], p.shape[1:])
        n["area", parts] += int(boxes.sum())
        n["inside", parts] += int((boxes & truth[several]).sum())


def within_boxes(points: Tensor, labels: Tensor, size: torch.Size) -> Tensor:
    """[M, H, W] booleans, the union of the boxes of each mask."""
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    union = torch.zeros(len(points), *size, dtype=torch.bool)
    for corner in range(0, points.shape[1], 2):
        (x0, y0), (x1, y1) = (points[:, i, :, None, None].unbind(1) for i in (corner, corner + 1))
        there = (labels[:, corner] == TOP_LEFT) & (labels[:, corner + 1] == BOTTOM_RIGHT)
        union |= there[:, None, None] & (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    return union


def count_prompted(n: dict, truth: Tensor, p: Tensor) -> None:
    present, highest = truth.flatten(1).any(1), p.flatten(1).amax(1)
    n["with"] += int(present.sum())
    n["without"] += int((~present).sum())
    for threshold in THRESHOLDS:
        n["right", threshold] += int((present & (highest > threshold)).sum())
        n["wrong", threshold] += int((~present & (highest > threshold)).sum())


if __name__ == "__main__":
    main()
