"""Synthetic CT with many organs, as a raw dataset of nnU-Net: for demonstrations and tests, never for results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree
from tqdm import tqdm

from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.staging import staged_folder

MOST_CLASSES = 250
VOXELS_A_CLASS = 200
"""Below, organs would have no inside"""
AIR, FAT = -1000, -100
ORGANS = (-60, 200)
"""Hounsfield units of the darkest and the brightest"""
NOISE = 15
BODY = (1.0, 0.8, 0.95)
"""Half axes along z, y, x, as fractions of half the volume"""
SHIFT = 0.15
"""Most that an organ is moved along an axis in a case, as a fraction of the distance to its neighbour"""


def write_organs(output: Path, num_cases: int, size: tuple[int, int, int], seed: int, classes: int) -> None:
    """Writes `imagesTr`, `labelsTr` and `dataset.json` of cases `organs_001`, … into `output`, an empty folder.

    Organ number i is about at the same place in all cases, and has the same intensity.

    Raises:
        ConfigurationError: a number is not possible, or there is no room for so many organs.
        DatasetError: `output` holds something, or the disk refuses.
    """
    if num_cases < 1 or seed < 0:
        raise ConfigurationError(f"{num_cases} cases with the seed {seed} are not possible: 1 or more, and 0 or more.")
    if not 1 <= classes <= MOST_CLASSES:
        raise ConfigurationError(f"{classes} classes are not possible: ask for 1 to {MOST_CLASSES}.")
    if classes * VOXELS_A_CLASS > np.prod(size):
        raise ConfigurationError(f"{classes} organs have no room in {size} voxels: ask for fewer or a larger size.")
    centres = organ_centres(np.random.default_rng(seed), classes)
    with staged_folder(output) as staged:
        for name in ("imagesTr", "labelsTr"):
            (staged / name).mkdir()
        for number in tqdm(range(1, num_cases + 1), desc="phantom"):
            image, labels = make_organs(size, centres, np.random.default_rng([seed, number]))
            sitk.WriteImage(sitk.GetImageFromArray(image), staged / "imagesTr" / f"organs_{number:03d}_0000.nii.gz")
            sitk.WriteImage(sitk.GetImageFromArray(labels), staged / "labelsTr" / f"organs_{number:03d}.nii.gz")
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **{f"organ {number}": number for number in range(1, classes + 1)}},
            "numTraining": num_cases,
            "file_ending": ".nii.gz",
        }
        (staged / "dataset.json").write_text(json.dumps(content, indent=4))


def organ_centres(rng: np.random.Generator, classes: int) -> np.ndarray:
    """[classes, 3], within the body in fractions of half the volume, far from each other."""
    candidates = rng.uniform(-1, 1, (40 * classes, 3)) * 0.8 * np.array(BODY)
    candidates = candidates[np.linalg.norm(candidates / BODY, axis=1) < 0.8]
    chosen = [0]
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < classes:
        distance = np.minimum(distance, np.linalg.norm(candidates - candidates[chosen[-1]], axis=1))
        chosen.append(int(distance.argmax()))
    return candidates[chosen]


def make_organs(
    size: tuple[int, int, int], centres: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units, int16, and labels, uint8, `[Z, Y, X]`; every label is present."""
    positions = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij"), axis=-1)
    apart = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)
    reach = apart[:, 1] if len(centres) > 1 else np.array([0.8])
    centres = centres + SHIFT * reach[:, None] * rng.uniform(-1, 1, centres.shape)
    distance, nearest = cKDTree(centres).query(positions)
    within = distance < 0.5 * reach[nearest] * (1 + 0.15 * _smooth(size, rng))
    labels = np.where(within, nearest + 1, 0).astype(np.uint8)
    for number, centre in enumerate(centres, start=1):  # an organ smaller than a voxel
        if not (labels == number).any():
            labels[tuple(np.round((centre + 1) / 2 * (np.array(size) - 1)).astype(int))] = number
    body = np.linalg.norm(positions / BODY, axis=-1) < 1
    intensity = np.linspace(*ORGANS, len(centres))[np.random.default_rng(len(centres)).permutation(len(centres))]
    image = np.where(labels > 0, np.concatenate([[0], intensity])[labels], np.where(body, FAT, AIR)).astype(float)
    image = ndimage.gaussian_filter(image, 0.5) + rng.normal(0, NOISE, size)
    return image.round().astype(np.int16), labels


def _smooth(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(size), [side / 12 for side in size])
    return noise / noise.std()
