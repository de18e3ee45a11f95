"""A trained nnU-Net as the start: found, checked against the plans, and taken weight by weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_autosam2.errors import WeightsError
from nnunet_autosam2.trainers.backbone import find_baseline, load_backbone

DATASET = "Dataset900_Phantom"


def build(plans: dict, seed: int) -> nn.Module:
    """As nnUNetTrainer builds it."""
    torch.manual_seed(seed)
    manager = PlansManager(plans)
    return nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("tiny"), 4, 3, False)


def settings(plans: dict) -> dict:
    return PlansManager(plans).get_configuration("tiny").configuration


class TestFound:
    @pytest.fixture
    def output(self, tmp_path: Path) -> Path:
        return tmp_path / DATASET / "nnUNetTrainerAutoSAM2_OnBaseline__nnUNetPlans__tiny" / "fold_1"

    def trained(self, output: Path, configuration: str, fold: int = 1, plans: str = "nnUNetPlans") -> Path:
        folder = output.parents[1] / f"nnUNetTrainer__{plans}__{configuration}" / f"fold_{fold}"
        folder.mkdir(parents=True)
        (folder / "checkpoint_final.pth").touch()
        return folder / "checkpoint_final.pth"

    def test_of_the_same_configuration_before_those_that_it_inherits_from(self, output: Path, plans: dict):
        inherited = self.trained(output, "3d_fullres")
        assert find_baseline(output, plans["configurations"]) == inherited
        own = self.trained(output, "tiny")
        assert find_baseline(output, plans["configurations"]) == own

    def test_of_another_fold_or_of_other_plans_is_none(self, output: Path, plans: dict):
        self.trained(output, "tiny", fold=0)
        self.trained(output, "3d_fullres", plans="otherPlans")
        with pytest.raises(WeightsError) as error:
            find_baseline(output, plans["configurations"])
        assert str(output.parents[1] / "nnUNetTrainer__nnUNetPlans__tiny" / "fold_1") in str(error.value)
        assert str(error.value).endswith(f"nnUNetv2_train {DATASET} tiny 1 -p nnUNetPlans")

    def test_a_training_that_has_not_ended_is_none(self, output: Path, plans: dict):
        final = self.trained(output, "tiny")
        final.rename(final.with_name("checkpoint_best.pth"))
        with pytest.raises(WeightsError, match=r"^backbone_checkpoint = auto: there is no "):
            find_baseline(output, plans["configurations"])


@pytest.fixture
def checkpoint(tmp_path: Path, plans: dict, dataset_json: dict) -> Callable[..., Path]:
    """Writes that of a trained nnU-Net, whose plans and dataset.json a test may change before."""
    weights = build(plans, seed=1).state_dict()
    there = {"plans": copy.deepcopy(plans), "configuration": "tiny", "dataset_json": copy.deepcopy(dataset_json)}

    def write(change: Callable[[dict, dict], object] = lambda plans, dataset_json: None, **entries) -> Path:
        change(there["plans"], there["dataset_json"])
        path = tmp_path / "checkpoint_final.pth"
        torch.save({"network_weights": weights, "init_args": there, "trainer_name": "nnUNetTrainer", **entries}, path)
        return path

    return write


def test_every_weight_is_taken(plans, dataset_json, checkpoint):
    network = build(plans, seed=2)
    load_backbone(network, checkpoint(), settings(plans), dataset_json)
    expected = build(plans, seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def larger_patch(plans: dict, _: dict) -> None:
    plans["configurations"]["3d_fullres"] |= {"patch_size": [32, 32, 32], "batch_size": 7}


def test_patch_and_batch_size_may_differ(plans, dataset_json, checkpoint):
    load_backbone(build(plans, seed=2), checkpoint(larger_patch), settings(plans), dataset_json)


def spacing(plans: dict, _: dict) -> None:
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]


def features(plans: dict, _: dict) -> None:
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 8, 8]


def channels(_: dict, dataset_json: dict) -> None:
    dataset_json["channel_names"] = {"0": "T1", "1": "T2", "2": "T1ce", "3": "FLAIR"}


def normalisation(plans: dict, _: dict) -> None:
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"] * 4


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (spacing, "spacing: [2.0, 1.0, 1.0] there, [1.0, 1.0, 1.0] here."),
        (features, "architecture.arch_kwargs.features_per_stage: [8, 8, 8] there, [4, 8, 8] here."),
        (channels, "channel_names.1: 'T2' there, 'T1ce' here; channel_names.2: 'T1ce' there, 'T2' here."),
        (normalisation, "normalization_schemes: ['CTNormalization', "),
    ],
)
def test_other_plans_are_refused_by_what_differs(plans, dataset_json, checkpoint, change, difference: str):
    network = build(plans, seed=2)
    path = checkpoint(change)
    with pytest.raises(WeightsError) as error:
        load_backbone(network, path, settings(plans), dataset_json)
    assert str(error.value).startswith(f"backbone_checkpoint = {path} is of other plans: {difference}")
    expected = build(plans, seed=2).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_lists_of_the_plans_and_tuples_of_a_checkpoint_are_the_same(plans, dataset_json, checkpoint):
    here = settings(plans)
    here["spacing"] = tuple(here["spacing"])
    load_backbone(build(plans, seed=2), checkpoint(), here, dataset_json)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"network_weights": {}}, "does not fit the network of the plans"),
        ({"init_args": {}}, "init_args: plans: Field required"),
        ({"init_args": {"plans": {}, "configuration": "tiny", "dataset_json": {}}}, "plans: dataset_name: Field"),
    ],
)
def test_damaged_checkpoints_are_named(plans, dataset_json, checkpoint, entries: dict, message: str):
    path = checkpoint(**entries)
    with pytest.raises(WeightsError, match=message) as error:
        load_backbone(build(plans, seed=2), path, settings(plans), dataset_json)
    assert str(error.value).startswith("backbone_checkpoint")
    assert str(path) in str(error.value)


def test_a_transformer_is_no_backbone(plans, dataset_json, checkpoint):
    primus = Primus(4, 24, (8, 8, 8), 3, 1, 2, input_shape=(16, 16, 16))
    path = checkpoint(network_weights=primus.state_dict(), trainer_name="nnUNet_Primus_S_Trainer")
    with pytest.raises(WeightsError, match=r"of nnUNet_Primus_S_Trainer, whose network is not .*ResidualEncoderUNet"):
        load_backbone(build(plans, seed=2), path, settings(plans), dataset_json)


def test_a_checkpoint_that_is_not_there(plans, dataset_json, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"^backbone_checkpoint: .*gone\.pth does not exist"):
        load_backbone(build(plans, seed=2), tmp_path / "gone.pth", settings(plans), dataset_json)
