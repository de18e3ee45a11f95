import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.errors import ConfigurationError, DatasetError

BRATS_TO_NNUNET = np.array([0, 2, 1, 255, 3])


def voxels(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(file).dataobj)


def overwrite(file: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, nibabel.load(file).affine if affine is None else affine), file)


def unzip(file: Path) -> None:
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    file.unlink()


def test_images_are_copied_and_labels_renumbered(source: Path, tmp_path: Path):
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw")

    assert dataset.folder == tmp_path / "raw" / "Dataset005_Phantom"
    assert dataset.training_cases == ["phantom_001", "phantom_002"]
    assert len(list(dataset.folder.glob("imagesTr/*"))) == 8
    for case in dataset.training_cases:
        for channel, modality in enumerate(("t1", "t1ce", "t2", "flair")):
            copy = dataset.folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
            assert copy.read_bytes() == (source / case / f"{case}_{modality}.nii.gz").read_bytes()
        labels = voxels(source / case / f"{case}_seg.nii.gz")
        converted = voxels(dataset.folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(converted, BRATS_TO_NNUNET[labels])
    assert list((tmp_path / "raw").iterdir()) == [dataset.folder]


def test_a_subset_of_modalities_keeps_the_order_of_nnunet(source: Path, tmp_path: Path):
    for file in source.glob("*/*_t2.nii.gz"):
        file.unlink()
    dataset = convert_brats(source, 5, "Phantom", ["flair", "t1ce"], tmp_path / "raw")
    assert dataset.channels == ["T1ce", "Flair"]
    first = dataset.folder / "imagesTr" / "phantom_001_0000.nii.gz"
    assert first.read_bytes() == (source / "phantom_001" / "phantom_001_t1ce.nii.gz").read_bytes()
    assert not list(dataset.folder.glob("imagesTr/*_0002.nii.gz"))


def test_uncompressed_files_are_compressed_bit_by_bit(source: Path, tmp_path: Path):
    for file in list((source / "phantom_001").iterdir()):
        unzip(file)
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
    copy = dataset.folder / "imagesTr" / "phantom_001_0003.nii.gz"
    assert gzip.decompress(copy.read_bytes()) == (source / "phantom_001" / "phantom_001_flair.nii").read_bytes()
    labels = voxels(source / "phantom_001" / "phantom_001_seg.nii")
    converted = voxels(dataset.folder / "labelsTr" / "phantom_001.nii.gz")
    np.testing.assert_array_equal(converted, BRATS_TO_NNUNET[labels])


def test_cases_without_segmentation_are_test_cases(source: Path, tmp_path: Path):
    (source / "phantom_002" / "phantom_002_seg.nii.gz").unlink()
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
    assert (dataset.training_cases, dataset.test_cases) == (["phantom_001"], ["phantom_002"])
    assert {file.name[:11] for file in dataset.folder.glob("imagesTs/*")} == {"phantom_002"}
    assert [file.name for file in dataset.folder.glob("labelsTr/*")] == ["phantom_001.nii.gz"]
    assert json.loads((dataset.folder / "dataset.json").read_text())["numTraining"] == 1


def test_a_test_set_has_no_training_folders(source: Path, tmp_path: Path):
    for file in source.glob("*/*_seg.nii.gz"):
        file.unlink()
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
    assert sorted(path.name for path in dataset.folder.iterdir()) == ["dataset.json", "imagesTs"]
    assert len(list(dataset.folder.glob("imagesTs/*"))) == 8


def test_a_case_folder_is_no_data_set(source: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="phantom_001 holds no case: expected <case>/<case>_"):
        convert_brats(source / "phantom_001", 5, "Phantom", output=tmp_path / "raw")
    with pytest.raises(DatasetError, match="holds no case in the layout of BraTS 2023 GLI"):
        convert_brats(source, 5, "Phantom", output=tmp_path / "raw", release="2023-gli")
    assert not (tmp_path / "raw").exists()


def test_every_release_converts_and_nnunet_accepts_it(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    given = published.release if published.release == "2023-ped" else None
    dataset = convert_brats(published.folder, 5, "Release", release=given)
    assert dataset.release.name == published.release
    assert (dataset.training_cases, dataset.test_cases) == (published.training, [published.test])
    assert dataset.channels == (["T1ce"] if published.release == "2024-men-rt" else ["T1", "T1ce", "T2", "Flair"])
    assert len(list(dataset.folder.glob("imagesTr/*"))) == 2 * len(dataset.channels)
    # each layout and set of regions
    if published.folder.name in ("BraTS2018", "GLI2024", "PED2024", "MENRT2024", "Decathlon"):
        verify_dataset_integrity(str(dataset.folder), num_processes=1)
    description = json.loads((dataset.folder / "dataset.json").read_text())
    assert description["brats_release"] == published.release
    manager = LabelManager(description["labels"], description["regions_class_order"])
    for file in dataset.folder.glob("labelsTr/*"):
        labels = voxels(file)
        channels = manager.foreground_regions if manager.has_regions else manager.all_labels
        probabilities = np.stack([np.isin(labels, channel) for channel in channels]).astype(np.float32)
        decoded = manager.convert_probabilities_to_segmentation(probabilities)
        np.testing.assert_array_equal(decoded, labels)
        assert set(np.unique(labels)) == {0, *range(1, len(description["labels"]))}


def test_channels_of_the_decathlon_are_taken_apart(publish: Callable[[str], Path], tmp_path: Path):
    folder = publish("Decathlon")
    dataset = convert_brats(folder, 5, "Decathlon", ["flair", "t1gd"], tmp_path / "raw")
    assert dataset.channels == ["T1ce", "Flair"]
    stacked = nibabel.load(folder / "imagesTr" / "BRATS_001.nii.gz")
    for channel, index in enumerate((2, 0)):
        image = nibabel.load(dataset.folder / "imagesTr" / f"BRATS_001_{channel:04d}.nii.gz")
        np.testing.assert_array_equal(image.dataobj, stacked.dataobj[..., index])
        assert image.get_data_dtype() == stacked.get_data_dtype()
        np.testing.assert_array_equal(image.affine, stacked.affine)


def test_links_where_files_can_be_used_as_they_are(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    unzip(source / "phantom_001" / "phantom_001_t1.nii.gz")
    monkeypatch.chdir(tmp_path)
    folder = convert_brats(Path("brats"), 5, "Phantom", output=Path("raw"), link=True).folder.absolute()
    monkeypatch.chdir("/")
    assert not (folder / "imagesTr" / "phantom_001_0000.nii.gz").is_symlink()
    assert not [file for file in folder.glob("labelsTr/*") if file.is_symlink()]
    links = [file for file in folder.glob("imagesTr/*") if file.is_symlink()]
    assert len(links) == 7
    t2 = folder / "imagesTr" / "phantom_002_0002.nii.gz"
    assert t2.resolve() == source / "phantom_002" / "phantom_002_t2.nii.gz"


def test_goes_on_after_the_disk_was_full(source: Path, tmp_path: Path):
    """The limit on file sizes is the operating system's, and lets the smaller case through."""
    noise = np.random.default_rng(0).integers(1, 2**15, (60, 60, 60), np.int16)
    for modality in ("t1", "t1ce", "t2", "flair", "seg"):
        overwrite(source / "phantom_002" / f"phantom_002_{modality}.nii.gz", noise * (modality != "seg"))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, usual[1]))
    try:
        with pytest.raises(DatasetError, match=r"cannot be written: .*The same command goes on"):
            convert_brats(source, 5, "Phantom", output=tmp_path / "raw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    (unfinished,) = (tmp_path / "raw").iterdir()
    written = {file.name: file.stat().st_mtime_ns for file in unfinished.rglob("*phantom_001*.nii.gz")}
    assert len(written) == 5

    dataset = convert_brats(source, 5, "Phantom", output=tmp_path / "raw")

    assert list((tmp_path / "raw").iterdir()) == [dataset.folder]
    assert {file.name: file.stat().st_mtime_ns for file in dataset.folder.rglob("*phantom_001*.nii.gz")} == written
    for file in ("imagesTr/phantom_002_0001.nii.gz", "labelsTr/phantom_002.nii.gz"):
        assert voxels(dataset.folder / file).shape == (60, 60, 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "Phantom"), "ID 0"),
        ((1000, "Phantom"), "ID 1000"),
        ((5, "Phan/tom"), "name 'Phan/tom'"),
        ((5, "Phantom", ["t1", "dwi"]), "Modality 'dwi'"),
        ((5, "Phantom", [""]), "Modality ''"),
    ],
)
def test_impossible_arguments_are_refused(source: Path, tmp_path: Path, arguments: tuple, message: str):
    with pytest.raises(ConfigurationError, match=message):
        convert_brats(source, *arguments, output=tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("variable", ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"])
def test_an_id_that_nnunet_knows_under_another_name_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / variable / "Dataset005_Other").mkdir(parents=True)
    with pytest.raises(DatasetError, match="ID 5 belongs to Dataset005_Other already"):
        convert_brats(source, 5, "Phantom")
    assert not list((tmp_path / "nnUNet_raw").glob("*Phantom*"))


def test_an_existing_dataset_is_left_alone(source: Path, tmp_path: Path):
    folder = convert_brats(source, 5, "Phantom", output=tmp_path).folder
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with pytest.raises(DatasetError, match="Dataset005_Phantom exists"):
        convert_brats(source, 5, "Phantom", output=tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_without_a_place_to_write_to(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(ConfigurationError, match="nnUNet_raw is not set"):
        convert_brats(source, 5, "Phantom")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "modalities", "channels", "cases", "labels"),
    [
        ("brats2013", ["t1ce", "flair"], ["T1ce", "Flair"], 4, {0, 1, 2, 3}),
        ("tcga_lgg", None, ["T1", "T1ce", "T2", "Flair"], 1, {0, 1, 2}),
    ],
)
def test_real_cases(
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    modalities: list[str] | None,
    channels: list[str],
    cases: int,
    labels: set[int],
):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    dataset = convert_brats(real_data / folder, 7, "Real", modalities)
    assert dataset.channels == channels
    assert len(dataset.training_cases) == cases
    for case in dataset.training_cases:
        assert set(np.unique(voxels(dataset.folder / "labelsTr" / f"{case}.nii.gz"))) == labels
    verify_dataset_integrity(str(dataset.folder), num_processes=1)
