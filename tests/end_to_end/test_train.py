"""nnUNetv2_train: a whole run, steps that are not finite, full disks, early stopping, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_autosam2.trainers.run_manifest import weights_checksum

pytestmark = pytest.mark.end_to_end
TRAIN = ("nnUNetv2_train", "900")
CPU = ("-device", "cpu")


def checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


def test_results_hold_all_that_a_prediction_needs(trained: Path) -> None:
    block = json.loads((trained / "plans.json").read_text())["configurations"]["tiny"]["autosam2"]
    final = checkpoint(trained / "fold_0" / "checkpoint_final.pth")
    assert block["region_based"] is True
    assert block["rgb_channels"] == [3, 1, 2]  # FLAIR, T1ce, T2
    assert block["sam2_image_size"] == 64
    assert final["trainer_name"] == "nnUNetTrainerAutoSAM2"
    assert any(name.startswith("sam2_branch.sam2.image_encoder") for name in final["network_weights"])
    assert (trained / "fold_0" / "validation" / "summary.json").is_file()


def test_the_manifest_tells_what_was_trained_from_what(planned, trained: Path) -> None:
    (run,) = planned.runs(trained / "fold_0")
    asked = {"dataset": "Dataset900_Phantom", "trainer": "nnUNetTrainerAutoSAM2", "configuration": "tiny", "fold": 0}
    assert {key: run[key] for key in asked} == asked
    assert (run["task"], run["epochs_before"], run["epochs"], run["device"]) == ("training", 0, 2, "cpu")
    weights = Path(planned.environment["AUTOSAM2_SAM2_WEIGHTS"])
    assert run["started_from"] == {"sam2": {"file": str(weights), "sha256": sha256(weights.read_bytes()).hexdigest()}}
    final = checkpoint(trained / "fold_0" / "checkpoint_final.pth")
    assert run["weights_sha256"] == [weights_checksum(final["network_weights"])]
    plans = json.loads((trained / "plans.json").read_text())
    assert run["autosam2"] == plans["configurations"]["tiny"]["autosam2"]


def test_sam2_starts_from_the_checkpoint_and_its_encoder_stays_as_it_is(planned, trained: Path) -> None:
    start = torch.load(planned.root / "sam2_weights.pt", weights_only=True)["model"]
    weights = checkpoint(trained / "fold_0" / "checkpoint_final.pth")["network_weights"]
    changed = {n for n in start if (k := f"sam2_branch.sam2.{n}") in weights and not torch.equal(start[n], weights[k])}
    assert not any(name.startswith(("image_encoder", "no_mem_embed")) for name in changed)
    assert any(name.startswith("sam_mask_decoder") for name in changed)
    assert any(name.startswith("sam_prompt_encoder") for name in changed)


def test_frozen_parameters_are_not_in_the_optimizer(trained: Path) -> None:
    final = checkpoint(trained / "fold_0" / "checkpoint_final.pth")
    shapes = sorted(tuple(state["exp_avg"].shape) for state in final["optimizer_state"]["state"].values())
    names = final["network_weights"]
    encoder = [n for n in names if n.startswith("sam2_branch.sam2.image_encoder")]
    assert len(shapes) < len(names) - len(encoder)
    assert tuple(names["sam2_branch.sam2.image_encoder.trunk.pos_embed"].shape) not in shapes


@pytest.mark.slow
def test_steps_that_are_not_finite_are_left_out(extended) -> None:
    output = extended.run(*TRAIN, "tiny", "2", "-tr", "nnUNetTrainerAutoSAM2_SometimesNaN", *CPU)
    folder = extended.results("nnUNetTrainerAutoSAM2_SometimesNaN", "tiny") / "fold_2"
    final = checkpoint(folder / "checkpoint_final.pth")
    assert "WARNING: 1 of 2 steps were skipped" in output
    assert all(tensor.isfinite().all() for tensor in final["network_weights"].values())
    assert np.isfinite(final["logging"]["train_losses"]).all()


def test_ten_steps_in_a_row_that_are_not_finite_end_the_training_and_its_checkpoints_stay_good(extended) -> None:
    trainer = "nnUNetTrainerAutoSAM2_NaNFromSecondEpoch"
    extended.run(
        "autosam2", "configure", "900", "--base", "tiny", "--name", "nan", "num_epochs=20",
        "num_iterations_per_epoch=5", "enable_sam2=false",
    )  # fmt: skip
    output = extended.run(*TRAIN, "nan", "2", "-tr", trainer, *CPU, expected=1)
    folder = extended.results(trainer, "nan") / "fold_2"
    assert output.strip().splitlines()[-1].startswith("Error: 10 steps in a row")
    assert "Traceback" not in output
    assert not (folder / "checkpoint_final.pth").exists()
    best = checkpoint(folder / "checkpoint_best.pth")
    assert all(tensor.isfinite().all() for tensor in best["network_weights"].values())


def test_a_step_that_runs_out_of_memory_is_tried_again_in_smaller_chunks(extended) -> None:
    trainer = "nnUNetTrainerAutoSAM2_RoomForTwoSlices"
    extended.run("autosam2", "configure", "900", "--base", "tiny", "--name", "memory", "num_epochs=1")
    output = extended.run(*TRAIN, "memory", "2", "-tr", trainer, *CPU)
    assert output.count("Out of memory: SAM2's mask decoder goes on with 2 slices at once.") == 1
    assert "skipped" not in output
    assert (extended.results(trainer, "memory") / "fold_2" / "checkpoint_final.pth").is_file()


def test_a_step_that_runs_out_of_memory_after_its_gradients_were_unscaled_is_tried_again(extended) -> None:
    trainer = "nnUNetTrainerAutoSAM2_NoRoomForTheStep"
    extended.run("autosam2", "configure", "900", "--base", "tiny", "--name", "step", "num_epochs=1")
    output = extended.run(*TRAIN, "step", "2", "-tr", trainer, *CPU)
    assert output.count("Out of memory: SAM2's mask decoder goes on") == 1
    final = checkpoint(extended.results(trainer, "step") / "fold_2" / "checkpoint_final.pth")
    # Whatever the scaler itself has skipped: the step that was tried again is not lost.
    skipped = int(found[1]) if (found := re.search(r"WARNING: (\d) of 2 steps were skipped", output)) else 0
    assert {int(state["step"]) for state in final["optimizer_state"]["state"].values()} == {2 - skipped}
    assert final["grad_scaler_state"]["scale"] == 2.0 ** (10 - skipped)
    assert skipped < 2


@pytest.mark.parametrize(("kind", "num_epochs"), [("NothingAtAll", 15), ("NothingSometimes", 5)])
def test_an_undefined_pseudo_dice_is_no_evidence(extended, kind: str, num_epochs: int) -> None:
    """With a patience of one epoch, which the 13th of 15, the first that counts, would have exhausted."""
    trainer = f"nnUNetTrainerAutoSAM2_{kind}"
    extended.run(
        "autosam2", "configure", "900", "--base", "tiny", "--name", kind, "enable_sam2=false",
        f"num_epochs={num_epochs}", "num_iterations_per_epoch=1", "early_stopping_patience=1", "initial_lr=0.1",
    )  # fmt: skip
    output = extended.run(*TRAIN, kind, "2", "-tr", trainer, *CPU)
    folder = extended.results(trainer, kind) / "fold_2"
    log = checkpoint(folder / "checkpoint_final.pth")["logging"]
    best = checkpoint(folder / "checkpoint_best.pth")
    if kind == "NothingAtAll":
        assert output.count("The pseudo Dice of this epoch is undefined") == num_epochs
        assert "Stopped before epoch" not in output
        assert len(log["mean_fg_dice"]) == num_epochs
        assert best["current_epoch"] == 1, "as of nnU-Net, the first one"
    else:
        assert len(log["mean_fg_dice"]) == num_epochs, "too few for patience to count"
        assert np.isnan(log["mean_fg_dice"][0])
        assert np.isfinite(log["ema_fg_dice"][1:]).all()
        assert log["ema_fg_dice"][3] == log["ema_fg_dice"][2]
        assert best["current_epoch"] > 1
        assert np.isfinite(best["_best_ema"])


def test_a_resumed_run_trains_with_the_parameters_of_now(planned) -> None:
    settings = ("enable_sam2=false", "num_iterations_per_epoch=1")
    planned.run("autosam2", "configure", "900", "--base", "tiny", "--name", "resumed", "num_epochs=2", *settings)
    command = (*TRAIN, "resumed", "2", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    planned.run(*command)
    folder = planned.results("nnUNetTrainerAutoSAM2", "resumed") / "fold_2"
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")

    plans_file = planned.root / "preprocessed" / "Dataset900_Phantom" / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    block = plans["configurations"]["resumed"]["autosam2"]
    block.update(num_epochs=4, initial_lr=0.02, weight_decay=0.5, sam2_checkpoint="nowhere.pt")
    plans_file.write_text(json.dumps(plans))
    output = planned.run(*command, "--c")
    for line in (
        "num_epochs was 2 and is 4 now, which counts from here on.",
        "initial_lr was 0.001 and is 0.02 now, which counts from here on.",
        "weight_decay was 0.0001 and is 0.5 now, which counts from here on.",
        "sam2_checkpoint was 'auto' and is 'nowhere.pt' now, which no longer matters",
    ):
        assert output.count(line) == 1
    final = checkpoint(folder / "checkpoint_final.pth")
    assert [(run["epochs_before"], run["epochs"]) for run in planned.runs(folder)] == [(0, 2), (2, 4)]
    (group,) = final["optimizer_state"]["param_groups"]
    oracle = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.OneCycleLR(oracle, max_lr=0.02, total_steps=4)
    expected = []
    for _ in range(4):
        expected.append(oracle.param_groups[0]["lr"])
        oracle.step()
        schedule.step() if len(expected) < 4 else None
    assert group["weight_decay"] == 0.5
    assert final["logging"]["lrs"][2:] == pytest.approx(expected[2:])
    assert final["init_args"]["plans"]["configurations"]["resumed"]["autosam2"]["initial_lr"] == 0.02

    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    block.update(enable_sam2=True)
    plans_file.write_text(json.dumps(plans))
    before = sorted(folder.iterdir())
    refused = planned.run(*command, "--c", expected=1)
    assert "enable_sam2: False there, True here" in refused.strip().splitlines()[-1]
    assert "Traceback" not in refused
    assert sorted(folder.iterdir()) == before


def test_a_checkpoint_is_loaded_by_whatever_name_nnunet_gives_it(planned, trained: Path) -> None:
    path = trained / "fold_0" / "checkpoint_final.pth"
    said = planned.run_code(f"""if __name__ == "__main__":
        import torch
        from pathlib import Path
        from nnunetv2.run.run_training import get_trainer_from_args
        trainer = get_trainer_from_args("900", "tiny", 0, "nnUNetTrainerAutoSAM2", device=torch.device("cpu"))
        trainer.load_checkpoint(checkpoint=Path(r"{path}"))
        print("epoch", trainer.current_epoch)""")
    assert said.strip().endswith("epoch 2")


def test_pretrained_weights_of_other_labels(planned, trained: Path) -> None:
    """Regions there, exclusive labels here; what depends on the labels starts afresh, as in nnU-Net's own networks."""
    preprocessed = planned.root / "preprocessed"
    other = preprocessed / "Dataset901_Labels"
    shutil.copytree(preprocessed / "Dataset900_Phantom", other)
    plans = json.loads((other / "nnUNetPlans.json").read_text())
    plans["dataset_name"] = other.name
    plans["configurations"]["tiny"]["autosam2"]["num_epochs"] = 1
    (other / "nnUNetPlans.json").write_text(json.dumps(plans))
    dataset = json.loads((other / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "oedema": 1, "core": 2, "enhancing": 3}
    del dataset["regions_class_order"]
    (other / "dataset.json").write_text(json.dumps(dataset))
    start = trained / "fold_0" / "checkpoint_final.pth"
    command = ("nnUNetv2_train", "901", "tiny", "1", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    planned.run(*command, "-pretrained_weights", start)
    results = planned.root / "results" / other.name
    before = checkpoint(start)["network_weights"]
    (path,) = results.glob("*/fold_1/checkpoint_final.pth")
    after = checkpoint(path)["network_weights"]
    different = [name for name in before if before[name].shape != after[name].shape]
    assert different
    assert all(".seg_layers." in name for name in different)
    encoder = [name for name in before if "image_encoder" in name]
    assert all(torch.equal(before[name], after[name]) for name in encoder)

    shutil.rmtree(results)
    unfit = planned.root / "unfit.pth"
    for name, fault in (
        ("encoder.weight", "is for a network that nnU-Net planned: set backbone = plans"),
        ("unet.weight", "does not fit: Key "),
    ):
        torch.save({"network_weights": {name: torch.zeros(1)}}, unfit)
        said = planned.run(*command, "-pretrained_weights", unfit, expected=1)
        assert f"Error: -pretrained_weights {unfit} {fault}" in said
        assert "Traceback" not in said
        assert not results.exists()


def test_no_memory_for_a_single_slice_is_told_in_one_line(loading) -> None:
    output = loading.run(*TRAIN, "tiny", "2", "-tr", "nnUNetTrainerAutoSAM2_NoRoom", *CPU, expected=1)
    assert output.strip().splitlines()[-1].startswith("Error: Out of memory. Lower sam2_image_size")
    assert "Traceback" not in output


def test_a_full_disk_and_a_damaged_checkpoint_are_told_and_cost_nothing(planned) -> None:
    """The size of a file is limited in the place of the disk's."""
    planned.run("autosam2", "configure", "900", "--base", "tiny", "--name", "full", "num_epochs=2", "enable_sam2=false")
    command = (*TRAIN, "full", "2", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    planned.run(*command)
    folder = planned.results("nnUNetTrainerAutoSAM2", "full") / "fold_2"
    final, best = folder / "checkpoint_final.pth", folder / "checkpoint_best.pth"
    final.rename(folder / "checkpoint_latest.pth")
    before = (folder / "checkpoint_latest.pth").read_bytes()
    assert len(before) > 2 * 2**20

    limited = planned.run("bash", "-c", f"ulimit -f 2048; exec {' '.join(command)} --c", expected=1)
    assert limited.strip().splitlines()[-1].startswith("Error: ")
    assert "cannot be written" in limited
    assert "Traceback" not in limited
    assert sorted(path.name for path in folder.glob("*checkpoint*")) == [best.name, "checkpoint_latest.pth"]
    assert (folder / "checkpoint_latest.pth").read_bytes() == before

    (folder / "checkpoint_latest.pth").write_bytes(before[: len(before) // 2])
    refused = planned.run(*command, "--c", expected=1)
    assert "Traceback" not in refused
    assert f"{folder / 'checkpoint_latest.pth'}" in refused
    assert "Remove it to go on from checkpoint_best.pth." in refused
    (folder / "checkpoint_latest.pth").unlink()
    planned.run(*command, "--c")
    assert final.exists()


@pytest.mark.slow
def test_early_stopping_ends_the_run_with_the_best_weights_and_stays_ended(planned) -> None:
    """With a learning rate of almost nothing, noise alone decides; patience 1 ends it soon after it counts."""
    planned.run(
        "autosam2", "configure", "900", "--base", "tiny", "--name", "stopped",
        "num_epochs=40", "early_stopping_patience=1", "initial_lr=1e-12", "num_iterations_per_epoch=1",
        "enable_sam2=false",
    )  # fmt: skip
    command = (*TRAIN, "stopped", "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU)
    output = planned.run(*command)
    folder = planned.results("nnUNetTrainerAutoSAM2", "stopped") / "fold_0"
    final, best = checkpoint(folder / "checkpoint_final.pth"), checkpoint(folder / "checkpoint_best.pth")
    history = final["logging"]["ema_fg_dice"]
    assert "Stopped before epoch" in output
    assert 35 <= len(history) < 40  # the 35th, of one step, is the first below a tenth of the peak
    assert max(history[:-1]) >= history[-1]
    for name, tensor in best["network_weights"].items():
        assert torch.equal(tensor, final["network_weights"][name]), name

    assert "Stopped before epoch" in planned.run(*command, "--c")
    assert checkpoint(folder / "checkpoint_final.pth")["logging"]["ema_fg_dice"] == history


@pytest.mark.parametrize(
    "trainer",
    [
        "nnUNetTrainerAutoSAM2_SAM2Only",
        pytest.param("nnUNetTrainerAutoSAM2_UNetOnly", marks=pytest.mark.slow),
        pytest.param("nnUNetTrainerAutoSAM2_TestRun", marks=pytest.mark.slow),
    ],
)
def test_variants_train_and_predict(planned, images: Path, tmp_path: Path, trainer: str) -> None:
    planned.run(*TRAIN, "tiny", "1", "-tr", trainer, *CPU)
    planned.run(
        "nnUNetv2_predict", "-d", "900", "-c", "tiny", "-tr", trainer, "-f", "1", *CPU,
        "-i", images, "-o", tmp_path, "--disable_tta", "-npp", "1", "-nps", "1",
    )  # fmt: skip
    assert len(list(tmp_path.glob("*.nii.gz"))) == 2


def test_val_alone_repeats_the_validation_without_weights_of_sam2(planned, trained: Path) -> None:
    validation = trained / "fold_0" / "validation"
    before = json.loads((validation / "summary.json").read_text())["mean"]
    shutil.rmtree(validation)
    weights = planned.environment.pop("AUTOSAM2_SAM2_WEIGHTS")
    try:
        planned.run(*TRAIN, "tiny", "0", "-tr", "nnUNetTrainerAutoSAM2", *CPU, "--val")
    finally:
        planned.environment["AUTOSAM2_SAM2_WEIGHTS"] = weights
    assert json.loads((validation / "summary.json").read_text())["mean"] == before


class TestRefused:
    """One line, exit code 1, no traceback, nothing written."""

    def refused(self, planned, configuration: str, *, trainer: str = "nnUNetTrainerAutoSAM2") -> str:
        before = set((planned.root / "results").rglob("*"))
        output = planned.run(*TRAIN, configuration, "2", "-tr", trainer, *CPU, expected=1)
        errors = [line for line in output.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1
        assert "Traceback" not in output
        assert set((planned.root / "results").rglob("*")) == before
        return errors[0]

    @pytest.fixture
    def edited(self, planned):
        """Writes configurations into the plans by hand, as `autosam2 configure` would refuse to."""
        path = planned.root / "preprocessed" / "Dataset900_Phantom" / "nnUNetPlans.json"
        original = path.read_text()

        def add(name: str, **settings) -> None:
            plans = json.loads(original)
            plans["configurations"][name] = {"inherits_from": "tiny", **settings}
            path.write_text(json.dumps(plans, indent=4))

        yield add
        path.write_text(original)

    def test_unknown_key(self, planned, edited) -> None:
        edited("bad", autosam2={"slice_fractoin": 0.5})
        assert "slice_fractoin" in (error := self.refused(planned, "bad"))
        assert "slice_fraction?" in error

    @pytest.mark.slow
    def test_impossible_value(self, planned, edited) -> None:
        edited("bad", autosam2={"slice_fraction": 3})
        assert "slice_fraction" in self.refused(planned, "bad")

    @pytest.mark.slow
    def test_wrong_number_of_class_weights(self, planned, edited) -> None:
        edited("bad", autosam2={"sam2_checkpoint": "random", "class_weights": [1, 2]})
        assert "class_weights" in self.refused(planned, "bad")
        edited("worse", autosam2={"sam2_checkpoint": "random", "rgb_channels": [0, 1, 9]})
        assert "channel numbers from 0 to 3" in self.refused(planned, "worse")

    def test_two_dimensional_configuration(self, planned, edited) -> None:
        edited("bad", patch_size=[32, 32])
        assert "2D" in self.refused(planned, "bad")

    @pytest.mark.slow
    def test_missing_weights(self, planned, edited) -> None:
        edited("bad", autosam2={"sam2_checkpoint": str(planned.root / "nowhere.pt")})
        assert "nowhere.pt" in (error := self.refused(planned, "bad"))
        assert "sam2_checkpoint" in error

    def test_no_weights_anywhere(self, planned) -> None:
        weights = planned.environment.pop("AUTOSAM2_SAM2_WEIGHTS")
        try:
            error = self.refused(planned, "tiny")
        finally:
            planned.environment["AUTOSAM2_SAM2_WEIGHTS"] = weights
        for way in ("sam2_checkpoint", "AUTOSAM2_SAM2_WEIGHTS", "hub"):
            assert way in error

    def test_another_configuration_in_the_results_of_other_folds(self, planned, trained: Path, edited) -> None:
        path = planned.root / "preprocessed" / "Dataset900_Phantom" / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        plans["configurations"]["tiny"]["autosam2"]["tumor_blend"] = 0.9
        path.write_text(json.dumps(plans, indent=4))
        trained_plans = (trained / "plans.json").read_bytes()
        output = planned.run(*TRAIN, "tiny", "3", "-tr", "nnUNetTrainerAutoSAM2", *CPU, expected=1)
        assert "tumor_blend: 0.5 there, 0.9 here" in output
        assert "Traceback" not in output
        assert (trained / "plans.json").read_bytes() == trained_plans


@pytest.mark.slow
def test_two_processes_with_a_loss_that_is_not_finite_in_one_and_more_processes_than_cases(extended) -> None:
    """Fold 2 has one case to validate; `--val` is the first thing that these two processes predict together.

    The first alone knows how the training went, and both close the same gate for it.
    """
    trainer, script = "nnUNetTrainerAutoSAM2_TwoCPUs", Path(__file__).with_name("two_processes.py")
    extended.run("autosam2", "configure", "900", "--base", "tiny", "--name", "two", "num_epochs=1")
    folder = extended.results(trainer, "two") / "fold_2"
    for flags in ((), ("--val",)):
        shutil.rmtree(folder / "validation", ignore_errors=True)
        output = extended.run(script, "900", "two", "2", trainer, *flags)
        for rank in (0, 1):
            assert f"Gates of process {rank}: [True, False, False]" in output
        assert (folder / "validation" / "summary.json").is_file()
    losses = checkpoint(folder / "checkpoint_final.pth")["logging"]["train_losses"]
    assert np.isfinite(losses).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(planned) -> None:
    planned.run(*TRAIN, "tiny", "1", "-tr", "nnUNetTrainerAutoSAM2", "-num_gpus", "2")
    folder = planned.results("nnUNetTrainerAutoSAM2", "tiny") / "fold_1"
    final = checkpoint(folder / "checkpoint_final.pth")
    assert final["current_epoch"] == 2
    assert np.isfinite(final["logging"]["train_losses"]).all()
    assert (folder / "validation" / "summary.json").is_file()
