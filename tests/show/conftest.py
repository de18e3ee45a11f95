"""A case of four channels with a truth, as nnU-Net's raw data are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.show.loading import LoadedModel, load_trained

SHAPE = (30, 34, 38)  # z, y, x
TUMOUR = (slice(9, 21), slice(10, 24), slice(12, 26))


class RawCase(NamedTuple):
    prefix: Path
    """What the names of its channels have in common"""
    truth: Path
    labels: np.ndarray
    """[Z, Y, X]"""

    def channel(self, number: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}_{number:04d}.nii.gz")

    def write(self, labels: np.ndarray, file: Path | None = None, origin: float = 0.0) -> Path:
        """As truth, or into another file."""
        return save(labels.astype(np.uint8), file or self.truth, origin)


def save(voxels: np.ndarray, file: Path, origin: float = 0.0) -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.SetOrigin((origin, 0.0, 0.0))
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, file)
    return file


@pytest.fixture
def case(tmp_path: Path) -> RawCase:
    """A whole tumour with its core and enhancing part, brighter than what is around; nothing outside of the head."""
    folder = tmp_path / "raw" / "Dataset900_Phantom"
    labels = np.zeros(SHAPE, np.uint8)
    labels[TUMOUR] = 1
    labels[11:19, 12:22, 14:24] = 2
    labels[13:17, 14:20, 16:22] = 3
    random = np.random.default_rng(0)
    made = RawCase(folder / "imagesTr" / "case_1", folder / "labelsTr" / "case_1.nii.gz", labels)
    for number in range(4):
        voxels = random.normal(100 + 50 * labels, 5).astype(np.float32)
        voxels[:3] = 0  # nnU-Net crops this
        save(voxels, made.channel(number))
    made.write(labels)
    return made


@pytest.fixture(scope="module")
def loaded(whole_model: Path) -> LoadedModel:
    """The network of `whole_model`, which no test changes."""
    return load_trained(whole_model, "0", "checkpoint_final.pth")


@pytest.fixture
def planned(tmp_path: Path, plans: dict, dataset_json: dict) -> Path:
    """The plans of a preprocessed data set, with its dataset.json beside them."""
    folder = tmp_path / "preprocessed" / "Dataset900_Phantom"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder / "nnUNetPlans.json"
