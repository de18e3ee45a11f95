import gzip
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.nifti import (
    Geometry,
    listed_labels,
    read_volume,
    relabel,
    take_channel,
    unknown_labels,
)
from nnunet_autosam2.errors import DatasetError

GRID = Geometry((4, 5, 6), (1.0, 1.0, 2.0), (0.0, -239.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def save(file: Path, voxels: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), file)
    return file


def test_voxels_and_grid_in_the_order_x_y_z(tmp_path: Path):
    written = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    geometry, voxels = read_volume(save(tmp_path / "a.nii.gz", written))
    np.testing.assert_array_equal(voxels, written)
    assert geometry.shape == (4, 5, 6)
    assert geometry.spacing == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, ending: str):
    file = save(tmp_path / f"cut{ending}", np.random.default_rng(0).integers(0, 999, (20, 20, 20), np.int16))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DatasetError, match=rf"cut{ending} cannot be read") as caught:
        read_volume(file)
    assert "\n" not in str(caught.value)


def test_what_is_no_nifti_is_refused(tmp_path: Path):
    file = tmp_path / "text.nii.gz"
    file.write_bytes(gzip.compress(b"not an image"))
    with pytest.raises(DatasetError, match=r"text\.nii\.gz cannot be read"):
        read_volume(file)


def test_simpleitk_reads_one_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reading, most = 0, 0

    class Counting(sitk.ImageFileReader):
        def ReadImageInformation(self):
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            time.sleep(0.01)
            super().ReadImageInformation()
            reading -= 1

    monkeypatch.setattr(sitk, "ImageFileReader", Counting)
    file = save(tmp_path / "image.nii.gz", np.ones((3, 3, 3), np.int16))
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(read_volume, [file] * 16))) == 16
    assert most == 1


def test_four_dimensions_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"not a 3D image: its shape is \(3, 3, 3, 2\)"):
        read_volume(save(tmp_path / "4d.nii.gz", np.zeros((3, 3, 3, 2), np.int16)))


@pytest.mark.parametrize("side", [0, -3])
def test_a_side_without_voxels_is_refused(tmp_path: Path, side: int):
    file = save(tmp_path / "side.nii", np.zeros((3, 4, 5), np.int16))
    content = bytearray(file.read_bytes())
    content[44:46] = side.to_bytes(2, "little", signed=True)
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"side\.nii (has no voxels: its shape is|cannot be read)"):
        read_volume(file)


def test_stacked_volumes_have_the_grid_of_their_first_three_axes(tmp_path: Path):
    written = np.arange(4 * 5 * 6 * 2, dtype=np.int16).reshape(4, 5, 6, 2)
    geometry, voxels = read_volume(save(tmp_path / "4d.nii.gz", written), dimensions=4)
    np.testing.assert_array_equal(voxels, written)
    assert geometry == read_volume(save(tmp_path / "3d.nii.gz", written[..., 0]))[0]
    with pytest.raises(DatasetError, match=r"not a 4D image: its shape is \(4, 5, 6\)"):
        read_volume(tmp_path / "3d.nii.gz", dimensions=4)


def test_colours_are_refused(tmp_path: Path):
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DatasetError, match=r"colours\.nii\.gz does not hold numbers"):
        read_volume(save(tmp_path / "colours.nii.gz", colours))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(1000, 1000, 1000), (32767, 32767, 32767)])
def test_a_header_that_claims_too_much_takes_no_memory(tmp_path: Path, shape: tuple[int, int, int], ending: str):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(4 + 2**20)
    file = tmp_path / f"huge{ending}"
    file.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    tracemalloc.start()
    with pytest.raises(DatasetError, match=rf"huge{ending} is cut off or damaged: its shape \({shape[0]}, "):
        read_volume(file)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_differences_name_each_field_that_differs():
    assert GRID.differences(GRID) == []
    assert GRID._replace(origin=(1e-6, -239.0001, 0.0)).differences(GRID) == []
    other = GRID._replace(shape=(4, 5, 7), origin=(0.0, 0.0, 0.0))
    assert [text.split()[0] for text in other.differences(GRID)] == ["shape", "origin"]


def test_unknown_labels():
    assert unknown_labels(np.array([0, 1, 4, 2, 4], np.uint8), (0, 1, 2, 4)) == []
    assert unknown_labels(np.array([0, 7, 3, 7], np.uint8), (0, 1, 2, 4)) == [3, 7]
    assert unknown_labels(np.array([0.0, 1.0, 1.5]), (0, 1, 2, 4)) == [1.5]


def test_a_channel_keeps_type_and_place(tmp_path: Path):
    file = save(tmp_path / "4d.nii.gz", np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32))
    take_channel(file, 1, tmp_path / "3d.nii.gz")
    before, after = nibabel.load(file), nibabel.load(tmp_path / "3d.nii.gz")
    np.testing.assert_array_equal(after.dataobj, before.dataobj[..., 1])
    assert after.get_data_dtype() == np.float32
    np.testing.assert_array_equal(after.affine, before.affine)


def test_labels_are_replaced_at_once(tmp_path: Path):
    """Also where the file scales its numbers."""
    file = save(tmp_path / "a.nii", np.array([0, 2, 4], np.uint8).reshape(3, 1, 1))
    content = bytearray(file.read_bytes())
    content[112:120] = np.array([0.5, 0], "<f4").tobytes()  # slope and intercept
    file.write_bytes(content)
    relabel(file, tmp_path / "b.nii.gz", {0: 0, 1: 2, 2: 1})
    assert np.asanyarray(nibabel.load(tmp_path / "b.nii.gz").dataobj).ravel().tolist() == [0, 2, 1]


def test_a_failed_checksum_is_called_so(tmp_path: Path):
    """In a file of one block and in one that is far longer than what a reader of the header sees."""
    for number, side in enumerate((4, 60)):
        voxels = np.random.default_rng(0).integers(0, 999, (side,) * 3, np.int16)
        whole = save(tmp_path / f"{number}.nii.gz", voxels).read_bytes()
        for position in (-8, -4):
            content = bytearray(whole)
            content[position] ^= 1
            file = tmp_path / f"{number}.nii.gz"
            file.write_bytes(content)
            with pytest.raises(DatasetError, match=r"the checksum of its compression is wrong, so that it is damaged"):
                read_volume(file)
    file.write_bytes(whole + b"what a tape adds")
    np.testing.assert_array_equal(read_volume(file)[1], voxels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_of_labels_is_rounded_and_nothing_else(tmp_path: Path, dtype: type[np.floating]):
    voxels = np.array([0, 1.0000001, 2.0000002, 3.9999998, -1e-7, 2, 4, 0], dtype).reshape(2, 2, 2)
    file = save(tmp_path / "labels.nii.gz", voxels)
    assert unknown_labels(read_volume(file)[1], (0, 1, 2, 4)) == []
    relabel(file, tmp_path / "after.nii.gz", {0: 0, 1: 2, 2: 1, 4: 3})
    after = nibabel.load(tmp_path / "after.nii.gz")
    assert after.get_data_dtype() == dtype
    np.testing.assert_array_equal(after.dataobj, np.array([0, 2, 1, 3, 0, 1, 3, 0]).reshape(2, 2, 2))
    odd = np.array([0.5, 2.002, 3, 1e9, np.nan, np.inf, 0, 1], dtype)
    assert listed_labels(unknown_labels(odd, (0, 1))) == "0.5, 2.002, 3, 1000000000, inf and 1 more"


def test_a_file_of_another_format_brings_no_dump(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for name, content in (
        ("a.nii", b"\x89HDF\r\n\x1a\n" + bytes(3000)),
        ("b.nii.gz", b"\x89HDF\r\n\x1a\n" + bytes(3000)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match="cannot be read as NIfTI"):
            read_volume(tmp_path / name)
    assert capfd.readouterr().err == ""
