"""Every command of getting-started and of the README, as it stands, on phantoms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Reader, blocks, commands
from tests.end_to_end.conftest import Workspace, write_sam2_checkpoint
from tests.fork_server import ForkServer

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]
SMALL = [
    "--patch-size", "24", "32", "32", "--batch-size", "2", "--base-features", "8", "--max-features", "32",
    "sam2_image_size=64", "slice_fraction=0.15", "training_slices=2",
    "num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1",
]  # fmt: skip
ELSEWHERE = {
    "make": "this is `make test`, and `make demo` is demo/run.sh, which is among the slow tests",
    "pip": "tests/end_to_end/test_install.py installs into environments of its own",
    "mkdir": "the folders are there",
}
ON_THIS_MACHINE = {
    "nnUNetv2_train": ["-device", "cpu"],
    "nnUNetv2_predict": ["-device", "cpu", "-npp", "0", "-nps", "0"],
    "nnUNetv2_plan_and_preprocess": ["-np", "1", "-npfp", "1"],
}


class SmallMachine:
    """What makes the work of a cluster that of a minute: small plans, and a trained nnU-Net that is hardly trained."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.is_planned = False

    def before(self, words: list[str]) -> list[str]:
        if words[0] == "nnUNetv2_train" and not self.is_planned:
            self._plan_small()
            self.is_planned = True
        if words[0] == "nnUNetv2_predict":
            self._take_case()
        if words[:2] == ["autosam2", "benchmark"]:
            words = [*words, "--device", "cpu", "--timed-cases", "1", "--viewer-cases", "0"]
        return [*words, *ON_THIS_MACHINE.get(words[0], [])]

    def _plan_small(self) -> None:
        """`3d_fullres` as of a small machine, and a checkpoint of nnUNetTrainer for it."""
        run, root = self.workspace.run, self.workspace.root
        run("autosam2", "configure", "21", "--name", "small", *SMALL)
        path = root / "preprocessed" / "Dataset021_BraTS2021" / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        small = plans["configurations"].pop("small")
        del small["inherits_from"]
        plans["configurations"]["3d_fullres"].update(small)
        path.write_text(json.dumps(plans))
        run("nnUNetv2_train", "21", "3d_fullres", "0", "-tr", "nnUNetTrainerShort", "-device", "cpu")
        results = root / "results" / "Dataset021_BraTS2021"
        (results / "nnUNetTrainerShort__nnUNetPlans__3d_fullres").rename(
            results / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        )

    def _take_case(self) -> None:
        raw = self.workspace.root / "raw" / "Dataset021_BraTS2021"
        for folder in ("images", "labels"):
            (self.workspace.root / folder).mkdir(exist_ok=True)
        for channel in range(4):
            name = f"CASE_{channel:04}.nii.gz"
            shutil.copy(raw / "imagesTr" / f"phantom_001_{channel:04}.nii.gz", self.workspace.root / "images" / name)
        shutil.copy(raw / "labelsTr" / "phantom_001.nii.gz", self.workspace.root / "labels" / "CASE.nii.gz")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    root = tmp_path_factory.mktemp("reader")
    weights = write_sam2_checkpoint(root / "sam2_weights.pt")
    trainers = {"nnUNet_extTrainer": str(ROOT / "experiments" / "trainers"), "EXPERIMENT_SEED": "0"}
    workspace = Workspace(root, {"AUTOSAM2_SAM2_WEIGHTS": str(weights), **trainers})
    workspace.fork_server = ForkServer(workspace.variables)
    for folder in ("raw", "preprocessed", "results"):
        (root / folder).mkdir()
    workspace.run("autosam2", "make-phantom", "BraTS2021", "--cases", "6", "--size", "28", "32", "32")
    yield Reader(workspace, tuple(ELSEWHERE), SmallMachine(workspace).before)
    workspace.fork_server.close()


def test_brats_on_one_page(reader: Reader) -> None:
    printed = reader.read("docs/getting-started.md")
    root = reader.workspace.root
    assert "Nothing would stop a training." in printed
    assert [path.name for path in (root / "predicted_brats").glob("*.nii.gz")] == ["CASE.nii.gz"]
    assert len([*(root / "autosam2_CASE").glob("*.png")]) in range(1, 5)
    assert (root / "benchmark_Dataset021_BraTS2021" / "report" / "index.html").is_file()


def test_the_readme_after_it(reader: Reader) -> None:
    """It repeats a part of getting-started, which is not done again, and upgrades the trained nnU-Net."""
    if not reader.done:
        pytest.skip("goes on from the test before")
    reader.read("README.md")
    results = reader.workspace.root / "results" / "Dataset021_BraTS2021"
    upgraded = results / "nnUNetTrainerAutoSAM2_OnBaseline__nnUNetPlans__3d_fullres"
    assert (upgraded / "fold_0" / "checkpoint_final.pth").is_file()
    shown = [words for page in ("README.md", "docs/getting-started.md") for words in _commands(ROOT / page)]
    assert {words[0] for words in shown} <= {"export", *ELSEWHERE, *(words[0] for words in reader.done)}


def _commands(page: Path) -> Iterator[list[str]]:
    for language, content in blocks(page):
        if language == "bash":
            yield from commands(content)


def test_the_demo(tmp_path: Path) -> None:
    """`make demo` without the installation."""
    workspace = Workspace(tmp_path)
    workspace.run(ROOT / "demo" / "run.sh", tmp_path / "demo_output")
    assert [*(tmp_path / "demo_output" / "pictures").glob("*.png")]
