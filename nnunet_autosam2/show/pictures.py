"""Pictures of what the network sees and says: a file for each slice, a row for each region."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from nnunet_autosam2.architectures.prompts import NEGATIVE, NOT_A_POINT, POSITIVE, TOP_LEFT
from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.support.staging import replaced_folder
from nnunet_autosam2.support.text import printable

PROMPTS = "SAM2's image and prompts"
POINT: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.5}
MARKERS: dict[int, dict[str, Any]] = {
    POSITIVE: {**POINT, "marker": "o", "color": "lime", "markersize": 4.5, "label": "positive point"},
    NEGATIVE: {**POINT, "marker": "X", "color": "red", "markersize": 5.5, "label": "negative point"},
}
PANEL_INCHES = 2.5
DOTS_PER_INCH = 200


class SliceView(NamedTuple):
    """One slice of H · W pixels, R regions."""

    number: int
    regions: list[str]
    colours: list[tuple[float, ...]]
    """Red, green and blue of each region, 0 to 1"""
    rgb: np.ndarray
    """[S, S, 3], what enters SAM2's image encoder, 0 to 1"""
    points: np.ndarray
    """[R, P, 2], (x, y) in pixels of the slice: two corners of a box, then points, for each part of the region"""
    labels: np.ndarray
    """[R, P], SAM's labels"""
    predicted_iou: np.ndarray
    """[R], SAM2's own estimate"""
    masks: dict[str, np.ndarray]
    """Title → [R, H, W] booleans; `truth` is one of them if there is any"""
    dice: dict[str, np.ndarray]
    """Title → [R], against the truth; NaN where both are empty"""


def require_replaceable(folder: Path, case: str) -> None:
    """
    Raises:
        DatasetError: `folder` is a file, or holds anything but pictures of `case`.
    """
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} is a file: choose another --output.")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not re.fullmatch(rf"{re.escape(case)}_slice_\d+\.png", path.name):
            raise DatasetError(f"{folder} holds {path.name}, no earlier picture of {case}: choose another --output.")


def write_pictures(views: Sequence[SliceView], case: str, numbering: str, subtitle: str, folder: Path) -> None:
    """Writes `<case>_slice_<number>.png` of every slice; `folder` appears, or is replaced, as a whole.

    Raises:
        DatasetError: `folder` holds something else, or the disk refuses.
    """
    require_replaceable(folder, case)
    with replaced_folder(folder) as staged:
        for view in tqdm(views, desc="draw"):
            # Names of cases and regions are text, also where they look like formulas.
            with rc_context({"text.parse_math": False}):
                figure = draw(view, f"{printable(case)}, slice {view.number} {numbering}\n{subtitle}")
                figure.savefig(staged / f"{case}_slice_{view.number:03d}.png", dpi=DOTS_PER_INCH)


def draw(view: SliceView, title: str) -> Figure:
    """A row for each region, and columns for its prompts and each of its masks."""
    columns = [PROMPTS, *view.masks]
    size = (PANEL_INCHES * len(columns) + 0.3, (PANEL_INCHES + 0.25) * len(view.regions) + 1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(view.regions), len(columns), squeeze=False)
    for region, row in enumerate(panels):
        row[0].set_ylabel(view.regions[region], fontsize=10)
        for panel, column in zip(row, columns, strict=True):
            if column == PROMPTS:
                _draw_image(panel, view, view.rgb)
                caption = _draw_prompts(panel, view, region)
            else:
                _draw_image(panel, view, view.rgb.mean(2))
                caption = _draw_mask(panel, view, region, column)
            panel.set_xlabel(caption, fontsize=8)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(column, fontsize=10)
    _draw_legend(figure, has_truth="truth" in view.masks)
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_image(panel: Axes, view: SliceView, image: np.ndarray) -> None:
    """The square that SAM2 sees, in the coordinates of the slice: whole numbers are the centres of its pixels."""
    height, width = view.masks["SAM2"].shape[1:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    panel.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent, aspect="auto")
    panel.set(xticks=[], yticks=[], box_aspect=1)
    panel.autoscale(False)


def _draw_prompts(panel: Axes, view: SliceView, region: int) -> str:
    """Returns the caption."""
    points, labels = view.points[region], view.labels[region]
    if (labels == NOT_A_POINT).all():
        return "no prompts"
    caption = f"{(labels == POSITIVE).sum()} positive and {(labels == NEGATIVE).sum()} negative points"
    corners = np.flatnonzero(labels == TOP_LEFT)
    for (x0, y0), (x1, y1) in zip(points[corners], points[corners + 1], strict=True):
        panel.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=1.2)
    if len(corners) > 0:
        caption = f"{'box' if len(corners) == 1 else f'{len(corners)} boxes'}, {caption}"
    for label, style in MARKERS.items():
        panel.plot(*points[labels == label].T, **style)
    return caption


def _draw_mask(panel: Axes, view: SliceView, region: int, column: str) -> str:
    """Returns the caption."""
    colour = view.colours[region]
    if (mask := view.masks[column][region]).any():
        panel.contourf(*_with_border(mask), levels=[0.5, 1.5], colors=[colour], alpha=0.35)
        panel.contour(*_with_border(mask), levels=[0.5], colors=[colour], linewidths=1.2)
    if column != "truth" and "truth" in view.masks and (truth := view.masks["truth"][region]).any():
        panel.contour(*_with_border(truth), levels=[0.5], colors="white", linestyles="dotted", linewidths=1)
    scores = [f"predicted IoU {view.predicted_iou[region]:.2f}"] if column == "SAM2" else []
    if column in view.dice and not np.isnan(view.dice[column][region]):
        scores.append(f"Dice {view.dice[column][region]:.2f}")
    return ", ".join(scores)


def _with_border(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and [H + 2, W + 2] for a contour that is closed at the ends of the slice."""
    height, width = mask.shape
    return np.arange(-1, width + 1), np.arange(-1, height + 1), np.pad(mask, 1)


def _draw_legend(figure: Figure, has_truth: bool) -> None:
    handles = [Line2D([], [], **style) for style in MARKERS.values()]
    if has_truth:
        handles.append(Line2D([], [], color="black", linestyle="dotted", label="outline of the truth"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
