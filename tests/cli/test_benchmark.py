import csv
import json
import os
import shutil
from pathlib import Path

import click
import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from nnunet_autosam2.cli.benchmark import ManyValues
from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.brats import convert_brats
from nnunet_autosam2.dataset_conversion.phantom import write_phantom
from tests.fork_server import run

TRAINERS = ("nnUNetTrainer", "nnUNetTrainer_5epochs")
CASES = tuple(f"case_{number}" for number in range(6))
LABELS = {"background": 0, "kidney": [1, 2], "tumour": 2}


@click.command(cls=ManyValues)
@click.option("--names", multiple=True)
@click.option("-f", "--folds", multiple=True, type=int)
@click.option("--one")
@click.option("--flag", is_flag=True)
@click.argument("rest", nargs=-1)
def command(names, folds, one, flag, rest):
    click.echo(repr((names, folds, one, flag, rest)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--names a b --folds 0 1 2", (("a", "b"), (0, 1, 2), None, False, ())),
        ("--names a --names b -f 1 -f 0", (("a", "b"), (1, 0), None, False, ())),
        ("--names a b c --flag --one x -f 3", (("a", "b", "c"), (3,), "x", True, ())),
        ("--one x y --names=a", (("a",), (), "x", False, ("y",))),
    ],
)
def test_an_option_takes_many_values(arguments, expected):
    result = CliRunner().invoke(command, arguments.split())
    assert result.output.strip() == repr(expected)


def test_a_wrong_value_is_named():
    result = CliRunner().invoke(command, ["--folds", "0", "one"])
    assert result.exit_code == 2
    assert "'one' is not a valid integer" in result.output


PHANTOMS = [f"phantom_{number:03d}" for number in range(1, 9)]


def save_checkpoint(path: Path) -> None:
    log = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.5], "ema_fg_dice": [0.1, 0.2]}
    log |= {"epoch_start_timestamps": [0.0, 10.0], "epoch_end_timestamps": [10.0, 20.0]}
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "nnUNetTrainer", "logging": log}, path)


@pytest.fixture
def trained(tmp_path: Path, plans: dict) -> Path:
    """nnU-Net's folders after four folds, in which the truth moved by a voxel is what the network predicted."""
    write_phantom(tmp_path / "brats", num_cases=8, size=(24, 24, 24), seed=1)
    dataset = convert_brats(tmp_path / "brats", 5, "Phantom", ["t1"], tmp_path / "raw").folder
    preprocessed = tmp_path / "preprocessed" / dataset.name
    preprocessed.mkdir(parents=True)
    shutil.copy(dataset / "dataset.json", preprocessed)
    plans = {**plans, "dataset_name": dataset.name}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    folds = [PHANTOMS[2 * fold : 2 * fold + 2] for fold in range(4)]
    splits = [{"train": [case for case in PHANTOMS if case not in val], "val": val} for val in folds]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    shutil.copytree(dataset / "labelsTr", preprocessed / "gt_segmentations")
    model = model_of(tmp_path)
    for fold, val in enumerate(folds):
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        save_checkpoint(validation.parent / "checkpoint_final.pth")
        for case in val:
            image = nibabel.load(dataset / "labelsTr" / f"{case}.nii.gz")
            moved = np.roll(np.asanyarray(image.dataobj), 1, axis=0)
            nibabel.save(nibabel.Nifti1Image(moved, image.affine), validation / f"{case}.nii.gz")
        (validation / "summary.json").write_text("{}")
    shutil.copy(dataset / "dataset.json", model)
    (model / "plans.json").write_text(json.dumps(plans))
    return tmp_path


def model_of(root: Path) -> Path:
    return root / "results" / "Dataset005_Phantom" / "nnUNetTrainer__nnUNetPlans__3d_fullres"


def benchmark(root: Path, output: Path | str = "benchmark") -> Result:
    names = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
    arguments = ["-d", "5", "--trainers", "nnUNetTrainer", "--folds", "0", "1", "2", "3", "--device", "cpu"]
    options = ["--evaluate-only", "--viewer-cases", "0", "--num-processes", "2", "-o", str(root / output)]
    environment = {name: str(root / folder) for name, folder in names.items()}
    return CliRunner().invoke(main, ["benchmark", *arguments, *options], env=environment)


def scored(root: Path) -> list[int]:
    (model,) = json.loads((root / "benchmark" / "benchmark.json").read_text())["models"]
    return [len(fold["cases"]) for fold in model["folds"]]


def test_one_damaged_file_stops_one_fold(trained: Path):
    """The others have their tables, and what is ours is made again."""
    whole = benchmark(trained)
    assert whole.exit_code == 0, whole.output
    assert scored(trained) == [2, 2, 2, 2]
    scores, expected = sorted((trained / "benchmark" / "scores").iterdir()), whole.stdout
    assert len(scores) == 4
    kept = [file.read_text() for file in scores]

    for file, content in zip(scores, ("", "{", "null", '{"phantom_007": 1}'), strict=True):
        file.write_text(content)
    again = benchmark(trained)
    assert (again.exit_code, again.stdout) == (0, expected)
    assert [file.read_text() for file in scores] == kept
    assert len(list((trained / "benchmark" / "scores").glob("*.damaged"))) == 4

    model = model_of(trained)
    checkpoint, prediction = model / "fold_1" / "checkpoint_final.pth", model / "fold_3/validation/phantom_007.nii.gz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    prediction.write_bytes(prediction.read_bytes()[:-100])
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "x"}, model / "fold_2" / "checkpoint_final.pth")
    damaged = benchmark(trained)
    assert damaged.exit_code == 1
    assert scored(trained) == [2, 2, 2, 0]
    assert "Overlap with the truth" in damaged.stdout
    assert "Report:" in damaged.stdout
    lines = damaged.stderr[damaged.stderr.index("Error: ") :].splitlines()
    assert lines[0] == "Error: 3 of 4 folds are missing."
    faults = (checkpoint, "checkpoint_final.pth: logging", prediction)
    for fold, (line, named) in enumerate(zip(lines[1:], faults, strict=True), 1):
        assert line.startswith(f"nnUNetTrainer__nnUNetPlans__3d_fullres__fold_{fold}: ")
        assert str(named) in line
    assert "Traceback" not in damaged.output


def test_a_place_that_cannot_be_written_is_found_before_any_work(trained: Path):
    result = benchmark(trained, Path("/proc/benchmark"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["Error: /proc cannot be written: No such file or directory."]


class Finished:
    """nnU-Net's folders after two folds of two trainers, which predict the truth moved by one and by two voxels."""

    def __init__(
        self, root: Path, labels: dict, plans: dict, cases: tuple[str, ...] = CASES, ending: str = ".nii.gz"
    ) -> None:
        self.root, self.name, self.cases = root, "Dataset009_Kidney", cases
        raw, preprocessed = root / "raw" / self.name, root / "preprocessed" / self.name
        self.splits = preprocessed / "splits_final.json"
        dataset = {
            "channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(cases), "file_ending": ending,
            "regions_class_order": [1, 2],
        }  # fmt: skip
        for folder in (raw, preprocessed):
            folder.mkdir(parents=True)
            (folder / "dataset.json").write_text(json.dumps(dataset))
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps({**plans, "dataset_name": self.name}))
        self.split([{"train": cases[2:], "val": cases[:2]}, {"train": cases[:2], "val": cases[2:4]}])
        for number, case in enumerate(cases):
            self.save(raw / "labelsTr" / f"{case}{ending}", number, 0)
            self.save(raw / "imagesTr" / f"{case}_0000{ending}", number, 0)
        shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")
        for distance, trainer in enumerate(TRAINERS, start=1):
            model = root / "results" / self.name / f"{trainer}__nnUNetPlans__3d_fullres"
            for fold, val in enumerate((cases[:2], cases[2:4])):
                for case in val:
                    self.save(model / f"fold_{fold}" / "validation" / f"{case}{ending}", cases.index(case), distance)
                (model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
                log = {"epoch_end_timestamps": [9.0], "epoch_start_timestamps": [2.0]}
                log |= {curve: [0.5] for curve in ("train_losses", "val_losses", "ema_fg_dice")}
                checkpoint = {"network_weights": {}, "init_args": {}, "trainer_name": trainer, "logging": log}
                torch.save(checkpoint, model / f"fold_{fold}" / "checkpoint_final.pth")
            shutil.copy(raw / "dataset.json", model)
            (model / "plans.json").write_text(json.dumps({**plans, "dataset_name": self.name}))

    def split(self, folds: list[dict]) -> None:
        self.splits.write_text(json.dumps(folds))

    def save(self, file: Path, number: int, distance: int) -> None:
        voxels = np.zeros((14, 16, 18), np.uint8)
        voxels[3:10, 3:11, 4 + distance : 10 + distance] = 1
        voxels[5:8, 5:8, 5 + distance : 6 + number % 3 + distance] = 2
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.name.endswith(".nii.gz"):
            file.touch()
            return
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.5, 1.0])), file)

    def benchmark(self, *options: str, code: int = 0, afresh: bool = False) -> str:
        """Both outputs of the command, which trains nothing unless options say so."""
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        selection = ["-d", "9", "--trainers", *TRAINERS, "--device", "cpu", "--viewer-cases", "0"]
        done = run(
            "autosam2", "benchmark", *selection, "-o", self.root / "out", *options,
            variables={**os.environ, **folders}, timeout=300, afresh=afresh,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


def test_labels_and_regions_of_any_dataset(tmp_path: Path, plans: dict):
    finished = Finished(tmp_path, LABELS, plans)
    said = finished.benchmark("--folds", "0", "1", "--evaluate-only", "--num-processes", "1", afresh=True)
    assert "kidney" in said
    assert "lesion" not in said
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[3:] == ["region", "Dice", "IoU", "HD95", "NSD"]
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        distance = 1 + TRAINERS.index(row["model"])
        if row["region"] == "kidney":
            assert float(row["Dice"]) == pytest.approx(1 - distance / 6)
            assert float(row["HD95"]) == pytest.approx(2.5 * distance)
    record = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert record["regions"] == ["kidney", "tumour"]
    assert [(label["value"], label["title"]) for label in record["labels"]] == [(1, "kidney"), (2, "tumour (kidney)")]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "tumour" in page
    assert "whole tumour" not in page


def test_a_patient_on_both_sides_is_said_loudly(tmp_path: Path, plans: dict):
    cases = tuple(f"BraTS-GLI-0000{patient}-10{scan}" for patient in range(3) for scan in range(2))
    finished = Finished(tmp_path, LABELS, plans, cases)
    finished.split([{"train": cases[1:2] + cases[3:], "val": cases[:1] + cases[2:3]}, {"train": [], "val": []}])
    for model in (tmp_path / "results" / finished.name).iterdir():
        shutil.move(model / "fold_1" / "validation" / f"{cases[2]}.nii.gz", model / "fold_0" / "validation")
        (model / "fold_0" / "validation" / f"{cases[1]}.nii.gz").unlink()
    said = finished.benchmark("--folds", "0", "--evaluate-only", "--num-processes", "1")
    warning = (
        "Fold 0: 2 of 2 validation cases are of patients whose other scans it trains on (BraTS-GLI-00000, BraTS-GL"
    )
    assert f"WARNING: {warning}" in said
    for file in ("results.md", "benchmark.json", "report/index.html"):
        assert warning in (tmp_path / "out" / file).read_text()


def test_what_cannot_be_evaluated_is_refused_before_the_first_training(tmp_path: Path, plans: dict):
    finished = Finished(tmp_path, LABELS, plans, ending=".nrrd")
    shutil.rmtree(tmp_path / "results")
    said = finished.benchmark("--folds", "0", code=1)
    assert "dataset.json: files that end in .nrrd cannot be evaluated here, only those in .nii.gz." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", "0", "0", "0", "1"), "Error: --folds: 0 is named twice: name it once."),
        (("--slurm", "time=1", "time=2"), "--slurm: time is given twice: give it once."),
    ],
)
def test_lists_are_sets(options: tuple[str, ...], message: str):
    result = CliRunner().invoke(main, ["benchmark", "-d", "9", "--trainers", "nnUNetTrainer", *options])
    assert result.exit_code != 0
    assert message in result.output
