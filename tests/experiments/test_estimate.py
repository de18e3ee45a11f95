"""Estimates are the document's own figures, times the steps."""

from pathlib import Path

import pytest

from experiments.estimate import MEASURED, PREDICTION_START, basis, training_hours

SETTINGS = {"device": "cuda", "patch_size": [128, 128, 128], "iterations": 250, "val_iterations": 50}
PERFORMANCE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_document():
    gpu = MEASURED["cuda"]
    assert f"| {gpu.step} (0.043 to 0.045) | 0.108 (0.099 to 0.117) | 2.45 | {gpu.step_with_sam2} (0.164" in PERFORMANCE
    assert f"| nnU-Net | {gpu.forward} | 1.00 |" in PERFORMANCE
    assert f"| on nnU-Net's, 30 % | {gpu.forward_with_sam2} |" in PERFORMANCE
    assert f"| SAM2 on it, 30 % | 5.11 | 1.37 | 2.31, {gpu.prediction} |" in PERFORMANCE
    assert f"a prediction took {PREDICTION_START} s" in PERFORMANCE.replace("\n", " ")
    cpu = MEASURED["cpu"]
    assert f"| nnU-Net | {cpu.step / 2:g} | 1.00 |" in PERFORMANCE
    assert f"| on nnU-Net's, 30 % | {cpu.step_with_sam2 / 2:.1f} | 1.09 |" in PERFORMANCE
    assert f"| nnU-Net | {cpu.forward / 2:g} (1.00)" in PERFORMANCE
    assert f"| on nnU-Net's, 30 % | {cpu.forward_with_sam2 / 2:.2f} (3.82)" in PERFORMANCE


def test_a_training_of_nnunet_takes_its_steps_and_a_small_patch_its_share():
    steps = 1000 * (250 * 0.044 + 50 * 0.022)
    assert training_hours(SETTINGS, 1000, False, 97) * 3600 == pytest.approx(180 + steps + 31 + 97 * 2.35)
    small = {**SETTINGS, "patch_size": [64, 128, 128]}
    assert training_hours(small, 1000, False, 97) * 3600 == pytest.approx(180 + steps / 2 + 31 + 97 * 2.35)
    with_sam2 = 50 * (250 * 0.179 + 50 * 0.146)
    assert training_hours(SETTINGS, 50, True, 0) * 3600 == pytest.approx(180 + with_sam2 + 31)


def test_a_cpu_predicts_eight_tiles_in_eight_mirrored_passes():
    idle = {**SETTINGS, "device": "cpu", "iterations": 0, "val_iterations": 0}
    assert training_hours(idle, 1, False, 1) * 3600 == pytest.approx(30 + 31 + 64 * 9.83)
    assert "two CPU cores: 93.2 s a step" in basis("cpu")
