"""What the network sees and says on its slices, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from nnunet_autosam2.architectures.autosam2 import AutoSAM2
from nnunet_autosam2.architectures.prompts import NEGATIVE, NUM_CORNERS, POSITIVE

COLOURS = ("tab:green", "tab:orange", "tab:red", "tab:purple", "tab:pink", "tab:cyan")
PANEL_INCHES = 2.4


class Look(NamedTuple):
    """One slice, R regions."""

    position: int
    rgb: np.ndarray
    """[H, W, 3], what SAM2 sees, 0 to 1"""
    masks: dict[str, np.ndarray | None]
    """Title → [R, H, W] booleans"""
    points: np.ndarray
    """[R, P, 2], (x, y)"""
    labels: np.ndarray
    """[R, P], SAM's labels"""
    predicted_iou: np.ndarray
    """[R], NaN where SAM2 was not asked"""


@torch.no_grad()
def look_inside(network: AutoSAM2, patch: Tensor, truth: Tensor | None, count: int) -> list[Look]:
    """The `count` selected slices with the largest prediction, in order of their position.

    Args:
        network: a hybrid, in evaluation mode.
        patch: [C, D, H, W] z-scores.
        truth: [R, D, H, W] booleans, or None.
    """
    assert network.sam2_branch is not None
    was_supervised = network.unet.deep_supervision
    network.set_deep_supervision(True)
    output = network(patch[None])
    network.set_deep_supervision(was_supervised)
    sam2 = output.sam2
    slices = sam2.slices[0]
    unet, sam2_masks, fused = (
        _masks(logits, network.config.region_based)
        for logits in (output.unet[0][0, :, slices], sam2.logits[0], output.logits[0, :, slices])
    )
    rgb = network.sam2_branch.mri_to_rgb.rgb(patch[:, slices].transpose(0, 1)).permute(0, 2, 3, 1)
    area = (unet | sam2_masks | fused).sum((0, 2, 3))
    shown = area.topk(min(count, len(slices))).indices.sort().values
    iou = sam2.predicted_iou[0].masked_fill(~sam2.prompted[0], torch.nan)
    return [
        Look(
            int(slices[k]),
            rgb[k].cpu().numpy(),
            {
                "truth": None if truth is None else truth[:, slices[k]].cpu().numpy(),
                "UNet": unet[:, k].cpu().numpy(),
                "SAM2": sam2_masks[:, k].cpu().numpy(),
                "fused": fused[:, k].cpu().numpy(),
            },
            sam2.points[0, :, k].cpu().numpy(),
            sam2.labels[0, :, k].cpu().numpy(),
            iou[:, k].cpu().numpy(),
        )
        for k in shown.tolist()
    ]


def draw(looks: list[Look], regions: list[str], title: str, path: Path) -> None:
    """One row a slice: what SAM2 sees with its prompts, truth, UNet, SAM2 and fused masks."""
    columns = ["SAM2's input and prompts", *looks[0].masks]
    size = (PANEL_INCHES * len(columns), PANEL_INCHES * len(looks) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(looks), len(columns), squeeze=False)
    for row, look in zip(panels, looks, strict=True):
        for panel, name in zip(row, columns, strict=True):
            panel.imshow(look.rgb)
            panel.set(xticks=[], yticks=[])
            if name in look.masks:
                _draw_masks(panel, look.masks[name])
            else:
                _draw_prompts(panel, look)
                panel.set_ylabel(f"slice {look.position}")
        scores = [f"{name} {iou:.2f}" for name, iou in zip(regions, look.predicted_iou, strict=True) if iou == iou]
        row[columns.index("SAM2")].set_xlabel("IoU " + ", ".join(scores) if scores else "not asked", fontsize=6)
    for panel, name in zip(panels[0], columns, strict=True):
        panel.set_title(name, fontsize=9)
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=n) for i, n in enumerate(regions)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(regions), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _masks(logits: Tensor, region_based: bool) -> Tensor:
    """[C, ...] → [R, ...] booleans."""
    if region_based:
        return logits > 0
    label = logits.argmax(0)
    return torch.stack([label == i for i in range(1, len(logits))])


def _draw_masks(panel: Axes, masks: np.ndarray | None) -> None:
    if masks is None:
        panel.text(0.5, 0.5, "none", transform=panel.transAxes, ha="center", color="white")
        return
    for i, mask in enumerate(masks):
        if mask.any():
            colour = COLOURS[i % len(COLOURS)]
            panel.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.25)
            panel.contour(mask, levels=[0.5], colors=[colour], linewidths=0.8)


def _draw_prompts(panel: Axes, look: Look) -> None:
    for i, (points, labels) in enumerate(zip(look.points, look.labels, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        if labels[0] >= 0:
            (x0, y0), (x1, y1) = points[:NUM_CORNERS]
            panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=0.8)
        for label, marker in ((POSITIVE, "+"), (NEGATIVE, "x")):
            panel.plot(*points[labels == label].T, marker, color=colour, markersize=4, markeredgewidth=0.8)
