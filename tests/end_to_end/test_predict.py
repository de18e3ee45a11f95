"""nnU-Net's commands on a trained model: prediction, evaluation, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytestmark = pytest.mark.end_to_end
ONE_PROCESS = ("-device", "cpu", "-npp", "1", "-nps", "1")


def predict(workspace, images: Path, output: Path, *options: str, afresh: bool = False) -> None:
    workspace.run(
        "nnUNetv2_predict", "-d", "900", "-c", "tiny", "-tr", "nnUNetTrainerAutoSAM2", "-f", "0",
        "-i", images, "-o", output, *ONE_PROCESS, *options, afresh=afresh,
    )  # fmt: skip


def segmentations(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.fixture(scope="module")
def prediction(planned, trained: Path, images: Path) -> Path:
    folder = planned.root / "prediction"
    predict(planned, images, folder, "--save_probabilities")
    return folder


def test_prediction_with_mirroring(prediction: Path, images: Path) -> None:
    predicted = segmentations(prediction)
    assert list(predicted) == ["phantom_001.nii.gz", "phantom_002.nii.gz"]
    for name, labels in predicted.items():
        assert labels.shape == nibabel.load(images / name.replace(".nii", "_0000.nii")).shape
        assert set(np.unique(labels)) <= {0, 1, 2, 3}
        probabilities = np.load(prediction / name.replace(".nii.gz", ".npz"))["probabilities"]
        assert np.isfinite(probabilities).all()
        assert probabilities.shape[0] == 3


def test_the_manifest_of_a_prediction_names_the_weights_of_its_training(
    planned, prediction: Path, trained: Path
) -> None:
    (training,), (run,) = planned.runs(trained / "fold_0"), planned.runs(prediction)
    asked = {"dataset": "Dataset900_Phantom", "trainer": "nnUNetTrainerAutoSAM2", "configuration": "tiny"}
    assert {key: run[key] for key in asked} == asked
    assert (run["task"], run["cases"], run["mirroring"]) == ("prediction", 2, [0, 1, 2])
    assert 0 < run["seconds_in_network"] < run["seconds"]
    assert run["weights_sha256"] == training["weights_sha256"]
    assert run["autosam2"] == training["autosam2"]
    assert run["ended"] >= run["started"] >= training["ended"]


def test_parts_of_a_prediction_are_runs_of_one_manifest(planned, trained: Path, images: Path, tmp_path: Path) -> None:
    predict(planned, images, tmp_path / "two", "--disable_tta", "-num_parts", "2", "-part_id", "0")
    sequential = [option if option.startswith("-") else "0" for option in ("-npp", "1", "-nps", "1")]
    predict(planned, images, tmp_path / "two", "--disable_tta", "-num_parts", "1", "--continue_prediction", *sequential)
    assert [(run["cases"], run["mirroring"]) for run in planned.runs(tmp_path / "two")] == [(1, None), (1, None)]


def test_prediction_without_mirroring_repeats_itself(planned, trained: Path, images: Path, tmp_path: Path) -> None:
    predict(planned, images, tmp_path / "a", "--disable_tta")
    predict(planned, images, tmp_path / "b", "--disable_tta")
    first, second = segmentations(tmp_path / "a"), segmentations(tmp_path / "b")
    assert len(first) == 2
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_evaluation(planned, prediction: Path) -> None:
    labels = planned.root / "raw" / "Dataset900_Phantom" / "labelsTr"
    model = planned.results("nnUNetTrainerAutoSAM2", "tiny")
    truth = planned.root / "truth"
    truth.mkdir()
    for name in segmentations(prediction):
        (truth / name).symlink_to(labels / name)
    planned.run(
        "nnUNetv2_evaluate_folder", truth, prediction,
        "-djfile", model / "dataset.json", "-pfile", model / "plans.json", "-np", "1",
    )  # fmt: skip
    summary = json.loads((prediction / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    assert len(summary["mean"]) == 3


def test_exported_model_predicts_elsewhere_without_weights_of_sam2(
    planned, prediction: Path, images: Path, tmp_path: Path
) -> None:
    """Another results folder, no variable of ours, no preprocessed data, no file of SAM2's weights."""
    archive = planned.root / "model.zip"
    planned.run(
        "nnUNetv2_export_model_to_zip", "-d", "900", "-o", archive, "-c", "tiny",
        "-tr", "nnUNetTrainerAutoSAM2", "-f", "0",
    )  # fmt: skip
    elsewhere = replace(planned, root=tmp_path / "elsewhere", environment={})
    elsewhere.root.mkdir()
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    predict(elsewhere, images, elsewhere.root / "prediction", "-npp", "0", "-nps", "0", afresh=True)
    here, there = segmentations(prediction), segmentations(elsewhere.root / "prediction")
    assert list(there) == list(here)
    for name in here:
        np.testing.assert_array_equal(there[name], here[name])


def test_predictions_go_back_to_brats_labels(planned, prediction: Path) -> None:
    planned.run("autosam2", "predictions-to-brats", prediction, "brats")
    for name, labels in segmentations(planned.root / "brats").items():
        assert set(np.unique(labels)) <= {0, 1, 2, 4}, name
