import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.errors import AutoSAM2Error, ConfigurationError, DatasetError

BRATS_TO_NNUNET = np.array([0, 2, 1, 255, 3])


def voxels(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(file).dataobj)


def overwrite(file: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(values, nibabel.load(file).affine if affine is None else affine), file)


def unzip(file: Path) -> None:
    file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    file.unlink()


def assert_refused(source: Path, output: Path, *expected: str) -> None:
    """One line for each of `expected`, in this order, and nothing written."""
    with pytest.raises(AutoSAM2Error) as caught:
        convert_brats(source, 5, "Phantom", output=output)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected), lines
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert not output.exists()


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


def test_nnunet_accepts_the_dataset_and_its_regions(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = convert_brats(source, 5, "Phantom").folder
    verify_dataset_integrity(str(folder), num_processes=1)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}
    manager = LabelManager(description["labels"], description["regions_class_order"])
    assert manager.has_regions
    assert manager.foreground_regions == [(1, 2, 3), (2, 3), (3,)]


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


def test_cases_one_folder_deeper_are_found(source: Path, tmp_path: Path):
    for number, grade in ((1, "HGG"), (2, "LGG")):
        (source / grade).mkdir()
        (source / f"phantom_{number:03d}").rename(source / grade / f"phantom_{number:03d}")
    assert len(convert_brats(source, 5, "Phantom", output=tmp_path / "raw").training_cases) == 2


def test_missing_modalities_name_cases_and_remedy(source: Path, tmp_path: Path):
    (source / "phantom_001" / "phantom_001_t1.nii.gz").unlink()
    for number in (1, 2):
        (source / f"phantom_{number:03d}" / f"phantom_{number:03d}_t2.nii.gz").unlink()
    assert_refused(
        source,
        tmp_path / "raw",
        "phantom_001: t1, t2 missing; to use what every case has, give --modalities t1ce,flair.",
        "phantom_002: t2 missing",
    )


def test_all_problems_of_the_files_come_at_once(source: Path, tmp_path: Path):
    first, second = source / "phantom_001", source / "phantom_002"
    t1ce = voxels(first / "phantom_001_t1ce.nii.gz")
    overwrite(first / "phantom_001_t1ce.nii.gz", t1ce[:-1])
    overwrite(first / "phantom_001_t2.nii.gz", t1ce, np.diag([-1.0, -1.0, 2.0, 1.0]))
    labels = voxels(first / "phantom_001_seg.nii.gz").copy()
    labels[0, 0, 0] = 3
    overwrite(first / "phantom_001_seg.nii.gz", labels)
    flair = second / "phantom_002_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:-500])
    overwrite(second / "phantom_002_t2.nii.gz", np.where(t1ce == t1ce.max(), np.nan, t1ce).astype(np.float32))
    assert_refused(
        source,
        tmp_path / "raw",
        "phantom_001_t1ce.nii.gz does not fit phantom_001_t1.nii.gz: shape (27, 26, 24) and not (28, 26, 24).",
        "phantom_001_t2.nii.gz does not fit phantom_001_t1.nii.gz: spacing",
        "phantom_001_t2.nii.gz does not fit phantom_001_t1.nii.gz: origin",
        "phantom_001_seg.nii.gz has labels that BraTS 2018-2021 does not know: 3.",
        "phantom_002_t2.nii.gz has voxels that are infinite or not a number.",
        "phantom_002_flair.nii.gz cannot be read",
    )


def test_ambiguous_files_and_cases_are_refused(source: Path, tmp_path: Path):
    case = source / "phantom_001"
    (case / "phantom_001_t1.nii").write_bytes(gzip.decompress((case / "phantom_001_t1.nii.gz").read_bytes()))
    shutil.copytree(source / "phantom_002", source / "HGG" / "phantom_002")
    assert_refused(
        source, tmp_path / "raw", "phantom_001_t1.nii both exist: remove one.", "phantom_002 is there 2 times"
    )


def test_folders_without_cases_are_refused(source: Path, tmp_path: Path):
    assert_refused(source / "nowhere", tmp_path / "raw", "nowhere is not a folder")
    assert_refused(source / "phantom_001", tmp_path / "raw", "phantom_001 holds no case: expected <case>/<case>_{t1,")


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
