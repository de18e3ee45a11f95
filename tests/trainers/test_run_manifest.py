"""The file alone; that nnU-Net's commands write it is tested end to end."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.trainers.run_manifest import FILE, RunManifest, weights_checksum

CPU = torch.device("cpu")
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}


def runs(folder: Path) -> list[dict]:
    return json.loads((folder / FILE).read_text())["runs"]


def test_a_run_is_there_from_its_start_and_complete_at_its_end(tmp_path: Path) -> None:
    manifest = RunManifest(tmp_path, "training", CPU, {"fold": 0})
    manifest.write()
    (begun,) = runs(tmp_path)
    assert (begun["task"], begun["fold"], begun["ended"]) == ("training", 0, None)
    manifest.end({"epochs": 3})
    (ended,) = runs(tmp_path)
    assert {**begun, "ended": ended["ended"], "seconds": ended["seconds"], "epochs": 3} == ended
    assert ended["ended"] >= begun["started"]
    assert ended["versions"]["torch"] == importlib.metadata.version("torch")


def test_runs_of_one_folder_follow_each_other(tmp_path: Path) -> None:
    for fold in range(3):
        RunManifest(tmp_path, "training", CPU, {"fold": fold}).end({})
    assert [run["fold"] for run in runs(tmp_path)] == [0, 1, 2]


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    code = f"""
import torch
from pathlib import Path
from nnunet_autosam2.trainers.run_manifest import RunManifest
for _ in range(5):
    RunManifest(Path({str(tmp_path)!r}), "prediction", torch.device("cpu"), {{}}).end({{}})
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert len(runs(tmp_path)) == 10


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": 3}'])
def test_a_file_of_another_kind_is_set_aside(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    RunManifest(tmp_path, "training", CPU, {}).end({})
    assert len(runs(tmp_path)) == 1
    assert (tmp_path / f"{FILE}.damaged").read_text() == content


def test_a_disk_that_refuses_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / FILE).mkdir()
    (tmp_path / FILE / "full").touch()
    RunManifest(tmp_path / FILE / "full", "training", CPU, {}).end({})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING: ")
    assert FILE in line


def test_weights_have_one_checksum_wherever_they_are(tmp_path: Path) -> None:
    torch.save({"network_weights": WEIGHTS, "current_epoch": 3}, tmp_path / "a.pth")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)["network_weights"]
    assert weights_checksum(dict(reversed(loaded.items()))) == weights_checksum(WEIGHTS)


@pytest.mark.parametrize(
    "change",
    [
        {"a": WEIGHTS["a"] + 1},
        {"a": WEIGHTS["a"].T.contiguous()},
        {"a": WEIGHTS["a"].double()},
        {"b": torch.tensor(4)},
        {"d": torch.tensor(0)},
    ],
)
def test_another_checksum_for_other_weights(change: dict[str, torch.Tensor]) -> None:
    assert weights_checksum({**WEIGHTS, **change}) != weights_checksum(WEIGHTS)
