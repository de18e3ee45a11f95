"""Synthetic brain MRI with tumours, in BraTS layout: for demonstrations and tests, never for results.

Every volume is `[Z, Y, X]` at 1 mm: z from inferior to superior (axial slices), y from anterior to posterior.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from tqdm import tqdm

from nnunet_autosam2.dataset_conversion.brats_layout import RELEASES
from nnunet_autosam2.dataset_conversion.regions import TISSUES
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.staging import staged_folder

SMALLEST_SIDE = 24
APART = 4  # voxels between tumours, at least
PARTIAL_VOLUME = 0.55  # standard deviation in voxels
BIAS = 0.08
NOISE = 0.03

RELEASE = RELEASES["2018-2021"]
OEDEMA, NECROSIS, ENHANCING = (RELEASE.original[tissue] for tissue in TISSUES)
MODALITIES = tuple(RELEASE.modalities)
# Relative signal of each tissue, after the textbook appearance in glioma protocols
SIGNAL = {
    #                t1    t1ce  t2    flair
    "white matter": (0.78, 0.80, 0.34, 0.40),
    "grey matter":  (0.56, 0.60, 0.50, 0.54),
    "fluid":        (0.20, 0.22, 1.00, 0.14),
    "lesion":       (0.66, 0.68, 0.56, 0.68),
    "vessel":       (0.45, 1.05, 0.25, 0.30),
    "oedema":       (0.50, 0.52, 0.80, 0.88),
    "necrosis":     (0.34, 0.32, 0.86, 0.58),
    "enhancing":    (0.54, 1.10, 0.62, 0.72),
}  # fmt: skip


class PhantomCase(NamedTuple):
    images: dict[str, np.ndarray]
    """Modality → int16 `[Z, Y, X]`, 0 outside of the brain and 1 or more within."""
    segmentation: np.ndarray
    """uint8 `[Z, Y, X]` with BraTS labels 0, 1, 2, 4, each of them present."""


def write_phantom(output: Path, num_cases: int, size: tuple[int, int, int], seed: int, tumours: int = 1) -> None:
    """Writes `phantom_001`, `phantom_002`, … into `output`, which must not hold anything yet.

    Case number i depends on `seed`, `size`, `tumours` and i alone.

    Raises:
        ConfigurationError: a number is not possible, or there is no room for so many tumours.
        DatasetError: `output` holds something, or the disk refuses.
    """
    if num_cases < 1:
        raise ConfigurationError(f"{num_cases} cases are not possible: ask for 1 or more.")
    if min(size) < SMALLEST_SIDE:
        raise ConfigurationError(f"Size {size} is not possible: every side needs {SMALLEST_SIDE} voxels or more.")
    if seed < 0:
        raise ConfigurationError(f"Seed {seed} is not possible: it has to be 0 or more.")
    if tumours < 1:
        raise ConfigurationError(f"{tumours} tumours are not possible: ask for 1 or more.")
    with staged_folder(output) as staged:
        for number in tqdm(range(1, num_cases + 1), desc="phantom"):
            case = make_case(size, np.random.default_rng([seed, number]), tumours)
            folder = staged / f"phantom_{number:03d}"
            folder.mkdir()
            for suffix, volume in {**case.images, "seg": case.segmentation}.items():
                image = sitk.GetImageFromArray(volume)
                image.SetOrigin((0.0, 1.0 - size[1], 0.0))  # as BraTS
                sitk.WriteImage(image, folder / f"{folder.name}_{suffix}.nii.gz")


def make_case(size: tuple[int, int, int], rng: np.random.Generator, tumours: int = 1) -> PhantomCase:
    """One head with tumours that do not touch, `size` in voxels along z, y, x.

    Together they are about as large as a single one.

    Raises:
        ConfigurationError: there is no room for so many.
    """
    tissues = _anatomy(size, rng)
    segmentation = np.zeros(size, np.uint8)
    for number in range(tumours):
        away = ndimage.distance_transform_edt(segmentation == 0) if number else np.full(size, np.inf)
        if not (tumour := _tumour(tissues, away, 1 / tumours, rng)).any():
            raise ConfigurationError(
                f"{tumours} tumours have no room in {size} voxels: ask for fewer or a larger size."
            )
        segmentation += tumour
    tissues |= {
        "oedema": segmentation == OEDEMA,
        "necrosis": segmentation == NECROSIS,
        "enhancing": segmentation == ENHANCING,
    }
    return PhantomCase(_render(tissues, rng), segmentation)


def _anatomy(size: tuple[int, int, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tissue masks; a later one overlies the earlier ones. Lengths are fractions of half the volume."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    tilt = np.eye(3) + rng.normal(0, 0.05, (3, 3))
    radii = rng.uniform((0.86, 0.86, 0.74), (0.94, 0.94, 0.82))
    z, y, x = np.tensordot(tilt, axes, axes=1) / radii[:, None, None, None]
    side = np.abs(x)

    pole = 1 - 0.1 * y**2 - 0.12 * np.minimum(y, 0) ** 2  # narrower at the front
    radius = np.sqrt(np.abs(x / pole) ** 2.2 + np.abs(y) ** 2.2 + np.abs(z) ** 2.4)
    depth = 1 - radius - 0.02 * _noise(size, 8, rng)
    brain = ndimage.binary_fill_holes(depth > 0)
    folds = np.abs(_noise(size, 16, rng))

    deep_grey = _ellipsoid((z + 0.08, y - 0.02, side - 0.30), (0.26, 0.30, 0.10))
    thalamus = _ellipsoid((z + 0.02, y - 0.20, side - 0.14), (0.18, 0.20, 0.09))
    cortex = (depth < 0.12) | ((depth < 0.36) & (folds < 0.45)) | ((side < 0.07) & (depth < 0.45))

    horns = (z - 0.08 + 0.3 * y**2, y - 0.02, side - 0.07 - 0.35 * y**2)
    width, length, height = 0.07 * rng.uniform(0.8, 1.3), 0.50, 0.17 * rng.uniform(0.8, 1.3)
    ventricle = _ellipsoid(horns, (height, length, width))
    third_ventricle = _ellipsoid((z + 0.14, y - 0.05, x), (0.16, 0.18, 0.035))
    caps = _ellipsoid(horns, (1.4 * height, 1.3 * length, 1.9 * width)) & (np.abs(y) > 0.35)
    plexus = ventricle & (y > 0.2) & (folds < 0.4)

    sulci = (depth < 0.28) & (folds < 0.14)
    fissure = (side < 0.025) & (depth < 0.42) & (z > -0.3)
    sylvian = _ellipsoid((z + 0.12 - 0.2 * y, y + 0.12, side - 0.78), (0.05, 0.38, 0.22))
    sinus = (side < 0.05) & (depth < 0.09) & (z > 0)
    return {
        "white matter": brain,
        "lesion": brain & caps,
        "grey matter": brain & (cortex | deep_grey | thalamus),
        "fluid": brain & (sulci | fissure | sylvian | ventricle | third_ventricle),
        "vessel": brain & (sinus | plexus),
    }


def _tumour(tissues: dict[str, np.ndarray], away: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """BraTS labels. Each part takes a fraction of the one around it, by rank, so that none is ever empty.

    Args:
        away: `[Z, Y, X]`, distance to other tumours; only where there is no room beside them there is none.
        share: of the size of a single tumour.
    """
    brain = tissues["white matter"]
    size = brain.shape
    tissue = brain & ~tissues["fluid"] & ~tissues["vessel"] & (away > APART)
    off_midline = np.abs(np.arange(size[2]) - (size[2] - 1) / 2) > 0.15 * size[2]
    depth = ndimage.distance_transform_edt(brain)
    centres = np.argwhere(tissue & ~tissues["grey matter"] & off_midline & (depth > 0.4 * depth.max()))
    if len(centres) == 0:
        return np.zeros(size, np.uint8)
    distances = away[tuple(centres.T)]
    centre = rng.choice(centres[distances >= np.median(distances)])

    stretch = rng.uniform(0.8, 1.25, 3)
    offset = np.indices(size) - centre[:, None, None, None]
    distance = np.sqrt(((offset * stretch[:, None, None, None]) ** 2).sum(axis=0))
    shape = distance * np.exp(0.22 * _noise(size, 9, rng))

    # Oedema follows the white matter and spares the cortex.
    spread = shape * np.where(tissues["grey matter"], 1.35, 1) * np.exp(0.12 * _noise(size, 16, rng))
    whole = _nearest(spread, tissue, share * rng.uniform(0.05, 0.13))
    core = _nearest(shape * np.exp(0.1 * _noise(size, 14, rng)), whole, rng.uniform(0.3, 0.55))
    rim = ndimage.distance_transform_edt(core) * np.exp(0.35 * _noise(size, 14, rng))
    necrosis = _nearest(-rim, core, rng.uniform(0.25, 0.45))

    segmentation = np.zeros(size, np.uint8)
    segmentation[whole] = OEDEMA
    segmentation[core] = ENHANCING
    segmentation[necrosis] = NECROSIS
    return segmentation


def _render(tissues: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Signal with texture, partial volume, bias field and Rician noise."""
    brain = tissues["white matter"]
    size = brain.shape
    blurred_brain = np.maximum(ndimage.gaussian_filter(brain.astype(float), PARTIAL_VOLUME), 0.5)
    images = {}
    for channel, modality in enumerate(MODALITIES):
        signal = np.zeros(size)
        for tissue, mask in tissues.items():
            contrast = SIGNAL[tissue][channel] * rng.normal(1, 0.04)
            signal[mask] = contrast * (1 + 0.05 * _noise(size, 12, rng)[mask])
        signal = ndimage.gaussian_filter(signal, PARTIAL_VOLUME) / blurred_brain
        signal *= np.exp(BIAS * _noise(size, 1.5, rng))
        real, imaginary = rng.normal(0, NOISE, (2, *size))
        signal = np.hypot(signal + real, imaginary)
        scale = 400 * rng.uniform(0.8, 1.25)
        images[modality] = np.where(brain, np.maximum(signal * scale, 1), 0).round().astype(np.int16)
    return images


def _noise(size: tuple[int, ...], frequency: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise with unit variance and about `frequency` blobs along each axis."""
    smooth = ndimage.gaussian_filter(rng.standard_normal(size), [side / frequency / 2 for side in size])
    return (smooth - smooth.mean()) / smooth.std()


def _ellipsoid(offsets: tuple[np.ndarray, ...], radii: tuple[float, ...]) -> np.ndarray:
    scaled = [offset / radius for offset, radius in zip(offsets, radii, strict=True)]
    return np.linalg.norm(scaled, axis=0) < 1


def _nearest(distance: np.ndarray, allowed: np.ndarray, fraction: float) -> np.ndarray:
    """The given fraction of the allowed voxels, nearest first; of these the largest component."""
    components, _ = ndimage.label(allowed & (distance <= np.quantile(distance[allowed], fraction)))
    return components == np.bincount(components.ravel())[1:].argmax() + 1
