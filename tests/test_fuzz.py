"""JSON that anyone may have made: whatever it says, a command ends well or with one line, runs nothing of it and writes
nothing elsewhere.

The benchmark's own files are in tests/benchmark/test_fuzz.py.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings

from nnunet_autosam2.benchmark.dataset import find_splits, find_training_cases
from nnunet_autosam2.benchmark.models import find_models
from nnunet_autosam2.cli.main import main
from nnunet_autosam2.dataset_conversion.predictions import recorded_release
from nnunet_autosam2.errors import AutoSAM2Error
from nnunet_autosam2.evaluation.numbering import numbering_of_dataset
from nnunet_autosam2.evaluation.pairs import find_pairs
from nnunet_autosam2.show.loading import find_shown_case, load_trained, preprocess
from nnunet_autosam2.trainers.backbone import load_backbone

DATASET = "Dataset900_Phantom"


def thorough(short: int, long: int):
    """How many inputs are tried in `make test` and in `make test-slow`."""
    return pytest.mark.parametrize("tries", [short, pytest.param(long, marks=pytest.mark.slow)])


@pytest.fixture
def attempt(tmp_path: Path, trap: Path, foreign_json, every_time) -> Callable[..., None]:
    """Runs a reader on so many foreign versions of a content."""

    def run(tries: int, content: Any, read: Callable[[bytes], Any]) -> None:
        outcomes: Counter[str] = Counter()
        read(json.dumps(content).encode())
        before = listing(tmp_path)

        @settings(every_time, max_examples=tries)
        @given(written=foreign_json(content))
        def once(written: bytes) -> None:
            said = "read"
            try:
                read(written)
            except AutoSAM2Error as error:
                said = str(error)
            assert all(line.startswith(str(tmp_path)) for line in said.splitlines()[1:])  # a line for each problem
            assert len(said) < 3000
            outcomes["read" if said == "read" else "refused"] += 1
            assert not trap.exists()

        once()
        assert listing(tmp_path) == before
        print(dict(outcomes))
        assert min(outcomes["read"], outcomes["refused"]) > 0.05 * tries, outcomes

    return run


def listing(folder: Path) -> set[Path]:
    return {Path(parent) / name for parent, folders, files in os.walk(folder) for name in (*folders, *files)}


def command(*arguments: str | Path) -> None:
    """A command in this process; its one line as an exception."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    if result.exit_code:
        *_, line = result.stderr.rstrip("\n").split("\n")
        assert line.startswith("Error: ")
        raise AutoSAM2Error(line)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Four channels and a truth, as nnU-Net's raw data are laid out."""
    random = np.random.default_rng(0)
    raw = tmp_path / "raw" / DATASET
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for channel in range(4):
        voxels = random.normal(size=(20, 22, 24)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), raw / "imagesTr" / f"case_{channel:04d}.nii.gz")
    truth = np.zeros((20, 22, 24), np.uint8)
    truth[5:15, 5:15, 5:15] = 3
    nibabel.save(nibabel.Nifti1Image(truth, np.eye(4)), raw / "labelsTr" / "case.nii.gz")
    return raw / "imagesTr" / "case"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders, and the preprocessed data set's."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    (tmp_path / "preprocessed" / DATASET).mkdir(parents=True)
    return tmp_path / "preprocessed" / DATASET


@thorough(40, 3000)
def test_plans_of_a_results_folder(model: Path, case: Path, plans, attempt, tries: int) -> None:
    def read(written: bytes) -> None:
        (model / "plans.json").write_bytes(written)
        trained = load_trained(model, "0", "checkpoint_final.pth")
        preprocess(find_shown_case(case, None, trained), trained)

    attempt(tries, plans, read)


@pytest.mark.slow
def test_pictures_from_plans_of_a_results_folder(model: Path, case: Path, plans, attempt, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()

    def read(written: bytes) -> None:
        (model / "plans.json").write_bytes(written)
        output = ("-o", tmp_path / "pictures", "--slices", "1")
        command("show", case, "-m", model, "--prompt-with-truth", *output)
        for picture in (tmp_path / "pictures").iterdir():
            picture.unlink()

    attempt(300, plans, read)


@thorough(200, 20000)
def test_plans_of_a_preprocessed_dataset(folders: Path, plans, dataset_json, attempt, tries: int) -> None:
    (folders / "dataset.json").write_text(json.dumps(dataset_json))

    def read(written: bytes) -> None:
        (folders / "nnUNetPlans.json").write_bytes(written)
        find_models("900", ["nnUNetTrainer", "nnUNetTrainerAutoSAM2"], "nnUNetPlans", "tiny")
        command(
            "configure", "900", "--base", "tiny", "--name", "new", "--batch-size", "1", "--patch-size", "16", "16", "16"
        )

    attempt(tries, plans, read)


@thorough(200, 20000)
def test_arguments_in_a_checkpoint(tmp_path: Path, plans, dataset_json, attempt, tries: int) -> None:
    checkpoint = tmp_path / "results" / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    weights = {"weight": torch.zeros(1)}

    def read(written: bytes) -> None:
        try:
            content = json.loads(written)
        except (ValueError, RecursionError):
            content = None
        torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer", "init_args": content}, checkpoint)
        command("inspect", checkpoint)
        load_backbone(torch.nn.ParameterDict(weights), checkpoint, plans["configurations"]["3d_fullres"], dataset_json)

    attempt(tries, {"plans": plans, "configuration": "3d_fullres", "dataset_json": dataset_json, "fold": 0}, read)


@thorough(40, 3000)
def test_dataset_json_of_a_results_folder(model: Path, case: Path, dataset_json, attempt, tries: int) -> None:
    def read(written: bytes) -> None:
        (model / "dataset.json").write_bytes(written)
        trained = load_trained(model, "0", "checkpoint_final.pth")
        preprocess(find_shown_case(case, None, trained), trained)

    attempt(tries, dataset_json, read)


@thorough(40, 10000)
def test_dataset_json_of_evaluation_conversion_and_benchmark(
    folders, case: Path, dataset_json, attempt, tries: int
) -> None:
    file = case.parents[1] / "dataset.json"

    def read(written: bytes) -> None:
        file.write_bytes(written)
        numbering_of_dataset(file)
        recorded_release(file.parent)
        find_training_cases(DATASET)

    attempt(tries, dataset_json, read)


@thorough(300, 30000)
def test_splits(folders: Path, model: Path, attempt, tries: int) -> None:
    validation = model / "fold_0" / "validation"
    for folder in (validation, folders / "gt_segmentations"):
        folder.mkdir()
        (folder / "a.nii.gz").touch()

    def read(written: bytes) -> None:
        (folders / "splits_final.json").write_bytes(written)
        find_splits(DATASET, [0], ["a", "b", "c"])
        find_pairs(model)

    attempt(tries, [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}], read)
