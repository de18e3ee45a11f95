"""The trainer in this process, with nnU-Net's planned network of some thousand weights, mostly without SAM2.

Whole trainings, with SAM2 and by nnU-Net's own command, are in tests/end_to_end/test_train.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_autosam2.errors import ConfigurationError, TrainingError
from nnunet_autosam2.support.checkpoint import read_nnunet_checkpoint
from nnunet_autosam2.trainers import (
    nnUNetTrainerAutoSAM2,
    nnUNetTrainerAutoSAM2_5epochs,
    nnUNetTrainerAutoSAM2_TestRun,
    nnUNetTrainerAutoSAM2_UNetOnly,
)
from nnunet_autosam2.trainers.nnUNetTrainerAutoSAM2 import PatienceExhausted

CPU = torch.device("cpu")
FINAL = "checkpoint_final.pth"
Make = Callable[..., nnUNetTrainerAutoSAM2]


@pytest.fixture
def make(tmp_path: Path, plans: dict, dataset_json: dict, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A trainer of the configuration `tiny`, with parameters of its own."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / plans["dataset_name"] / "nnUNetPlans_3d_fullres"
    folder.mkdir(parents=True)
    (folder / "case_1.b2nd").touch()

    def build(
        trainer: type[nnUNetTrainerAutoSAM2] = nnUNetTrainerAutoSAM2_UNetOnly, fold: int = 0, **parameters: object
    ) -> nnUNetTrainerAutoSAM2:
        own = json.loads(json.dumps(plans))
        own["configurations"]["tiny"]["autosam2"] |= parameters
        return trainer({**own, "continue_training": False}, "tiny", fold, dataset_json, CPU)

    return build


def results(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results").rglob("*"))


FROZEN = {"backbone": "plans", "backbone_checkpoint": "auto", "freeze_backbone": True}


class TestConfiguration:
    def resolve(self, plans: dict, dataset_json: dict, **changes: object):
        plans["configurations"]["tiny"] |= changes
        return nnUNetTrainerAutoSAM2.resolve_config(plans, "tiny", dataset_json)

    def test_what_the_data_set_decides(self, plans, dataset_json):
        config = self.resolve(plans, dataset_json, autosam2={})
        assert config.region_based
        assert config.rgb_channels == (3, 1, 2)  # FLAIR, T1ce, T2
        labels = {"background": 0, "a": 1, "b": 2}
        alone = self.resolve(plans, {**dataset_json, "labels": labels, "channel_names": {"0": "CT"}}, autosam2={})
        assert not alone.region_based
        assert alone.rgb_channels == (0, 0, 0)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"patch_size": [32, 32], "autosam2": {}},
                r"^AutoSAM2's own UNet needs volumes, and tiny is 2D\. Train 3d_fullres",
            ),
            (
                {"autosam2": {"slice_fractoin": 0.5}},
                r"slice_fractoin is not .* Did you mean slice_fraction\?",
            ),
            (
                {"autosam2": {**FROZEN, "enable_sam2": False}},
                r"^freeze_backbone = true without SAM2 leaves nothing to train\.$",
            ),
            ({"autosam2": {"class_weights": [1, 2]}}, r"class_weights = .* 3 numbers"),
            ({"autosam2": {"rgb_channels": [0, 1, 4]}}, r"rgb_channels = .* channel numbers from 0 to 3"),
        ],
    )
    def test_refused(self, plans, dataset_json, changes: dict, message: str):
        with pytest.raises(ConfigurationError, match=message):
            self.resolve(plans, dataset_json, **changes)

    def test_nnunet_reads_one_line_and_no_traceback(self, make: Make, tmp_path: Path):
        with pytest.raises(SystemExit, match=r"^Error: slice_fraction = .* is not possible: .*from 0 to 1\.$"):
            make(slice_fraction=3)
        assert results(tmp_path) == []


def test_parameters_are_written_into_the_plans_from_which_a_prediction_rebuilds_the_network(make: Make):
    trainer = make(initial_lr=0.5, weight_decay=0.25, num_epochs=7)
    block = trainer.plans_manager.plans["configurations"]["tiny"]["autosam2"]
    assert block == trainer.config.to_dict()
    assert not block["enable_sam2"]  # of the trainer's class
    assert (trainer.initial_lr, trainer.weight_decay, trainer.num_epochs) == (0.5, 0.25, 7)


def test_lengths_are_nnunets_own_unless_named(make: Make):
    with_names, own, test_run = (
        make(trainer)
        for trainer in (nnUNetTrainerAutoSAM2_5epochs, nnUNetTrainerAutoSAM2, nnUNetTrainerAutoSAM2_TestRun)
    )
    assert (with_names.num_epochs, with_names.num_iterations_per_epoch) == (5, 250)
    assert (own.num_epochs, own.num_iterations_per_epoch, own.num_val_iterations_per_epoch) == (1000, 250, 50)
    assert (test_run.num_epochs, test_run.num_iterations_per_epoch, test_run.num_val_iterations_per_epoch) == (2, 10, 2)


@pytest.fixture
def trainer(make: Make) -> nnUNetTrainerAutoSAM2:
    made = make(num_epochs=2, num_iterations_per_epoch=3, initial_lr=1e-2)
    made.initialize()
    made.set_deep_supervision_enabled(True)
    return made


def make_batch(trainer: nnUNetTrainerAutoSAM2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    scales = trainer._get_deep_supervision_scales()
    assert scales is not None
    target = (torch.rand(2, 3, 24, 32, 32, generator=generator) > 0.7).to(torch.int16)
    sizes = [tuple(round(scale * side) for scale, side in zip(of, (24, 32, 32), strict=True)) for of in scales]
    return {
        "data": torch.randn(2, 4, 24, 32, 32, generator=generator),
        "target": [torch.nn.functional.interpolate(target.float(), size).to(torch.int16) for size in sizes],
    }


def weights(trainer: nnUNetTrainerAutoSAM2) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.autosam2.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class TestSteps:
    def test_a_step_trains_and_moves_the_learning_rate(self, trainer):
        before, rate = weights(trainer), trainer.optimizer.param_groups[0]["lr"]
        result = trainer.train_step(make_batch(trainer))
        assert np.isfinite(result["loss"])
        assert not same(before, weights(trainer))
        assert trainer.optimizer.param_groups[0]["lr"] > rate  # it warms up
        assert trainer.skipped_steps.total == 0

    def test_a_step_that_is_not_finite_changes_nothing_and_is_reported(self, trainer, capsys):
        before = weights(trainer)
        batch = make_batch(trainer)
        batch["data"][0, 0, 0, 0, 0] = torch.nan
        outputs = [trainer.train_step(batch)]
        assert same(before, weights(trainer))
        outputs.append(trainer.train_step(make_batch(trainer)))
        assert not same(before, weights(trainer))
        trainer.on_train_epoch_end(outputs)
        assert "WARNING: 1 of 2 steps" in capsys.readouterr().out
        assert np.isfinite(trainer.logger.get_value("train_losses", step=0))

    def test_validation_counts_as_nnunets_own(self, trainer):
        trainer.network.eval()
        with torch.no_grad():
            ours = trainer.validation_step(make_batch(trainer))
            theirs = nnUNetTrainer.validation_step(trainer, make_batch(trainer))
        assert ours.keys() == theirs.keys()  # without SAM2 there are no halves
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


class TestCheckpoints:
    def test_what_is_saved_is_loaded(self, make: Make, trainer, tmp_path: Path, capsys):
        trainer.train_step(make_batch(trainer))
        trainer.on_train_epoch_end([{"loss": np.float32(1)}])
        trainer.save_checkpoint(str(tmp_path / FINAL))
        resumed = make(num_epochs=2, num_iterations_per_epoch=3, initial_lr=1e-3)
        capsys.readouterr()
        resumed.load_checkpoint(str(tmp_path / FINAL))
        assert same(weights(trainer), weights(resumed))
        assert "initial_lr was 0.01" in capsys.readouterr().out
        group = resumed.optimizer.param_groups[0]
        assert group["lr"] < 1e-3  # the parameters of now count

    def test_another_structure_is_refused_and_leaves_nothing(self, make: Make, trainer, tmp_path: Path):
        trainer.save_checkpoint(str(tmp_path / FINAL))
        before = results(tmp_path)
        other = make(backbone="autosam2", fold=1)
        with pytest.raises(SystemExit, match=r"^Error: .*backbone: .* there, .* here"):
            other.load_checkpoint(str(tmp_path / FINAL))
        assert results(tmp_path) == before

    def test_a_damaged_one_names_those_that_are_good(self, make: Make, trainer, tmp_path: Path):
        trainer.save_checkpoint(str(tmp_path / "checkpoint_best.pth"))
        (tmp_path / FINAL).write_bytes(b"damaged")
        with pytest.raises(SystemExit, match=r"Remove it to go on from checkpoint_best\.pth\.$"):
            make(fold=1).load_checkpoint(str(tmp_path / FINAL))

    def test_a_place_that_cannot_be_written_keeps_what_is_there(self, trainer, tmp_path: Path):
        (tmp_path / FINAL / "kept").mkdir(parents=True)  # a folder, which no file takes the place of
        with pytest.raises(TrainingError, match=r"checkpoint_final\.pth cannot be written: .* go on with --c\.$"):
            trainer.save_checkpoint(str(tmp_path / FINAL))
        assert sorted(path.name for path in tmp_path.iterdir()) == [FINAL, "preprocessed", "results"]
        assert (tmp_path / FINAL / "kept").is_dir()


def test_other_folds_of_another_configuration_are_not_broken(make: Make, tmp_path: Path):
    """They share plans.json."""
    first = make()
    first.initialize()
    folder = Path(first.output_folder)
    first.save_checkpoint(str(folder / FINAL))
    (folder.parent / "plans.json").write_text(json.dumps(first.plans_manager.plans))
    before = results(tmp_path)
    second = make(fold=1, weight_decay=0.5)
    with pytest.raises(SystemExit, match=r"another configuration \(weight_decay: 0\.0001 there, 0\.5 here\)"):
        second.on_train_start()
    assert results(tmp_path) == before


def test_a_model_of_an_earlier_version_takes_folds_that_see_what_it_has_seen(make: Make):
    """Its plans do not say how SAM2 sees a background: as grey, as one may still have it."""
    first = make()
    first.initialize()
    folder = Path(first.output_folder)
    first.save_checkpoint(str(folder / FINAL))
    plans = json.loads(json.dumps(first.plans_manager.plans))
    del plans["configurations"][first.configuration_name]["autosam2"]["black_background"]
    (folder.parent / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ConfigurationError, match="black_background: False there, True here"):
        make(fold=1)._refuse_other_config_of_same_model()
    make(fold=1, black_background=False)._refuse_other_config_of_same_model()


@pytest.mark.filterwarnings("ignore:sam2_checkpoint is random")
class TestGateVeto:
    """With a hybrid whose epochs are rows in the table of its folder: (Dice of the UNet, of the fusion), by region."""

    @pytest.fixture
    def after(self, make: Make) -> Callable[..., nnUNetTrainerAutoSAM2]:
        """A trainer that has trained these epochs."""

        def build(*epochs: tuple[list[float], list[float]], **parameters: object) -> nnUNetTrainerAutoSAM2:
            trainer = make(nnUNetTrainerAutoSAM2, num_epochs=3, **parameters)
            trainer.initialize()
            for epoch, (unet, fused) in enumerate(epochs):
                half = np.array([unet, np.subtract(1, unet), np.subtract(1, unet)])
                means = {"UNet": half, "SAM2": half, "SAM2's weight": np.full(3, 0.5)}
                list(trainer._progress_of_fold().add(epoch, means, fused))
            trainer.current_epoch = len(epochs)
            return trainer

        return build

    def vetoed(self, trainer: nnUNetTrainerAutoSAM2) -> list[bool]:
        weights = read_nnunet_checkpoint(Path(trainer.output_folder) / FINAL)["network_weights"]
        return weights["fusion.seg_layers.vetoed"].tolist()

    def test_the_final_checkpoint_has_it_and_the_log_says_so(self, after, capsys):
        trainer = after(([0.5] * 3, [0.7, 0.6, 0.4]), ([0.9] * 3, [0.7, 0.6, 0.9]))
        trainer.on_train_end()
        log = capsys.readouterr().out
        assert "whole tumor: UNet alone 0.5400, hybrid 0.7000." in log
        assert "Closed gates: enhancing tumor, where the hybrid was below its UNet alone." in log
        assert self.vetoed(trainer) == [False, False, True]

    def test_an_option_leaves_it_out(self, after):
        trainer = after(([0.5] * 3, [0.4] * 3), gate_veto=False)
        trainer.on_train_end()
        assert self.vetoed(trainer) == [False] * 3

    def test_where_the_best_weights_become_the_final_ones_the_epochs_up_to_them_count(self, after, monkeypatch):
        trainer = after(([0.5] * 3, [0.7, 0.4, 0.7]), ([0.5] * 3, [0.0, 1.0, 1.0]), ([0.5] * 3, [0.0, 1.0, 1.0]))
        trainer.current_epoch = 0
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
        trainer.current_epoch = 2

        def stop(_) -> None:
            raise PatienceExhausted

        monkeypatch.setattr(nnUNetTrainer, "run_training", stop)
        trainer.run_training()
        assert self.vetoed(trainer) == [False, True, False]

    def test_a_finished_training_keeps_it_until_it_trains_on(self, after, make: Make, capsys):
        trainer = after(([0.5] * 3, [0.4] * 3))
        trainer.on_train_end()
        resumed = make(nnUNetTrainerAutoSAM2, num_epochs=4)
        resumed.load_checkpoint(str(Path(trainer.output_folder) / FINAL))
        assert resumed.autosam2.fusion.vetoed.all()  # as `--val` takes it
        resumed.on_train_end()
        assert self.vetoed(resumed) == [True] * 3  # as `--c` does without an epoch to train
        resumed.on_epoch_start()
        assert not resumed.autosam2.fusion.vetoed.any()
        assert (
            "The gates that were closed at the end of this training are open as it goes on." in capsys.readouterr().out
        )

    def test_a_checkpoint_from_before_there_were_vetoes(self, after, make: Make):
        trainer = after(([0.5] * 3, [0.6] * 3))
        trainer.on_train_end()
        path = Path(trainer.output_folder) / FINAL
        content = torch.load(path, weights_only=False)
        del content["network_weights"]["fusion.seg_layers.vetoed"]
        del content["init_args"]["plans"]["configurations"]["tiny"]["autosam2"]["gate_veto"]
        torch.save(content, path)
        resumed = make(nnUNetTrainerAutoSAM2, num_epochs=3)
        resumed.load_checkpoint(str(path))
        assert not resumed.autosam2.fusion.vetoed.any()
        assert resumed.config.gate_veto
