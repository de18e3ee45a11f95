import json
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


CASES = [f"phantom_{number:03d}" for number in range(1, 9)]


def save_checkpoint(path: Path) -> None:
    log = {"train_losses": [1.0, 0.5], "val_losses": [1.0, 0.5], "ema_fg_dice": [0.1, 0.2]}
    log |= {"epoch_start_timestamps": [0.0, 10.0], "epoch_end_timestamps": [10.0, 20.0]}
    torch.save({"network_weights": {}, "init_args": {}, "trainer_name": "nnUNetTrainer", "logging": log}, path)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """nnU-Net's folders after four folds, in which the truth moved by a voxel is what the network predicted."""
    write_phantom(tmp_path / "brats", num_cases=8, size=(24, 24, 24), seed=1)
    dataset = convert_brats(tmp_path / "brats", 5, "Phantom", ["t1"], tmp_path / "raw").folder
    preprocessed = tmp_path / "preprocessed" / dataset.name
    preprocessed.mkdir(parents=True)
    shutil.copy(dataset / "dataset.json", preprocessed)
    plans = {"dataset_name": dataset.name, "plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    folds = [CASES[2 * fold : 2 * fold + 2] for fold in range(4)]
    splits = [{"train": [case for case in CASES if case not in val], "val": val} for val in folds]
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
    options = [
        "--evaluate-only",
        "--viewer-cases",
        "0",
        "--num-processes",
        "2",
        "-o",
        str(output or root / "benchmark"),
    ]
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
    faults = (checkpoint, "has no log of a training", prediction)
    for fold, (line, named) in enumerate(zip(lines[1:], faults, strict=True), 1):
        assert line.startswith(f"nnUNetTrainer__nnUNetPlans__3d_fullres__fold_{fold}: ")
        assert str(named) in line
    assert "Traceback" not in damaged.output


def test_a_place_that_cannot_be_written_is_found_before_any_work(trained: Path):
    result = benchmark(trained, Path("/proc/benchmark"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["Error: /proc cannot be written: No such file or directory."]
