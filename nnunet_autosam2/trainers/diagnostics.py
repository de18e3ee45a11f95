"""How a hybrid does, epoch by epoch: pseudo Dice of UNet, SAM2 and their fusion, and SAM2's weight in it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from nnunet_autosam2.architectures.log_odds import decisions
from nnunet_autosam2.architectures.masks import on_slices
from nnunet_autosam2.architectures.outputs import AutoSAM2Output
from nnunet_autosam2.architectures.slice_axes import sliced_along
from nnunet_autosam2.support.staging import replaced_file, set_aside

OUTPUTS = ("UNet", "SAM2", "fused")
COUNTED = ("UNet", "SAM2", "SAM2's weight")
PATIENCE = 10
"""Epochs with the fusion below the UNet alone before a warning"""


def confusion_counts(
    output: AutoSAM2Output, truth: Tensor, counted: Tensor, region_based: bool
) -> dict[str, np.ndarray]:
    """Counts for each of COUNTED: [3, C], true and false positives and false negatives, of its hard prediction; [C] for
    the weight. Empty where UNet or SAM2 is missing.

    Args:
        truth, counted: 0 or 1, [B, C, D, H, W] and [B, 1, D, H, W].
    """
    if output.fused is None:
        return {}
    truth, counted = (
        on_slices(sliced_along(each, output.slice_axis), output.fused.slices) for each in (truth, counted)
    )
    weight, reached = output.fused.sam2_weight, output.fused.covered
    mean = (weight * reached).sum((0, 2, 3, 4)) / reached.expand_as(weight).sum((0, 2, 3, 4)).clamp(min=1)
    result = {"SAM2's weight": mean.cpu().numpy()}
    for name, logits in (("UNet", output.fused.unet), ("SAM2", output.fused.sam2)):
        predicted = decisions(logits, region_based)
        true, counts = truth.bool(), counted.bool()
        parts = (predicted & true & counts, predicted & ~true & counts, ~predicted & true & counts)
        result[name] = torch.stack([part.sum((0, 2, 3, 4)) for part in parts]).cpu().numpy()
    return result


class HybridProgress:
    """A table and a picture in the folder of a fold, which a resumed training continues.

    Args:
        folder: for `autosam2_progress.csv` and `autosam2_progress.png`.
        classes: names of the regions or foreground classes.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.table, self.picture = folder / "autosam2_progress.csv", folder / "autosam2_progress.png"
        self.classes = list(classes)
        self.columns = ["epoch", *(f"{what} {name}" for what in (*OUTPUTS, "SAM2's weight") for name in self.classes)]
        self.rows: list[list[float]] = []
        if self.table.is_file():
            try:
                with self.table.open(newline="") as file:
                    rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
                self.rows = np.reshape(rows, (-1, len(self.columns))).tolist()
            except (ValueError, csv.Error):
                set_aside(self.table, "is damaged")

    def add(self, epoch: int, means: Mapping[str, np.ndarray], fused: Sequence[float]) -> Iterator[str]:
        """Writes both files; yields lines for the log.

        Args:
            means: over batches, of what `confusion_counts` returns.
            fused: Dice of the network's output in each foreground class.
        """
        foreground = slice(-len(self.classes), None)
        values: dict[str, Any] = {"fused": fused, "SAM2's weight": means["SAM2's weight"][foreground]}
        for name in ("UNet", "SAM2"):
            tp, fp, fn = means[name][:, foreground]
            with np.errstate(invalid="ignore"):  # NaN, as for nnU-Net, where a class is nowhere
                values[name] = 2 * tp / (2 * tp + fp + fn)
        self.rows = [row for row in self.rows if row[0] < epoch]
        self.rows.append([epoch, *(float(value) for what in (*OUTPUTS, "SAM2's weight") for value in values[what])])
        self._write()
        for what in ("UNet", "SAM2", "SAM2's weight"):
            name = what if what == "SAM2's weight" else f"Pseudo dice of {what} alone"
            yield f"{name} {[round(float(value), 4) for value in values[what]]}"
        if self.fusion_harms:
            yield (
                f"WARNING: for {PATIENCE} epochs the fusion has been below the UNet alone: SAM2 does not help here. "
                f"See {self.picture.name}."
            )

    def _write(self) -> None:
        with replaced_file(self.table) as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows([self.columns, *self.rows])
        self._draw()

    def mean_dice(self, output: str) -> np.ndarray:
        """Over the classes, one an epoch."""
        return np.ma.masked_invalid(self.dice(output)).mean(axis=1).filled(np.nan)

    def dice(self, output: str, before: int | None = None) -> np.ndarray:
        """[epochs, classes] of one of OUTPUTS, up to the epoch `before` and without it."""
        rows = [row for row in self.rows if before is None or row[0] < before]
        columns = [self.columns.index(f"{output} {name}") for name in self.classes]
        return np.reshape(rows, (-1, len(self.columns)))[:, columns]

    @property
    def fusion_harms(self) -> bool:
        """The last ten epochs that tell, the fusion was below the UNet alone in the mean of what both have defined."""
        difference = self.dice("fused") - self.dice("UNet")
        telling = difference[~np.isnan(difference).all(axis=1)][-PATIENCE:]
        return len(telling) == PATIENCE and bool((np.nanmean(telling, axis=1) < 0).all())

    def _draw(self) -> None:
        figure = Figure(figsize=(9, 7), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        values = np.array(self.rows)
        for output in OUTPUTS:
            upper.plot(values[:, 0], self.mean_dice(output), label=output)
        upper.set(ylabel="pseudo Dice, mean over classes", ylim=(0, 1))
        for name in self.classes:
            lower.plot(values[:, 0], values[:, self.columns.index(f"SAM2's weight {name}")], label=name)
        lower.set(ylabel="SAM2's mean weight", xlabel="epoch")
        for panel in (upper, lower):
            panel.legend(loc="lower right")
            panel.grid(alpha=0.3)
        with replaced_file(self.picture) as temporary:
            figure.savefig(temporary, dpi=100, format="png")
