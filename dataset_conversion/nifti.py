"""Reads a NIfTI file in full and says what is wrong with it; writes labels and channels, all else as it was."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple, cast

import nibabel
import numpy as np
import SimpleITK as sitk
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder

from nnunet_autosam2.errors import DatasetError, listed
from nnunet_autosam2.support.access import require_file

LARGE = 2**28
"""Bytes. What claims to be larger is measured before memory is taken for it."""
LABEL_NOISE = 1e-3
"""Difference from a whole number that scaling and arithmetic in single precision may leave"""

AFTER_THE_END = "Not a gzipped file"
"""Part of what is said where something else comes after a compressed file"""

_one_reader = Lock()  # SimpleITK asks HDF5 about every file, which is not safe in threads (its issue 74)


class Geometry(NamedTuple):
    """Voxel grid as nnU-Net's reader sees it, axes x, y, z, in mm."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def differences(self, other: Geometry) -> list[str]:
        """`["spacing (1.0, 1.0, 1.0) and not (1.0, 1.0, 2.0)"]`, empty on the same grid.

        A fraction of 1e-5 is allowed, which is nnU-Net's tolerance, and 1e-3 mm or rad for origin and direction.
        """
        return [
            f"{field} {mine} and not {theirs}"
            for field, mine, theirs in zip(self._fields, self, other, strict=True)
            if len(mine) != len(theirs)
            or not np.allclose(mine, theirs, rtol=1e-5, atol=1e-3 if field in ("origin", "direction") else 0)
        ]


def read_volume(file: Path, dimensions: int = 3) -> tuple[Geometry, np.ndarray]:
    """Grid and voxels `[X, Y, Z]` of a 3D image, or `[X, Y, Z, C]` of a 4D one.

    Raises:
        DatasetError: the file is no NIfTI image, is cut off or damaged, or has other dimensions.
    """
    require_file(file)
    try:
        # nibabel, because SimpleITK fills up the end of a truncated file and says nothing.
        image = cast(nibabel.Nifti1Image, nibabel.load(file))
        if len(image.shape) != dimensions:
            raise DatasetError(f"{file} is not a {dimensions}D image: its shape is {image.shape}.")
        if min(image.shape) < 1:
            raise DatasetError(f"{file} has no voxels: its shape is {image.shape}.")
        if image.get_data_dtype().kind not in "iuf":
            raise DatasetError(f"{file} does not hold numbers: its data type is {image.get_data_dtype()}.")
        _require_complete(file, image)
        voxels = _read_voxels(file, image)
        with _one_reader:
            header = sitk.ImageFileReader()
            header.SetImageIO("NiftiImageIO")  # otherwise other formats are tried, and HDF5 comments on each file
            header.SetFileName(str(file))
            header.ReadImageInformation()
    except DatasetError:
        raise
    except Exception as error:  # every reader and decompressor has its own family of exceptions
        raise DatasetError(f"{file} cannot be read as NIfTI: {_reason(file, error)}") from error
    direction = np.reshape(header.GetDirection(), (dimensions, dimensions))[:3, :3]
    grid = Geometry(
        header.GetSize()[:3], header.GetSpacing()[:3], header.GetOrigin()[:3], tuple(direction.ravel().tolist())
    )
    return grid, voxels


def _read_voxels(file: Path, image: nibabel.Nifti1Image) -> np.ndarray:
    """Read to the end of a compressed file, where its checksum is."""
    if file.suffix != ".gz":
        return np.asanyarray(image.dataobj)
    try:
        return _decompressed(igzip.open(file), image)
    except gzip.BadGzipFile as error:
        if AFTER_THE_END not in str(error):
            raise
        return _decompressed(gzip.open(file), image)  # which does not read on behind the voxels


def _decompressed(stream: gzip.GzipFile, image: nibabel.Nifti1Image) -> np.ndarray:
    with stream:
        voxels = np.asanyarray(type(image).from_file_map({"image": FileHolder(fileobj=stream)}).dataobj)
        if fault := _fault_of_end(stream):
            raise fault
    return voxels


def _fault_of_end(stream: gzip.GzipFile) -> Exception | None:
    """Fault of the rest of a file, if any. After a whole file there may be anything, as a tape adds it."""
    rest = LARGE
    try:
        while rest > 0 and (piece := stream.read(2**20)):
            rest -= len(piece)
    except (OSError, EOFError, zlib.error, igzip_lib.IsalError) as error:  # type: ignore[misc]  # its stub is wrong
        return None if AFTER_THE_END in str(error) else error
    return None


def _reason(file: Path, error: Exception) -> str:
    if isinstance(error, ImageFileError) and file.suffix == ".gz":  # of a small file, all that nibabel says
        with igzip.open(file) as stream:
            error = _fault_of_end(stream) or error
    if isinstance(error, gzip.BadGzipFile) and ("CRC" in str(error) or "length" in str(error)):
        return "the checksum of its compression is wrong, so that it is damaged. Copy or download it again."
    return (str(error).strip().splitlines()[-1:] or [type(error).__name__])[0]


def _require_complete(file: Path, image: nibabel.Nifti1Image) -> None:
    claimed = image.header.get_data_offset() + int(np.prod(image.shape, dtype=object)) * image.get_data_dtype().itemsize
    if claimed <= LARGE:
        return
    if file.suffix == ".gz":
        with igzip.open(file) as stream:
            stream.seek(claimed - 1)  # decompresses piece by piece
            is_whole = stream.read(1) != b""
    else:
        is_whole = file.stat().st_size >= claimed
    if not is_whole:
        raise DatasetError(
            f"{file} is cut off or damaged: its shape {image.shape} needs {claimed} bytes, and it has fewer."
        )


def whole_labels(voxels: np.ndarray) -> np.ndarray:
    """Labels as they were meant: floating-point numbers that differ from a whole one by noise are that one."""
    if voxels.dtype.kind != "f":
        return voxels
    whole = np.rint(voxels)
    with np.errstate(invalid="ignore"):  # infinite ones stay
        return np.where(np.abs(voxels - whole) < LABEL_NOISE, whole, voxels)


def unknown_labels(voxels: np.ndarray, labels: tuple[int, ...]) -> list[float]:
    """Values that are not among `labels`, sorted."""
    return np.sort(list(occurring_labels(voxels).difference(labels))).tolist()  # with one that is not a number last


def occurring_labels(voxels: np.ndarray) -> set[float]:
    """Labels that occur, as they were meant."""
    if not _is_small_integer(voxels):
        return set(np.unique(whole_labels(voxels)).tolist())
    seen = np.zeros(2 ** (8 * voxels.itemsize), bool)
    seen[_unsigned(voxels)] = True
    return set(np.flatnonzero(seen).astype(f"u{voxels.itemsize}").view(voxels.dtype.newbyteorder("=")).tolist())


def _is_small_integer(voxels: np.ndarray) -> bool:
    """Is a table of all values small? Looking up is several times as fast as sorting and comparing."""
    return voxels.dtype.kind in "iu" and voxels.itemsize <= 2


def _unsigned(voxels: np.ndarray) -> np.ndarray:
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False).view(f"u{voxels.itemsize}")


def fault_of_labels(file: Path, labels: tuple[int, ...], those_of: str) -> str | None:
    """Problem with a segmentation, which has to be readable and to have these labels alone; None: there is none.

    Args:
        those_of: who has these labels, with a verb.
    """
    try:
        _, voxels = read_volume(file)
    except DatasetError as error:
        return str(error)
    if unknown := unknown_labels(voxels, labels):
        return (
            f"{file} has the labels {listed_labels(unknown)}: {those_of} {', '.join(map(str, sorted(labels)))} alone."
        )
    return None


def listed_labels(labels: Iterable[float]) -> str:
    """List the first of them as they are in a file: 2.5, or 3 for 3.0."""
    return listed([f"{label:.0f}" if float(label).is_integer() else f"{label:.7g}" for label in labels])


def relabel(file: Path, target: Path, labels: Mapping[int, int]) -> None:
    """Writes the segmentation `file` with each label replaced by `labels[label]`."""
    image = cast(nibabel.Nifti1Image, nibabel.load(file))
    voxels = np.asanyarray(image.dataobj)
    if _is_small_integer(voxels):
        table = np.zeros(2 ** (8 * voxels.itemsize), voxels.dtype)
        for before, after in labels.items():
            table[before] = after
        changed = table[_unsigned(voxels)]
    else:
        found, changed = whole_labels(voxels), np.zeros_like(voxels, subok=False)
        for before, after in labels.items():
            changed[found == before] = after
    save_like(image, changed, target)


def take_channel(file: Path, channel: int, target: Path) -> None:
    """Writes one volume of a 4D image as a 3D image."""
    image = cast(nibabel.Nifti1Image, nibabel.load(file))
    save_like(image, np.asanyarray(image.dataobj[..., channel]), target)


def save_like(image: nibabel.Nifti1Image, voxels: np.ndarray, target: Path) -> None:
    """Writes voxels with the header of another image, but for their type."""
    header = image.header.copy()
    header.set_data_dtype(voxels.dtype)
    nibabel.save(type(image)(voxels, image.affine, header), target)
