"""A phantom data set, planned and preprocessed by nnU-Net's own commands, once for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.build_sam import build_sam2

from nnunet_autosam2.trainers.run_manifest import FILE
from tests.fork_server import ForkServer

DATASET = "Dataset900_Phantom"
TINY = [
    "--patch-size", "24", "32", "32", "--batch-size", "2",
    "sam2_image_size=64", "slice_fraction=0.15", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1",
    "initial_lr=1e-3",
]  # fmt: skip


@dataclass
class Workspace:
    """nnU-Net's three folders, and its commands as a user runs them."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    fork_server: ForkServer | None = None

    @property
    def variables(self) -> dict[str, str]:
        ours = ("nnUNet_", "AUTOSAM2_", "HF_", "PYTEST_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        limits = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "HF_HUB_OFFLINE": "1"}
        return {**inherited, **folders, **limits, "PATH": path, "HF_HOME": str(self.root / "hub"), **self.environment}

    def variables_of(self, command: tuple[str | Path, ...]) -> dict[str, str]:
        variables = self.variables
        if command[0] == "nnUNetv2_train" and "nnUNet_n_proc_DA" not in self.environment:
            variables["nnUNet_n_proc_DA"] = "0"  # it starts earlier without processes that load its data
        return variables

    def start(self, *command: str | Path) -> subprocess.Popen:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=self.root,
            env=self.variables_of(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str | Path, expected: int = 0, afresh: bool = False) -> str:
        """Standard output and error of a command that has to end with the code `expected`.

        Not `afresh` it is forked where that makes no difference, which saves what it would import.
        """
        server, variables = self.fork_server, self.variables_of(command)
        if not afresh and server is not None and server.serves(str(command[0]), variables):
            with tempfile.TemporaryFile("w+") as file:
                code = server.run([str(part) for part in command], self.root, variables, file, file, timeout=900)
                file.seek(0)
                output = file.read()
        else:
            process = self.start(*command)
            output, _ = process.communicate(timeout=900)
            code = process.returncode
        assert code == expected, f"{' '.join(map(str, command))}\n{output[-5000:]}"
        return output

    def run_code(self, code: str) -> str:
        """Standard output and error of a script."""
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(code)
            script.flush()
            return self.run(script.name)

    def probabilities(self, model: Path, images: Path, output: Path) -> dict[str, np.ndarray]:
        """Of each case, as the model of a results folder predicts them without mirroring."""
        self.run(
            "nnUNetv2_predict_from_modelfolder", "-i", images, "-o", output, "-m", model, "-f", "0", "-device", "cpu",
            "--disable_tta", "--save_probabilities", "-npp", "1", "-nps", "1",
        )  # fmt: skip
        return {path.name: np.load(path)["probabilities"] for path in sorted(output.glob("*.npz"))}

    def runs(self, folder: Path) -> list[dict]:
        """Those in the manifest of a folder."""
        return json.loads((folder / FILE).read_text())["runs"]

    def results(self, trainer: str, configuration: str) -> Path:
        return self.root / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}"


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Planned and preprocessed, with the configuration `tiny` and with weights of SAM2 to be found."""
    workspace = Workspace(tmp_path_factory.mktemp("nnunet"))
    workspace.fork_server = ForkServer(workspace.variables)
    for folder in ("raw", "preprocessed", "results"):
        (workspace.root / folder).mkdir()
    workspace.run("autosam2", "make-phantom", "phantom", "--cases", "6", "--size", "28", "32", "32")
    workspace.run("autosam2", "convert-brats", "phantom", "-d", "900", "-n", "Phantom")
    plan = ("nnUNetv2_plan_and_preprocess", "-d", "900", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    workspace.run(Path(__file__).with_name("write_fingerprint.py"), "900")
    workspace.run(*plan)
    workspace.environment["AUTOSAM2_SAM2_WEIGHTS"] = str(write_sam2_checkpoint(workspace.root / "sam2_weights.pt"))
    workspace.run("autosam2", "configure", "900", "--name", "tiny", *TINY, "num_epochs=2")
    yield workspace
    workspace.fork_server.close()


@pytest.fixture(scope="session")
def extended(planned: Workspace) -> Workspace:
    """`planned`, where nnU-Net finds the trainers of these tests as well."""
    trainers = Path(__file__).with_name("trainers")
    return replace(planned, environment={**planned.environment, "nnUNet_extTrainer": str(trainers)})


@pytest.fixture(scope="session")
def loading(extended: Workspace) -> Workspace:
    """`extended`, where a process of its own loads the data of a training, as for a user."""
    return replace(extended, environment={**extended.environment, "nnUNet_n_proc_DA": "1"})


@pytest.fixture(scope="session")
def trained(planned: Workspace) -> Path:
    """Results folder of the hybrid, fold 0, trained to the end."""
    planned.run("nnUNetv2_train", "900", "tiny", "0", "-tr", "nnUNetTrainerAutoSAM2", "-device", "cpu")
    return planned.results("nnUNetTrainerAutoSAM2", "tiny")


@pytest.fixture(scope="session")
def images(planned: Workspace) -> Path:
    """Two cases to predict."""
    folder = planned.root / "images"
    folder.mkdir()
    for case in ("phantom_001", "phantom_002"):
        for file in (planned.root / "raw" / DATASET / "imagesTr").glob(f"{case}_*"):
            shutil.copy(file, folder)
    return folder


def write_sam2_checkpoint(path: Path) -> Path:
    """Official layout, weights from a seeded random model."""
    torch.manual_seed(20)
    model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    torch.save({"model": model.state_dict()}, path)
    return path
