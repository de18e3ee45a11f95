import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from nnunet_autosam2.dataset_conversion.predictions import predictions_to_brats
from nnunet_autosam2.evaluation.pairs import find_pairs
from nnunet_autosam2.evaluation.scoring import evaluate
from nnunet_autosam2.support.staging import staged_folder
from tests.fork_server import run

CASES = [f"phantom_{number:03d}" for number in range(1, 5)]


def start(*arguments: Path | str) -> subprocess.Popen[str]:
    script = shutil.which("autosam2", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert script is not None, "autosam2 is not installed"
    command = [sys.executable, script, "evaluate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def score(*arguments: Path | str, afresh: bool = False, **folders: Path) -> subprocess.CompletedProcess[str]:
    """`autosam2 evaluate` with some of nnU-Net's folders."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    variables = {**inherited, **{name: str(folder) for name, folder in folders.items()}}
    return run("autosam2", "evaluate", *arguments, variables=variables, afresh=afresh)


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line and not line.startswith("check:")]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """nnU-Net's folders after two folds, in which the truth moved by a voxel is what the network predicted."""
    write_phantom(tmp_path / "brats", num_cases=4, size=(24, 26, 28), seed=1)
    dataset = convert_brats(tmp_path / "brats", 5, "Phantom", ["t1"], tmp_path / "raw").folder
    preprocessed = tmp_path / "preprocessed" / dataset.name
    shutil.copytree(dataset / "labelsTr", preprocessed / "gt_segmentations")
    splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    model = tmp_path / "results" / dataset.name / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    for fold, split in enumerate(splits):
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        (validation / "summary.json").write_text("{}")
        for case in split["val"]:
            truth = sitk.ReadImage(dataset / "labelsTr" / f"{case}.nii.gz")
            moved = sitk.GetImageFromArray(np.roll(sitk.GetArrayFromImage(truth), 1, axis=2))
            moved.CopyInformation(truth)
            sitk.WriteImage(moved, validation / f"{case}.nii.gz")
    shutil.copy(dataset / "dataset.json", model)
    (model / "plans.json").write_text(json.dumps({"dataset_name": dataset.name}))
    return tmp_path


def model_of(training: Path) -> Path:
    return training / "results" / "Dataset005_Phantom" / "nnUNetTrainer__nnUNetPlans__3d_fullres"


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_all_folds_of_a_training(training: Path):
    model = model_of(training)
    result = score(model, "-np", "2", afresh=True, nnUNet_preprocessed=training / "preprocessed")
    assert result.returncode == 0, result.stderr
    assert "Mean ± sd of 4 cases of fold 0, 1, by brats-evaluation" in result.stdout
    assert "A region that neither truth nor prediction has is not scored." in result.stdout
    assert "evaluate: 100%" in result.stderr
    scores = json.loads((model / "evaluation" / "scores.json").read_text())
    assert (scores["folds"], list(scores["cases"])) == (["0", "1"], CASES)
    dice = [scores["cases"][case]["WT"]["Dice"] for case in CASES]
    assert all(0.5 < value < 1 for value in dice)
    shown = next(line for line in result.stdout.splitlines() if line.startswith("Dice"))
    assert f"{np.mean(dice):.4f} ± {np.std(dice, ddof=1):.4f}" in shown
    with (model / "evaluation" / "scores.csv").open(newline="") as file:
        assert [float(row["Dice"]) for row in csv.DictReader(file) if row["region"] == "WT"] == dice


def test_files_in_the_numbers_of_brats(training: Path):
    """The truth as BraTS has it and the predictions converted back score the same."""
    validation = model_of(training) / "fold_1" / "validation"
    truth, predictions = training / "truth", training / "predictions"
    truth.mkdir()
    for case in CASES[2:]:
        shutil.copy(training / "brats" / case / f"{case}_seg.nii.gz", truth / f"{case}.nii.gz")
    predictions_to_brats(validation, predictions)
    in_nnunet = evaluate(find_pairs(validation, training / "raw" / "Dataset005_Phantom" / "labelsTr").pairs)
    dataset_json = predictions / "dataset.json"
    for options, reason in (("--labels", "brats2021"), "brats2021, as given"), ((), f"of {dataset_json}"):
        result = score(predictions, truth, *options, "-o", training / f"output_{len(options)}")
        assert result.returncode == 0, result.stderr
        assert f"Labels: WT 1 2 4; TC 1 4; ET 4 ({reason})" in result.stdout.replace("WT 2 1 4", "WT 1 2 4")
        in_brats = json.loads((training / f"output_{len(options)}" / "scores.json").read_text())
        assert in_brats["cases"] == in_nnunet
        assert sorted(in_brats["labels"]["WT"]) == [1, 2, 4]
    dataset_json.unlink()
    (line,) = [line for line in errors(score(predictions, truth)) if not line.startswith("labels:")]
    assert "The labels that occur, 0, 1, 2, 4, fit brats2021 and brats2023 and ped2024" in line


def test_folds_with_a_patient_on_both_sides_are_warned_of(training: Path):
    """The first and the third case are scans of one patient."""
    names = dict(zip(CASES, ("BraTS-MET-1-0", "BraTS-MET-2-0", "BraTS-MET-1-1", "BraTS-MET-3-0"), strict=True))
    for file in files_in(training):
        if (case := file.name.removesuffix(".nii.gz")) in names:
            file.rename(file.with_name(f"{names[case]}.nii.gz"))
    splits = training / "preprocessed" / "Dataset005_Phantom" / "splits_final.json"
    for case, name in names.items():
        splits.write_text(splits.read_text().replace(case, name))
    result = score(model_of(training), "-np", "1", nnUNet_preprocessed=training / "preprocessed")
    assert result.returncode == 0, result.stderr
    expected = [
        f"Fold {fold}: 1 of 2 validation cases are of patients whose other scans it trains on (BraTS-MET-1), so that "
        "its scores are too high."
        for fold in (0, 1)
    ]
    assert [line for line in result.stderr.splitlines() if line.startswith("WARNING")] == [
        f"WARNING: {line}" for line in expected
    ]
    assert json.loads((model_of(training) / "evaluation" / "scores.json").read_text())["warnings"] == expected


def test_problems_are_lines_and_nothing_is_written(training: Path):
    validation = model_of(training) / "fold_0" / "validation"
    truth = training / "raw" / "Dataset005_Phantom" / "labelsTr"
    (validation / "phantom_001.nii.gz").write_text("no image")
    image = sitk.ReadImage(validation / "phantom_002.nii.gz")
    sitk.WriteImage(image[1:] + 1, validation / "phantom_002.nii.gz")
    before = files_in(training)
    damaged, unknown, shape = errors(score(validation, nnUNet_raw=training / "raw"))
    assert damaged.startswith(f"Error: {validation / 'phantom_001.nii.gz'} cannot be read as NIfTI")
    assert unknown.startswith(f"{validation / 'phantom_002.nii.gz'} has the labels 4: expected 0, 1, 2, 3.")
    assert shape.startswith(f"{validation / 'phantom_002.nii.gz'} is not on the grid of {truth / 'phantom_002.nii.gz'}")
    assert files_in(training) == before


def test_output_with_files_in_it_is_left_alone(training: Path):
    folder = model_of(training) / "fold_0" / "validation" / "evaluation"
    folder.mkdir()
    (folder / "mine.txt").touch()
    (line,) = errors(score(folder.parent, nnUNet_raw=training / "raw"))
    assert line == f"Error: {folder} is not empty: remove it or choose another folder."
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def is_running(process: int) -> bool:
    """A zombie has ended, and waits for whoever inherited it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_command(tmp_path: Path, number: signal.Signals):
    cube = np.zeros((130, 130, 130), np.uint8)
    for label, margin in enumerate((20, 30, 40), 1):
        cube[margin:-margin, margin:-margin, margin:-margin] = label
    for folder in ("predicted", "labels"):
        (tmp_path / folder).mkdir()
        for case in CASES:
            sitk.WriteImage(sitk.GetImageFromArray(cube), tmp_path / folder / f"{case}.nii.gz")
    before = files_in(tmp_path)
    process = start(tmp_path / "predicted", tmp_path / "labels", "-np", "2", "--labels", "nnunet")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(workers := children.read_text().split()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while any(is_running(int(worker)) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if number == signal.SIGKILL:
        assert process.returncode == -number
        with staged_folder(tmp_path / "predicted" / "evaluation") as staged:  # as the next evaluation does
            assert list(staged.iterdir()) == []
        (tmp_path / "predicted" / "evaluation").rmdir()
    else:
        assert process.returncode == 128 + number, said
    assert files_in(tmp_path) == before
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_names_that_a_spreadsheet_would_compute_and_files_of_systems(training: Path):
    validation = model_of(training) / "fold_0" / "validation"
    truth = training / "raw" / "Dataset005_Phantom" / "labelsTr"
    folders = [training / "odd", training / "odd_labels"]
    for folder, source in zip(folders, (validation, truth), strict=True):
        folder.mkdir()
        shutil.copy(source / "phantom_001.nii.gz", folder / "=1+1.nii.gz")
        (folder / "._=1+1.nii.gz").write_bytes(b"resource fork of macOS")
    (folders[0] / "@eaDir").mkdir()
    result = score(*folders, "--labels", "nnunet")
    assert result.returncode == 0, result.stderr
    with (folders[0] / "evaluation" / "scores.csv").open(newline="") as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"'=1+1"}


def test_noise_in_labels_and_probabilities_in_their_place(training: Path):
    validation = model_of(training) / "fold_0" / "validation"
    truth = training / "raw" / "Dataset005_Phantom" / "labelsTr"
    expected = evaluate(find_pairs(validation, truth, chill=True).pairs)
    image = sitk.ReadImage(validation / "phantom_001.nii.gz")
    voxels = sitk.GetArrayFromImage(image).astype(np.float32)
    for noisy in (voxels * np.float32(1.0000001), voxels * np.float32(0.9999999)):
        changed = sitk.GetImageFromArray(noisy)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, validation / "phantom_001.nii.gz")
        assert evaluate(find_pairs(validation, truth, chill=True).pairs) == expected
    changed = sitk.GetImageFromArray(np.random.default_rng(0).random(voxels.shape, np.float32))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, validation / "phantom_001.nii.gz")
    (line,) = errors(score(validation, nnUNet_raw=training / "raw"))
    assert len(line) < 500
    assert re.search(r"has the labels 0\.\d+, .* and [\d]+ more: expected 0, 1, 2, 3\.", line)
