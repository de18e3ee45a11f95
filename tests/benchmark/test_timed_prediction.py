"""A real model predicts a real case, and the time and memory that it takes are written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_autosam2.benchmark.kept import PredictionCost, read_kept
from nnunet_autosam2.benchmark.timed_prediction import main


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Four channels of a case that is one patch large."""
    random = np.random.default_rng(0)
    paths = [str(tmp_path / f"case_{channel:04d}.nii.gz") for channel in range(4)]
    for path in paths:
        sitk.WriteImage(sitk.GetImageFromArray(random.normal(size=(24, 32, 32)).astype(np.float32)), path)
    return paths


def predict(monkeypatch: pytest.MonkeyPatch, record: Path, model: Path, cases: dict[str, list[str]]) -> None:
    monkeypatch.setattr(sys, "argv", ["timed_prediction", str(record), str(model), "0", "cpu", json.dumps(cases)])
    main()


def test_each_case_has_its_time(tmp_path: Path, model: Path, images: list[str], monkeypatch: pytest.MonkeyPatch):
    record = tmp_path / "record.json"
    before = set(tmp_path.iterdir())
    predict(monkeypatch, record, model, {"a": images})
    measured = read_kept(record, PredictionCost)
    assert measured is not None
    assert list(measured.seconds) == ["a"]
    assert 0 < measured.seconds["a"] < 600
    assert measured.peak_memory_bytes > 2**20
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True, mmap=True)["network_weights"]
    assert 0 < measured.parameters.trainable < measured.parameters.all <= sum(map(torch.numel, weights.values()))
    assert set(tmp_path.iterdir()) == before | {record}  # the predictions themselves are thrown away


def test_without_cases_the_size_of_the_model_is_still_told(tmp_path: Path, model: Path, monkeypatch):
    predict(monkeypatch, tmp_path / "record.json", model, {})
    measured = read_kept(tmp_path / "record.json", PredictionCost)
    assert measured is not None
    assert measured.seconds == {}
    assert measured.parameters.all > 0


def test_a_full_disk_is_one_line(tmp_path: Path, model: Path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^Error: .*record\.json cannot be written: "):
        predict(monkeypatch, tmp_path / "gone" / "record.json", model, {})
