import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path

import nnunetv2
import pytest
import torch

from nnunet_autosam2.architectures.sam2.model import SAM2
from tests.fork_server import run

ROOT = Path(__file__).parents[2]
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Everything in place, nothing of this machine's own settings, no network."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "nnUNet_", "AUTOSAM2_"))}
    folders = {name: str(tmp_path / name) for name in FOLDERS}
    for folder in folders.values():
        Path(folder).mkdir()
    return {**inherited, **folders, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}


def doctor(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = Path(environment["nnUNet_results"])
    done = run("autosam2", "doctor", *arguments, variables=environment, folder=folder)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Subject → (status, detail), from every line of the table."""
    *table, _ = done.stdout.splitlines()
    return {line[9:39].strip(): (line[:8].strip(), line[40:]) for line in table}


def problems(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {subject for subject, (status, _) in findings(done).items() if status == "PROBLEM"}


def test_ready_to_train(environment, tmp_path):
    weights = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": SAM2.build("sam2.1-hiera-tiny", 512).state_dict()}, weights)
    done = doctor({**environment, "AUTOSAM2_SAM2_WEIGHTS": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done)
    assert found["nnunetv2"] == ("ok", importlib.metadata.version("nnunetv2"))
    assert found["nnUNetTrainerAutoSAM2"][0] == "ok"
    assert found["SAM2 weights"][0] == "ok"
    assert str(weights) in found["SAM2 weights"][1]
    assert [found[name] for name in FOLDERS] == [("ok", environment[name]) for name in FOLDERS]
    assert done.stdout.splitlines()[-1] == "Nothing would stop a training."


def test_random_weights_are_noted(environment):
    done = doctor(environment, "sam2_checkpoint=random", "--model", "sam2.1-hiera-large")
    assert done.returncode == 0, done.stdout + done.stderr
    status, detail = findings(done)["SAM2 weights"]
    assert status == "note"
    assert "sam2.1-hiera-large: random" in detail


def test_problems_are_named_and_counted(environment, tmp_path):
    del environment["nnUNet_raw"]  # a training does not read it
    environment["nnUNet_preprocessed"] = str(tmp_path / "gone")
    done = doctor(environment)
    assert done.returncode == 1
    assert problems(done) == {"nnUNet_preprocessed", "SAM2 weights"}
    assert findings(done)["nnUNet_raw"][0] == "note"
    assert "AUTOSAM2_SAM2_WEIGHTS" in findings(done)["SAM2 weights"][1]
    assert done.stdout.splitlines()[-1] == "2 problems would stop a training."


def test_as_json_it_finds_the_same(environment):
    del environment["nnUNet_preprocessed"]
    table, described = doctor(environment), doctor(environment, "--json")
    assert described.returncode == table.returncode == 1
    content = json.loads(described.stdout)
    found = {finding["subject"]: (finding["status"], finding["detail"]) for finding in content["findings"]}
    assert found == findings(table)
    assert content["problems"] == len(problems(table)) == 2
    assert content["system"]


@pytest.mark.slow
def test_weights_of_another_size(environment, tmp_path):
    small = tmp_path / "small.pt"
    torch.save({"model": SAM2.build("sam2.1-hiera-small", 512).state_dict()}, small)
    done = doctor(environment, f"sam2_checkpoint={small}")
    assert done.returncode == 1
    assert "set sam2_model to sam2.1-hiera-small" in findings(done)["SAM2 weights"][1]


@pytest.mark.parametrize("package", ["sam2", "torch", "nnunetv2"])
def test_a_broken_dependency_is_a_problem_not_a_crash(environment, tmp_path, package):
    broken = tmp_path / "broken"
    (broken / package).mkdir(parents=True)
    (broken / package / "__init__.py").write_text("raise OSError('libfoo.so is gone')")
    done = doctor({**environment, "PYTHONPATH": str(broken)}, "sam2_checkpoint=random")
    assert done.returncode == 1
    assert "nnUNetTrainerAutoSAM2" in problems(done)
    assert "libfoo.so is gone" in findings(done)["nnUNetTrainerAutoSAM2"][1]


def test_source_checkout_prints_the_line_that_makes_the_trainer_discoverable(environment, tmp_path):
    """As in an editable install: our package comes from the source tree, nnU-Net's has no overlay in it."""
    plain = tmp_path / "plain"
    shutil.copytree(nnunetv2.__path__[0], plain / "nnunetv2", ignore=shutil.ignore_patterns("autosam2"))
    environment["PYTHONPATH"] = os.pathsep.join([str(plain), str(ROOT)])
    done = doctor(environment, "sam2_checkpoint=random")
    assert problems(done) == {"nnUNetTrainerAutoSAM2"}
    line = findings(done)["nnUNetTrainerAutoSAM2"][1].partition("export ")[2]
    variable, _, value = line.partition("=")
    assert (variable, value) == ("nnUNet_extTrainer", str(ROOT / "overlay"))
    mended = doctor({**environment, variable: value}, "slice_fraction=0")
    assert mended.returncode == 0
    assert findings(mended)["SAM2 weights"] == ("ok", "not needed: SAM2 is off")


def test_unknown_key_is_refused_in_one_line(environment):
    done = doctor(environment, "slice_fractoin=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("Error: slice_fractoin is not a parameter")
