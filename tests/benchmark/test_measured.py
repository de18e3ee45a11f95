"""A command's peak memory: written down, whatever becomes of the command, and never at its cost."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_autosam2.benchmark.measured import main, peak_memory


def in_this_process(monkeypatch: pytest.MonkeyPatch, record: Path, *command: str) -> int | str | None:
    """Its exit code."""
    monkeypatch.setattr(sys, "argv", ["measured", str(record), *command])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def peak(record: Path) -> int:
    return json.loads(record.read_text())["peak_memory_bytes"]


def test_a_command_gets_its_arguments_and_keeps_its_output_and_exit_code(tmp_path, monkeypatch, capsys):
    record = tmp_path / "record.json"
    assert in_this_process(monkeypatch, record, "autosam2", "--version") == 0
    assert "autosam2" in capsys.readouterr().out
    assert 2**20 < peak(record) < 2**36
    assert in_this_process(monkeypatch, tmp_path / "other.json", "autosam2", "no-such-command") == 2
    assert "no-such-command" in capsys.readouterr().err
    assert (tmp_path / "other.json").is_file()


@pytest.mark.parametrize(("before", "stays"), [(1, False), (2**40, True)])
def test_the_most_of_all_starts_counts(tmp_path, monkeypatch, before: int, stays: bool):
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"peak_memory_bytes": before}))
    in_this_process(monkeypatch, record, "autosam2", "--version")
    assert (peak(record) == before) == stays


@pytest.mark.parametrize(("make", "fault"), [(Path.mkdir, "is a folder"), (Path.touch, "is damaged")])
def test_what_is_no_record_is_set_aside(tmp_path, monkeypatch, caplog, make, fault: str):
    """An earlier version has left empty files on a full disk."""
    record = tmp_path / "record.json"
    make(record)
    assert in_this_process(monkeypatch, record, "autosam2", "--version") == 0
    assert f"record.json {fault}" in caplog.text
    assert peak(record) > 2**20
    assert (tmp_path / "record.json.damaged").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU's memory counts")
def test_memory_is_counted_in_bytes():
    before = peak_memory()
    block = np.ones(2**27, np.uint8)
    assert peak_memory() >= before
    assert block.nbytes < peak_memory() < 2**40


def test_a_full_disk_costs_the_number_and_not_the_training(tmp_path: Path):
    command = [sys.executable, "-B", "-m", "nnunet_autosam2.benchmark.measured", "a__training.json"]
    done = subprocess.run(
        [*command, "autosam2", "--version"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, "The peak memory is not kept: " in done.stderr) == (0, True), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
