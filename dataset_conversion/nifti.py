"""Reads a NIfTI file in full and says what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage

from nnunet_autosam2.errors import DatasetError


class Geometry(NamedTuple):
    """Voxel grid as nnU-Net's reader sees it, axes x, y, z, in mm."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differences(self, other: Geometry) -> list[str]:
        """`["spacing (1.0, 1.0, 1.0) and not (1.0, 1.0, 2.0)"]`, empty on the same grid."""
        return [
            f"{field} {mine} and not {theirs}"
            for field, mine, theirs in zip(self._fields, self, other, strict=True)
            if len(mine) != len(theirs) or not np.allclose(mine, theirs, atol=1e-5)
        ]


def read_volume(file: Path) -> tuple[Geometry, np.ndarray]:
    """Grid and voxels `[X, Y, Z]` of a 3D image.

    Raises:
        DatasetError: the file is no NIfTI image, is cut off or damaged, or is not 3D.
    """
    try:
        header = sitk.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        # nibabel, because SimpleITK fills up the end of a truncated file and says nothing.
        voxels = np.asanyarray(cast(SpatialImage, nibabel.load(file)).dataobj)
    except Exception as error:  # every reader and decompressor has its own family of exceptions
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise DatasetError(f"{file} cannot be read as NIfTI: {reason[0]}") from error
    if voxels.ndim != 3:
        raise DatasetError(f"{file} is not a 3D image: its shape is {voxels.shape}.")
    return Geometry(header.GetSize(), header.GetSpacing(), header.GetOrigin(), header.GetDirection()), voxels


def unknown_labels(voxels: np.ndarray, labels: tuple[int, ...]) -> list[float]:
    """Values that are not among `labels`, sorted."""
    return [value.item() for value in np.setdiff1d(voxels, labels)]
