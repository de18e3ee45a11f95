"""Baseline nnU-Net trained by its own trainer, then a hybrid that starts from it; all by nnU-Net's commands.

All hybrids have SAM2's features in the decoder as well as its masks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.end_to_end
CPU = ("-device", "cpu")
SMALL = ("--patch-size", "24", "32", "32", "--batch-size", "2", "--base-features", "8", "--max-features", "32")
SHORT = (
    "feature_fusion=true", "sam2_image_size=64", "num_epochs=1", "num_iterations_per_epoch=2",
    "num_val_iterations_per_epoch=1",
)  # fmt: skip
STANDING_STILL = "initial_lr=1e-300"
"""So low a learning rate changes no number in float32: what is saved is step 0."""
TRAINERS = Path(__file__).parents[2] / "experiments" / "trainers"
PLANS = {"PlainConvUNet": "nnUNetPlans", "ResEnc M": "nnUNetResEncUNetMPlans", "ResEnc L": "nnUNetResEncUNetLPlans"}


@pytest.fixture(scope="module")
def small(planned) -> Callable[[str], str]:
    """Plans of a kind with the configuration `small`, made when they are asked for."""

    @cache
    def plan(kind: str) -> str:
        plans = PLANS[kind]
        if "ResEnc" in kind:
            planned.run("nnUNetv2_plan_experiment", "-d", "900", "-pl", f"nnUNetPlannerResEnc{kind[-1]}")
        planned.run("autosam2", "configure", "900", "--name", "small", "-p", plans, *SMALL, *SHORT, STANDING_STILL)
        return plans

    return plan


@pytest.fixture(scope="module")
def with_short(planned):
    """`planned`, where nnU-Net finds nnUNetTrainerShort."""
    of_trainers = {"nnUNet_extTrainer": str(TRAINERS), "EXPERIMENT_SEED": "0"}
    return replace(planned, environment={**planned.environment, **of_trainers})


@pytest.fixture(scope="module")
def baseline(with_short, small) -> Callable[[str], Path]:
    """Results folder of nnUNetTrainer with such plans, trained when it is asked for."""

    @cache
    def train(kind: str) -> Path:
        plans = small(kind)
        with_short.run("nnUNetv2_train", "900", "small", "0", "-tr", "nnUNetTrainerShort", "-p", plans, *CPU)
        trained = with_short.root / "results" / "Dataset900_Phantom" / f"nnUNetTrainerShort__{plans}__small"
        return trained.rename(trained.with_name(f"nnUNetTrainer__{plans}__small"))

    return train


@pytest.mark.parametrize("kind", ["PlainConvUNet", pytest.param("ResEnc M", marks=pytest.mark.slow)])
def test_a_hybrid_starts_as_the_trained_nnunet(
    planned, with_short, baseline, images: Path, tmp_path: Path, kind: str
) -> None:
    trainer, start = "nnUNetTrainerAutoSAM2_OnBaseline", baseline(kind)
    output = planned.run("nnUNetv2_train", "900", "small", "0", "-tr", trainer, "-p", PLANS[kind], *CPU)
    assert f"The backbone starts from {start / 'fold_0' / 'checkpoint_final.pth'}" in output
    hybrid = start.with_name(f"{trainer}__{PLANS[kind]}__small")
    expected = with_short.probabilities(start, images, tmp_path / "baseline")
    found = planned.probabilities(hybrid, images, tmp_path / "hybrid")
    assert list(found) == list(expected) == ["phantom_001.npz", "phantom_002.npz"]
    for name, ours in found.items():
        assert np.std(expected[name]) > 1e-3
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=1e-5)
    assert {"autosam2_progress.csv", "autosam2_progress.png"} <= {path.name for path in (hybrid / "fold_0").iterdir()}
    assert "Pseudo dice of UNet alone" in output
    assert "SAM2's weight [0.0, 0.0, 0.0]" in output


@pytest.mark.parametrize(
    ("kind", "fold"),
    [("PlainConvUNet", "0"), *(pytest.param("ResEnc M", fold, marks=pytest.mark.slow) for fold in ("0", "all"))],
)
def test_an_upgrade_leaves_the_trained_nnunet_as_it_is(
    planned, with_short, baseline, images: Path, tmp_path: Path, kind: str, fold: str
) -> None:
    """From a checkpoint in another results folder; without SAM2 it predicts what nnU-Net's own command does."""
    start, trainer = baseline(kind), "nnUNetTrainerAutoSAM2_OnBaseline"
    elsewhere = tmp_path / "elsewhere.pth"
    shutil.copy(start / "fold_0" / "checkpoint_final.pth", elsewhere)
    name = f"upgrade_{fold}"
    planned.run(
        "autosam2", "configure", "900", "--base", "small", "--name", name, "-p", PLANS[kind], *SHORT,
        "initial_lr=0.01", "backbone=plans", f"backbone_checkpoint={elsewhere}",
    )  # fmt: skip
    output = planned.run("nnUNetv2_train", "900", name, fold, "-tr", trainer, "-p", PLANS[kind], *CPU)
    assert f"The backbone starts from {elsewhere}" in output
    upgraded = start.with_name(f"{trainer}__{PLANS[kind]}__{name}")
    before = torch.load(elsewhere, weights_only=False)["network_weights"]
    trained = torch.load(upgraded / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
    after = trained["network_weights"]
    assert all(torch.equal(after[f"unet.network.{name}"], tensor) for name, tensor in before.items())
    assert after["fusion.seg_layers.bias"].any()
    states = trained["optimizer_state"]["state"].values()
    assert states
    kernels = {tuple(state["exp_avg"].shape[2:]) for state in states if state["exp_avg"].ndim == 5}
    assert kernels == {(3, 1, 1)}, "those of the features; all of the backbone's are cubes"
    assert after["feature_fusion.levels.0.mix.weight"].any()

    plans = json.loads((upgraded / "plans.json").read_text())
    plans["configurations"][name]["autosam2"]["enable_sam2"] = False
    (upgraded / "plans.json").write_text(json.dumps(plans))
    predicted = []
    for workspace, model, of in ((with_short, start, "0"), (planned, upgraded, fold)):
        folder = tmp_path / model.name
        workspace.run(
            "nnUNetv2_predict_from_modelfolder", "-i", images, "-o", folder, "-m", model, "-f", of, *CPU,
            "--save_probabilities", "-npp", "1", "-nps", "1",
        )  # fmt: skip
        predicted.append({path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))})
        predicted[-1] |= {path.name: np.load(path)["probabilities"].tobytes() for path in sorted(folder.glob("*.npz"))}
    assert len(predicted[0]) == 4
    assert predicted[0] == predicted[1]


def test_an_encoder_from_elsewhere_by_nnunets_own_option(planned, small, baseline, tmp_path: Path) -> None:
    """Of one channel, as self-supervised ones are; SAM2's weights come from where they always do."""
    plans = small("PlainConvUNet")
    trained = torch.load(baseline("PlainConvUNet") / "fold_0" / "checkpoint_final.pth", weights_only=False)
    encoder = {name: x for name, x in trained["network_weights"].items() if name.startswith("encoder.")}
    first = {name: x[:, :1] for name, x in encoder.items() if x.ndim == 5 and x.shape[1] == 4}
    torch.save({"network_weights": {**encoder, **first}}, tmp_path / "encoder.pth")
    trainer = "nnUNetTrainerAutoSAM2_Plans"
    options = ("-tr", trainer, "-p", plans, *CPU, "-pretrained_weights", tmp_path / "encoder.pth")
    said = planned.run("nnUNetv2_train", "900", "small", "2", *options)
    assert f"The backbone's encoder starts from {tmp_path / 'encoder.pth'}." in said
    results = planned.root / "results" / "Dataset900_Phantom" / f"{trainer}__{plans}__small"
    after = torch.load(results / "fold_2" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    for name, tensor in encoder.items():
        expected = tensor[:, :1].expand_as(tensor) / 4 if name in first else tensor
        assert torch.equal(after[f"unet.network.{name}"], expected), name
    shutil.rmtree(results / "fold_2")


@pytest.mark.slow
def test_pretrained_encoders_in_a_benchmark(with_short, small, baseline, tmp_path: Path) -> None:
    small("PlainConvUNet")
    encoder = baseline("PlainConvUNet") / "fold_0" / "checkpoint_final.pth"
    options = ("--folds", "0", "--device", "cpu", "--timed-cases", "1", "--viewer-cases", "0", "-o", tmp_path)
    with_short.run("autosam2", "benchmark", "-d", "900", "-c", "small", "--pretrained", f"own={encoder}", *options)
    record = json.loads((tmp_path / "benchmark.json").read_text())
    titles = ["nnUNetTrainer", "own, without SAM2", "own, with SAM2"]
    assert [model["title"] for model in record["models"]] == titles
    assert all(fold["error"] is None for model in record["models"] for fold in model["folds"])
    logs = [path.read_text() for path in sorted((tmp_path / "logs").glob("*_Plans*"))]
    assert len(logs) == 2
    assert all(f"The backbone's encoder and decoder start from {encoder}." in log for log in logs)


@pytest.mark.slow
def test_a_large_residual_encoder_trains_from_scratch_and_then_from_the_weights_of_another_hybrid(
    planned, small
) -> None:
    """The second by nnU-Net's own option, without SAM2's own weights."""
    plans = small("ResEnc L")
    start = planned.root / "results" / "Dataset900_Phantom" / f"nnUNetTrainerAutoSAM2_Plans__{plans}__small"
    options = ("-tr", "nnUNetTrainerAutoSAM2_Plans", "-p", plans, *CPU)
    planned.run("nnUNetv2_train", "900", "small", "0", *options)
    checkpoint = start / "fold_0" / "checkpoint_final.pth"
    weights = planned.environment.pop("AUTOSAM2_SAM2_WEIGHTS")
    try:
        planned.run("nnUNetv2_train", "900", "small", "1", *options, "-pretrained_weights", checkpoint)
    finally:
        planned.environment["AUTOSAM2_SAM2_WEIGHTS"] = weights
    before, after = (
        torch.load(path, weights_only=False)["network_weights"]
        for path in (checkpoint, start / "fold_1" / "checkpoint_final.pth")
    )
    assert any(name.startswith("unet.network.encoder.stages.0.blocks") for name in before)
    for name, tensor in before.items():
        if ".seg_layers." not in name:  # which nnU-Net never transfers
            assert torch.equal(after[name], tensor), name


class TestRefused:
    def refused(self, planned, configuration: str) -> str:
        before = set((planned.root / "results").rglob("*"))
        command = ("nnUNetv2_train", "900", configuration, "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
        output = planned.run(*command, expected=1)
        (error,) = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert "Traceback" not in output
        assert set((planned.root / "results").rglob("*")) == before
        return error

    @pytest.mark.slow
    def test_a_checkpoint_of_other_plans(self, planned, small, baseline) -> None:
        small("PlainConvUNet")
        path = baseline("ResEnc M") / "fold_0" / "checkpoint_final.pth"
        planned.run(
            "autosam2", "configure", "900", "--base", "small", "--name", "other", "backbone=plans",
            f"backbone_checkpoint={path}",
        )  # fmt: skip
        error = self.refused(planned, "other")
        assert f"{path} is of other plans" in error
        assert "architecture.network_class_name: " in error
        assert "ResidualEncoderUNet' there" in error

    def test_no_baseline_yet(self, planned) -> None:
        planned.run(
            "autosam2", "configure", "900", "--base", "tiny", "--name", "alone", "backbone=plans",
            "backbone_checkpoint=auto",
        )  # fmt: skip
        error = self.refused(planned, "alone")
        assert "nnUNetTrainer__nnUNetPlans__alone" in error
        assert "nnUNetv2_train Dataset900_Phantom alone 0 -p nnUNetPlans" in error

    @pytest.mark.slow
    def test_no_checkpoint_at_all(self, planned, small) -> None:
        small("PlainConvUNet")
        for name in ("missing", "broken"):
            (planned.root / f"{name}.pth").write_bytes(b"nothing")
            planned.run(
                "autosam2", "configure", "900", "--base", "small", "--name", name, "backbone=plans",
                f"backbone_checkpoint={planned.root / name}.pth",
            )  # fmt: skip
            if name == "missing":
                (planned.root / "missing.pth").unlink()
            error = self.refused(planned, name)
            assert f"{name}.pth" in error
            assert "Expected a checkpoint that nnU-Net has written." in error


@pytest.mark.slow
def test_ablations_of_an_upgrade(with_short, baseline, tmp_path: Path) -> None:
    baseline("PlainConvUNet")
    options = ("--folds", "0", "--device", "cpu", "--timed-cases", "1", "--viewer-cases", "0", "-o", tmp_path)
    with_short.run("autosam2", "benchmark", "-d", "900", "-c", "small", "--ablations", "alone", "features", *options)
    record = json.loads((tmp_path / "benchmark.json").read_text())
    titles = ["nnUNetTrainer", "nnU-Net, trained on without SAM2", "SAM2's features"]
    assert [model["title"] for model in record["models"]] == titles
    for model in record["models"]:
        (fold,) = model["folds"]
        assert fold["error"] is None
        assert fold["cases"]
