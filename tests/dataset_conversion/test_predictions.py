import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.predictions import predictions_to_brats, recorded_release
from nnunet_autosam2.errors import ConfigurationError, DatasetError


def content(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def test_labels_of_every_release_come_back_bit_by_bit(published: Any, tmp_path: Path):
    dataset = convert_brats(published.folder, 5, "RoundTrip", output=tmp_path / "raw", release=published.release)
    converted = predictions_to_brats(dataset.folder / "labelsTr", tmp_path / "back")
    assert (converted.number, converted.release.name) == (2, published.release)
    for case, original in published.segmentations.items():
        assert content(tmp_path / "back" / f"{case}.nii.gz") == content(original)
    written = json.loads((tmp_path / "back" / "dataset.json").read_text())
    in_nnunet = json.loads((dataset.folder / "dataset.json").read_text())
    manager = LabelManager(written["labels"], written["regions_class_order"])  # nnU-Net takes it
    assert manager.has_regions == (published.release != "2024-men-rt")
    assert written["labels"].keys() == in_nnunet["labels"].keys()
    for case, original in published.segmentations.items():
        before, after = (
            nibabel.load(file).get_fdata() for file in (dataset.folder / "labelsTr" / f"{case}.nii.gz", original)
        )
        for region, labels in written["labels"].items():
            np.testing.assert_array_equal(np.isin(before, in_nnunet["labels"][region]), np.isin(after, labels))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, ">u2"])
def test_headers_and_data_types_of_any_tool_come_back(source: Path, tmp_path: Path, dtype: Any):
    for original in source.glob("*/*_seg.nii.gz"):
        image = nibabel.load(original)
        header = nibabel.Nifti1Header(endianness=">" if dtype == ">u2" else "<")
        header["descrip"] = b"drawn by hand"
        header.set_data_dtype(dtype)
        changed = nibabel.Nifti1Image(np.asanyarray(image.dataobj).astype(dtype), image.affine, header)
        changed.set_qform(image.affine, code=2)
        nibabel.save(changed, original)
    dataset = convert_brats(source, 5, "RoundTrip", output=tmp_path / "raw")
    predictions_to_brats(dataset.folder / "labelsTr", tmp_path / "back")
    for case in dataset.training_cases:
        assert content(tmp_path / "back" / f"{case}.nii.gz") == content(source / case / f"{case}_seg.nii.gz")


@pytest.mark.real_data
@pytest.mark.parametrize(("folder", "modalities"), [("brats2013", ["t1ce", "flair"]), ("tcga_lgg", None)])
def test_round_trip_of_real_labels(real_data: Path, tmp_path: Path, folder: str, modalities: list[str] | None):
    dataset = convert_brats(real_data / folder, 5, "RoundTrip", modalities, tmp_path / "raw")
    assert predictions_to_brats(dataset.folder / "labelsTr", tmp_path / "back").number == len(dataset.training_cases)
    for case in dataset.training_cases:
        original = real_data / folder / case / f"{case}_seg.nii.gz"
        assert content(tmp_path / "back" / f"{case}.nii.gz") == content(original)


def test_only_segmentations_are_read(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    (labels / "plans.json").write_text("{}")
    (labels / "phantom_001.npz").touch()
    (labels / "._phantom_001.nii.gz").write_bytes(b"resource fork of macOS")
    (labels / "@eaDir").mkdir()
    assert predictions_to_brats(labels, tmp_path / "back").number == 2


def test_unknown_labels_and_damaged_files_are_named_and_nothing_is_written(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    brats = source / "phantom_001" / "phantom_001_seg.nii.gz"
    (labels / "in_brats_labels.nii.gz").write_bytes(brats.read_bytes())
    (labels / "damaged.nii.gz").write_bytes(brats.read_bytes()[:-100])
    with pytest.raises(DatasetError) as caught:
        predictions_to_brats(labels, tmp_path / "back")
    damaged, unknown = str(caught.value).splitlines()
    assert "damaged.nii.gz cannot be read" in damaged
    assert "in_brats_labels.nii.gz has the labels 4:" in unknown
    assert not (tmp_path / "back").exists()


def test_folders_that_do_not_fit_are_refused(source: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        predictions_to_brats(tmp_path / "nowhere", tmp_path / "back")
    with pytest.raises(DatasetError, match=r"holds no \.nii\.gz file"):
        predictions_to_brats(source, tmp_path / "back")
    with pytest.raises(DatasetError, match="is not empty"):
        predictions_to_brats(source / "phantom_001", source, "2018-2021")
    assert not (tmp_path / "back").exists()


def test_the_release_is_that_of_the_nearest_dataset_json(tmp_path: Path):
    validation = tmp_path / "model" / "fold_0" / "validation"
    validation.mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"validation has no dataset.json .* give --release, one of 2018"):
        recorded_release(validation)
    (tmp_path / "model" / "dataset.json").write_text(json.dumps({"brats_release": "2024-ped"}))
    assert recorded_release(validation).name == "2024-ped"
    (validation / "dataset.json").write_text(json.dumps({"brats_release": "2031-xyz"}))
    with pytest.raises(ConfigurationError, match="'2031-xyz' is not possible"):
        recorded_release(validation)
    (validation / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be read"):
        recorded_release(validation)


@pytest.mark.parametrize("release", [None, "2018-2021"])
def test_labels_are_converted_once(source: Path, tmp_path: Path, release: str | None):
    dataset = convert_brats(source, 5, "Phantom", output=tmp_path)
    predictions_to_brats(dataset.folder / "labelsTr", tmp_path / "back")
    with pytest.raises(DatasetError, match=r"back/dataset.json says .* those of 2018-2021 already"):
        predictions_to_brats(tmp_path / "back", tmp_path / "again", release)
    assert not (tmp_path / "again").exists()


def test_a_damaged_dataset_json_does_not_matter_where_the_release_is_given(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    (labels / "dataset.json").write_text("{")
    assert predictions_to_brats(labels, tmp_path / "back", "2018-2021").number == 2


def test_probabilities_in_the_place_of_labels_are_one_short_line(source: Path, tmp_path: Path):
    labels = convert_brats(source, 5, "Phantom", output=tmp_path).folder / "labelsTr"
    probabilities = np.random.default_rng(0).random((90, 90, 90), np.float32)
    nibabel.save(nibabel.Nifti1Image(probabilities, np.eye(4)), labels / "phantom_001.nii.gz")
    with pytest.raises(DatasetError, match=r"has the labels 0\.\d+, .* and \d+ more: a model") as caught:
        predictions_to_brats(labels, tmp_path / "back")
    assert len(str(caught.value)) < 1000
