"""Segmentations in nnU-Net's numbers, 1 oedema, 2 core, 3 enhancing tumour, from an ordinary case to none at all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.phantom import make_case
from nnunet_autosam2.evaluation.pairs import Pair

SHAPE = (26, 30, 34)  # z, y, x
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


class Segmentations(NamedTuple):
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # x, y, z


def ordinary() -> Segmentations:
    """A shifted tumour, one lesion that is missed, two false ones and one lesion that falls apart."""
    truth = np.array([0, 2, 1, 0, 3], np.uint8)[make_case(SHAPE, np.random.default_rng(3)).segmentation]
    prediction = np.roll(truth, (1, 1, -2), axis=(0, 1, 2))
    prediction[:, 12] = 0
    truth[1:4, 1:5, 1:4] = 3
    truth[20:24, 1:5, 1:4] = 1
    prediction[21:24, 2:5, 1:4] = 1
    prediction[1:5, 24:28, 28:33] = 2
    prediction[22, 26, 30] = 3
    return Segmentations(truth, prediction)


def box(label: int, corner: int = 6, side: int = 6) -> np.ndarray:
    """Oedema around a core, and in it the enhancing tumour, up to `label`."""
    voxels = np.zeros(SHAPE, np.uint8)
    for part in range(label):
        voxels[tuple([slice(corner + part, corner + side - part)] * 3)] = part + 1
    return voxels


NOTHING = np.zeros(SHAPE, np.uint8)
CASES = {
    "ordinary_00001-000": ordinary(),
    "anisotropic_00002-000": ordinary()._replace(spacing=(0.9, 1.2, 2.5)),
    "no_enhancing_in_truth_00003-000": Segmentations(box(2), box(3, corner=7)),
    "no_enhancing_in_prediction_00004-000": Segmentations(box(3), box(2, corner=7)),
    "no_enhancing_00005-000": Segmentations(box(2), box(2, corner=7)),
    "empty_prediction_00006-000": Segmentations(box(3), NOTHING),
    "empty_truth_00007-000": Segmentations(NOTHING, box(3)),
    "both_empty_00008-000": Segmentations(NOTHING, NOTHING),
    "no_overlap_00009-000": Segmentations(box(3), box(3, corner=16, side=8)),
    "small_lesion_00010-000": Segmentations(box(1, side=2), box(1, side=2, corner=7)),
    "perfect_00011-000": Segmentations(box(3), box(3)),
}


def write(voxels: np.ndarray, file: Path, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetOrigin((-12.5, 40.25, 7.0))
    image.SetDirection(OBLIQUE)
    sitk.WriteImage(image, file)


def write_cases(folder: Path, numbers: tuple[int, int, int, int] = (0, 1, 2, 3)) -> list[Pair]:
    """All cases into `folder/{predictions,truth}`, with `numbers` in the place of nnU-Net's 0, 1, 2, 3."""
    table = np.array(numbers, np.uint8)
    pairs = []
    for name, case in CASES.items():
        pair = Pair(name, folder / "predictions" / f"{name}.nii.gz", folder / "truth" / f"{name}.nii.gz")
        for voxels, file in ((case.prediction, pair.prediction), (case.truth, pair.truth)):
            file.parent.mkdir(parents=True, exist_ok=True)
            write(table[voxels], file, case.spacing)
        pairs.append(pair)
    return pairs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    """Of all cases, in nnU-Net's numbers."""
    return write_cases(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture(scope="session")
def in_numbers_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Pair]]:
    """Challenge → pairs of all cases in its numbers; each challenge's folder is beside those of the others."""
    root = tmp_path_factory.mktemp("challenges")
    numbers = {"gli": (0, 2, 1, 3), "mets": (0, 2, 1, 3), "ped": (0, 4, 2, 1), "MenRT": (0, 0, 1, 1)}
    return {challenge: write_cases(root / challenge, labels) for challenge, labels in numbers.items()}
