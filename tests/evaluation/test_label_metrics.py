"""Labels that are not BraTS's, on a grid whose voxels are no cubes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from nnunet_autosam2.evaluation.challenges import TOLERANCE
from nnunet_autosam2.evaluation.numbering import Numbering
from nnunet_autosam2.evaluation.pairs import Pair
from nnunet_autosam2.evaluation.scoring import Scores, evaluate

SPACING = (0.7, 1.1, 2.5)  # x, y, z
KIDNEY = Numbering({"kidney": (1, 2, 3), "mass": (2, 3), "tumour": (2,), "vein": (7,)}, outside=(0, 9), ignored=9)


def write(voxels: np.ndarray, file: Path) -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(SPACING)
    image.SetDirection((0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, file)
    return file


def blobs(seed: int) -> np.ndarray:
    """Regions one in the other and a vein that touches the border, with holes and specks."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices((14, 26, 30)) + random.normal(0, 0.7, (3, 14, 26, 30))
    radius = np.hypot(np.hypot(z - 6, (y - 12) / 2), (x - 14) / 2)
    voxels = np.digitize(-radius, (-5.0, -3.2, -1.8)).astype(np.uint8)
    voxels[voxels == 3] = 2 + random.integers(0, 2)
    voxels[:, :2, 3:5] = 7
    return voxels


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name → truth, prediction."""
    truth, nothing = blobs(0), np.zeros((14, 26, 30), np.uint8)
    ignored = truth.copy()
    ignored[:, :, 15:] = 9
    far = nothing.copy()
    far[12, 24, 28] = 7
    return {
        "ordinary": (truth, blobs(1)),
        "perfect": (truth, truth),
        "missed": (truth, nothing),
        "invented": (nothing, truth),
        "healthy": (nothing, nothing),
        "ignored": (ignored, blobs(2)),
        "apart": (truth, far),
    }


@pytest.fixture(scope="module")
def scores(cases, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = tmp_path_factory.mktemp("labels")
    pairs = [
        Pair(name, write(prediction, folder / f"{name}_prediction.nii.gz"), write(truth, folder / f"{name}.nii.gz"))
        for name, (truth, prediction) in cases.items()
    ]
    return evaluate(pairs, numbering=KIDNEY, num_processes=2)


def surface(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask & ~binary_erosion(mask)) * SPACING[::-1]


@pytest.mark.parametrize("case", ["ordinary", "perfect", "ignored", "apart"])
def test_by_counting_voxels_and_by_nearest_neighbours_in_mm(cases, scores: Scores, case: str):
    truth, prediction = cases[case]
    compared = 0
    for region, labels in KIDNEY.regions.items():
        true, predicted = (np.isin(voxels, labels) & (truth != 9) for voxels in (truth, prediction))
        if not (true.any() and predicted.any()):
            continue
        both, surfaces = (true & predicted).sum(), (surface(true), surface(predicted))
        distances = [KDTree(one).query(other)[0] for one, other in (surfaces, surfaces[::-1])]
        close = sum((of_side <= TOLERANCE).sum() for of_side in distances)
        assert scores[case][region] == pytest.approx(
            {
                "Dice": 2 * both / (true.sum() + predicted.sum()),
                "IoU": both / (true | predicted).sum(),
                "HD95": max(np.percentile(of_side, 95) for of_side in distances),
                "NSD": close / sum(map(len, distances)),
            },
            abs=1e-5,
        )
        compared += 1
    assert compared == (1 if case == "apart" else 4)


def test_empty_regions(scores: Scores):
    worst = {"Dice": 0.0, "IoU": 0.0, "HD95": pytest.approx(math.hypot(14 * 2.5, 26 * 1.1, 30 * 0.7)), "NSD": 0.0}
    assert scores["missed"]["mass"] == scores["invented"]["tumour"] == worst
    assert scores["healthy"]["vein"] == dict.fromkeys(worst)
    assert scores["apart"]["mass"] == worst


def test_every_region_in_its_order(scores: Scores):
    assert {tuple(regions) for regions in scores.values()} == {tuple(KIDNEY.regions)}
