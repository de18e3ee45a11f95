"""The link, beside a package of nnU-Net's name and this package's metadata; with the real ones in test_install.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_autosam2.support.discovery import OVERLAY, default_device, search_remedy, source_overlay

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "overlay"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Where an installer has put nnU-Net and an editable install of this package."""
    (tmp_path / "nnunetv2" / OVERLAY).parent.mkdir(parents=True)
    (tmp_path / "nnunetv2" / "__init__.py").touch()
    metadata = tmp_path / "nnunet_autosam2-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: nnunet-autosam2\nVersion: 0.1.0\n")
    (metadata / "RECORD").write_text('"a, b.py",sha256=x,3\n')
    (metadata / "direct_url.json").write_text(json.dumps({"url": ROOT.as_uri(), "dir_info": {"editable": True}}))
    return tmp_path


def link(packages: Path) -> tuple[str, str]:
    """What is said on standard output and as an error."""
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
    environment.pop("nnUNet_extTrainer", None)
    command = [sys.executable, "-m", "nnunet_autosam2.support.discovery"]
    run = subprocess.run(command, cwd=packages, env=environment, capture_output=True, text=True, timeout=120)
    assert (run.returncode == 0) == (run.stderr == "")
    return run.stdout.rstrip(), run.stderr.rstrip()


def test_links_once_and_records_it_once(packages: Path):
    place = packages / "nnunetv2" / OVERLAY
    assert link(packages) == (f"linked {place} to {SOURCES}", "")
    assert place.resolve() == SOURCES
    record = (packages / "nnunet_autosam2-0.1.0.dist-info" / "RECORD").read_text()
    assert record == f'"a, b.py",sha256=x,3\n{place.relative_to(packages).as_posix()},,\n'
    assert link(packages) == (f"nothing to do: {place} is a link to {SOURCES}", "")
    assert (packages / "nnunet_autosam2-0.1.0.dist-info" / "RECORD").read_text() == record


def test_an_old_link_and_old_bytecode_are_replaced(packages: Path, tmp_path: Path):
    place = packages / "nnunetv2" / OVERLAY
    place.symlink_to(tmp_path / "moved away")
    assert link(packages) == (f"linked {place} to {SOURCES}", "")
    place.unlink()
    (place / "__pycache__").mkdir(parents=True)
    (place / "__pycache__" / "autosam2_trainers.cpython-311.pyc").touch()
    assert link(packages) == (f"linked {place} to {SOURCES}", "")


def test_what_somebody_has_put_there_stays(packages: Path):
    place = packages / "nnunetv2" / OVERLAY
    place.mkdir()
    (place / "mine.py").touch()
    assert link(packages) == (
        "",
        f"Error: {place} cannot be linked: Directory not empty. Run: export nnUNet_extTrainer={SOURCES}",
    )
    assert [file.name for file in place.iterdir()] == ["mine.py"]


def test_a_copy_is_not_linked(packages: Path):
    place = packages / "nnunetv2" / OVERLAY
    (packages / "nnunet_autosam2-0.1.0.dist-info" / "direct_url.json").unlink()
    _, error = link(packages)
    assert error.startswith(f"Error: {place} is missing, and this is no editable install that it could be linked to.")
    place.mkdir()
    (place / "autosam2_trainers.py").touch()
    assert link(packages) == (f"nothing to do: not an editable install, {place} is a copy", "")


def test_the_remedy_keeps_what_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/mine")
    assert source_overlay() == SOURCES
    assert search_remedy() == f"Run: export nnUNet_extTrainer=/mine{os.pathsep}{SOURCES}"


def test_the_device_is_there():
    assert torch.zeros(1, device=default_device()).item() == 0
