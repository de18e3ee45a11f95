"""Which labels make up whole tumor (WT), tumor core (TC) and enhancing tumor (ET) in a segmentation file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_autosam2.dataset_json import Labelled
from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.json_files import checked, read_json, shown

REGIONS = ("WT", "TC", "ET")
NAMES_IN_DATASET_JSON = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}


@dataclass(frozen=True)
class Numbering:
    """Labels of the regions. ET lies within TC and TC within WT."""

    regions: Mapping[str, tuple[int, ...]]
    outside: tuple[int, ...] = (0,)
    """Labels that are known and in no region: background, resection cavity."""

    @property
    def labels(self) -> tuple[int, ...]:
        return (*self.outside, *self.regions["WT"])

    def renumbered(self, voxels: np.ndarray, oedema: int, core: int, enhancing: int) -> np.ndarray:
        """`voxels` as uint8 with new labels for WT without TC, TC without ET, and ET, 0 elsewhere."""
        table = np.zeros(max(self.labels) + 1, np.uint8)
        for region, label in zip(REGIONS, (oedema, core, enhancing), strict=True):
            table[list(self.regions[region])] = label
        return table[voxels.astype(np.intp)]


NUMBERINGS = {
    # 1 oedema, 2 necrotic and non-enhancing core, 3 enhancing tumor
    "nnunet": Numbering({"WT": (1, 2, 3), "TC": (2, 3), "ET": (3,)}),
    # 1 necrotic and non-enhancing core, 2 oedema, 4 enhancing tumor
    "brats2021": Numbering({"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}),
    # 1 necrotic and non-enhancing core, 2 oedema, 3 enhancing tumor, 4 resection cavity
    "brats2023": Numbering({"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}, outside=(0, 4)),
    # 1 enhancing tumor, 2 non-enhancing tumor, 3 cysts, 4 oedema
    "ped2024": Numbering({"WT": (1, 2, 3, 4), "TC": (1, 2, 3), "ET": (1,)}),
}


def numbering_of_dataset(dataset_json: Path) -> Numbering:
    """The regions that nnU-Net's `dataset.json` defines.

    Raises:
        DatasetError: unreadable, or without the three regions, each within the one before.
    """
    choices = ", ".join(NUMBERINGS)
    try:
        described = checked(read_json(dataset_json), Labelled, dataset_json)
    except DatasetError as error:
        raise DatasetError(
            f"{str(error).rstrip('.')}: it has no labels of nnU-Net's that can be read. Mend it, or give --labels, one "
            f"of {choices}."
        ) from error
    labels = {name: tuple(np.atleast_1d(value).tolist()) for name, value in described.labels.items()}
    if missing := [name for name in NAMES_IN_DATASET_JSON.values() if name not in labels]:
        raise DatasetError(
            f"{dataset_json} defines no region named {', '.join(missing)}, only {listed([*map(shown, labels)])}: "
            f"give --labels, one of {choices}."
        )
    regions = {region: labels[name] for region, name in NAMES_IN_DATASET_JSON.items()}
    whole, core, enhancing = (set(regions[region]) for region in REGIONS)
    if not enhancing <= core <= whole:
        raise DatasetError(
            f"{dataset_json} has regions that are not nested: enhancing tumor {sorted(enhancing)} has to be within "
            f"tumor core {sorted(core)}, and that within whole tumor {sorted(whole)}."
        )
    return Numbering(regions, outside=tuple({label for values in labels.values() for label in values} - whole))
