"""From nnU-Net's folders to a network and a case, and what is refused on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_autosam2.config import PLANS_KEY
from nnunet_autosam2.errors import AutoSAM2Error, ConfigurationError, DatasetError, WeightsError
from nnunet_autosam2.show.loading import (
    LoadedModel,
    build_untrained,
    find_shown_case,
    find_trainer,
    load_trained,
    preprocess,
)
from nnunet_autosam2.trainers import nnUNetTrainerAutoSAM2_60

FINAL = "checkpoint_final.pth"


def rewrite(checkpoint: Path, **changes: Any) -> None:
    content = {**torch.load(checkpoint, weights_only=True, mmap=True), **changes}
    checkpoint.unlink()
    torch.save(content, checkpoint)


class TestTrained:
    def test_every_weight_is_that_of_the_checkpoint(self, loaded: LoadedModel, whole_model: Path):
        weights = torch.load(whole_model / "fold_0" / FINAL, weights_only=True, mmap=True)["network_weights"]
        state = loaded.network.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
        assert loaded.is_trained
        assert loaded.description == f"{whole_model.name}, fold 0\nsam2.1-hiera-tiny from random weights"
        assert list(loaded.regions) == ["whole tumor", "tumor core", "enhancing tumor"]

    def test_of_a_missing_checkpoint_the_others_are_named(self, model: Path):
        with pytest.raises(DatasetError) as error:
            load_trained(model, "3", FINAL)
        assert str(error.value) == f"{model / 'fold_3' / FINAL} does not exist. There are: fold_0/{FINAL}."
        (model / "fold_0" / FINAL).unlink()
        with pytest.raises(DatasetError, match=r"There are: no checkpoints\."):
            load_trained(model, "0", FINAL)

    def test_a_network_without_sam2_has_nothing_to_show(self, model: Path, plans: dict):
        plans["configurations"]["tiny"][PLANS_KEY]["enable_sam2"] = False
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ConfigurationError, match="fold 0: the network has no SAM2"):
            load_trained(model, "0", FINAL)

    def test_a_model_of_nnunets_own(self, model: Path, plans: dict):
        del plans["configurations"]["tiny"][PLANS_KEY]
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ConfigurationError, match="tiny has no autosam2 block: AutoSAM2 has not trained it"):
            load_trained(model, "0", FINAL)

    def test_plans_of_another_number_of_channels(self, model: Path, dataset_json: dict):
        dataset_json["channel_names"] = {"0": "T1", "1": "T2", "2": "FLAIR"}
        (model / "dataset.json").write_text(json.dumps(dataset_json))
        with pytest.raises(DatasetError, match=r"plans\.json is for 4 channels, and the dataset\.json beside it has 3"):
            load_trained(model, "0", FINAL)


def changes_of_a_checkpoint() -> Iterator[tuple[str, Mapping[str, Any]]]:
    value: object
    for value in (None, [], {}, {"configuration": "tiny"}, {"configuration": 7, "plans": {}, "dataset_json": {}}):
        yield "init_args", {"init_args": value}
    for value in (None, 7, "os", "nnUNetTrainer", "__file__", "a.b", ["x"], "nnUNetTrainerAutoSAM2Nobody"):
        yield "trainer", {"trainer_name": value}
    for value in (None, {}, [1], {"a": 1}, {7: torch.zeros(1)}, {"a": torch.zeros(1)}):
        yield FINAL, {"network_weights": value}


class TestDamaged:
    """Files of others: nothing in them is imported or called."""

    def refused(self, model: Path, trap: Path) -> str:
        with pytest.raises(AutoSAM2Error) as error:
            load_trained(model, "0", FINAL)
        assert not trap.exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize(
        ("text", "name"),
        [("{}", "plans"), ("[]", "plans"), ("null", "plans"), ("[" * 10**5, "plans"), ("{}", "dataset"),
         ("[]", "dataset"), ("null", "dataset"), ('{"labels": {"background": 0, "a": [[1], 2]}}', "dataset"),
         ("\ufeff{}", "dataset")],
    )  # fmt: skip
    def test_json(self, model: Path, trap: Path, text: str, name: str):
        (model / f"{name}.json").write_text(text)
        assert f"{model / name}.json" in self.refused(model, trap)

    def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(self, model: Path, trap: Path):
        (model / "plans.json").unlink()
        os.mkfifo(model / "plans.json")
        said = self.refused(model, trap)
        assert "plans.json is a pipe, a socket or a device, where a file has to be" in said

    @pytest.mark.parametrize(("said", "change"), [*changes_of_a_checkpoint()])
    def test_checkpoint(self, model: Path, trap: Path, said: str, change: Mapping[str, Any]):
        rewrite(model / "fold_0" / FINAL, **{"network_weights": {}, **change})
        assert said in self.refused(model, trap)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_named(self, model: Path, trap: Path, value: float):
        checkpoint = model / "fold_0" / FINAL
        weights = torch.load(checkpoint, weights_only=True)["network_weights"]
        name = "unet.network.encoder.stages.0.0.convs.0.conv.weight"
        weights[name][0, 0, 0, 0, 0] = value
        rewrite(checkpoint, network_weights=weights)
        assert f"not finite: {name}" in self.refused(model, trap)


class TestUntrained:
    def test_is_what_the_trainer_would_train_with_a_bridge_that_adds_nothing_yet(self, planned: Path):
        one, other = (build_untrained(planned, "tiny", "nnUNetTrainerAutoSAM2_60") for _ in range(2))
        assert one.network.config.slice_fraction == nnUNetTrainerAutoSAM2_60.parameters["slice_fraction"]
        assert one.description.startswith("untrained nnUNetTrainerAutoSAM2_60, tiny\n")
        assert not one.is_trained
        assert one.network.sam2_branch is not None
        assert not one.network.sam2_branch.bridge.scale.any()
        state = other.network.state_dict()  # the same pictures every time
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.network.state_dict().items())

    def test_plans_of_nnunet_alone_will_do(self, planned: Path):
        """Its configurations have no block of ours: the trainer's defaults count, which want SAM2's weights."""
        with pytest.raises(WeightsError, match="sam2"):
            build_untrained(planned, "3d_fullres", "nnUNetTrainerAutoSAM2")

    @pytest.fixture(autouse=True)
    def no_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUTOSAM2_SAM2_WEIGHTS", str(tmp_path / "nothing.pt"))

    @pytest.mark.parametrize(
        ("configuration", "trainer", "message"),
        [
            ("tiny", "nnUNetTrainer", "nnUNetTrainer is no trainer of AutoSAM2: the network has no SAM2."),
            ("tiny", "nnUNetTrainerAutoSAM2_UNetOnly", "the network has no SAM2, and so there is nothing to show"),
            ("tiny", "nnUNetTrainerNobody", "nnU-Net finds no trainer nnUNetTrainerNobody"),
            ("3d_lowres", "nnUNetTrainerAutoSAM2", "3d_lowres is no configuration in"),
        ],
    )
    def test_refused(self, planned: Path, configuration: str, trainer: str, message: str):
        with pytest.raises(ConfigurationError, match=message):
            build_untrained(planned, configuration, trainer)


@pytest.mark.parametrize("name", ["nnUNetTrainerNobody", "", "os.path", "../trainer", "nnUNetTrainer\n", "plans"])
def test_what_is_no_trainer_is_told_with_what_to_run(name: str):
    with pytest.raises(ConfigurationError, match=r"Is it installed\? Run: autosam2 doctor$"):
        find_trainer(name)


class TestCase:
    def test_files_are_found_by_what_their_names_have_in_common(self, case, loaded):
        found = find_shown_case(case.prefix, None, loaded)
        assert found.name == "case_1"
        assert found.images == [case.channel(number) for number in range(4)]
        assert found.truth == case.truth

    def test_a_relative_path_has_its_truth_too(self, case, loaded, monkeypatch):
        monkeypatch.chdir(case.prefix.parent)
        assert find_shown_case(Path("case_1"), None, loaded).truth == case.truth

    def test_a_case_without_truth(self, case, loaded):
        case.truth.unlink()
        assert find_shown_case(case.prefix, None, loaded).truth is None
        with pytest.raises(DatasetError, match=r"case_1\.nii\.gz does not exist\.$"):
            find_shown_case(case.prefix, case.truth, loaded)

    def test_a_channel_is_missing_or_one_too_many(self, case, loaded):
        case.channel(2).rename(case.channel(4))
        with pytest.raises(DatasetError) as error:
            find_shown_case(case.prefix, None, loaded)
        assert str(error.value) == (
            f"{case.channel(2)} does not exist. CASE is what the names of the 4 channels have in common: "
            "CASE_0000.nii.gz to CASE_0003.nii.gz."
        )
        case.channel(2).write_bytes(case.channel(4).read_bytes())
        with pytest.raises(DatasetError, match=r"_0004\.nii\.gz is one channel too many: the model has 4 channels"):
            find_shown_case(case.prefix, None, loaded)


class TestPreprocessed:
    def test_is_cropped_and_normalised_and_its_slices_keep_their_numbers(self, case, loaded):
        volume = preprocess(find_shown_case(case.prefix, None, loaded), loaded)
        assert volume.data.shape == (4, 27, 34, 38)
        assert volume.first_slice == 3
        assert volume.numbering == "along z"
        assert volume.data.dtype == torch.float32
        np.testing.assert_allclose(volume.data.mean((1, 2, 3)), 0, atol=0.1)
        assert volume.truth is not None
        for mask, least in zip(volume.truth.numpy(), (1, 2, 3), strict=True):
            np.testing.assert_array_equal(mask, case.labels[3:] >= least)

    def test_without_truth(self, case, loaded):
        case.truth.unlink()
        assert preprocess(find_shown_case(case.prefix, None, loaded), loaded).truth is None

    def test_slices_that_are_resampled_have_numbers_of_their_own(self, case, loaded: LoadedModel, plans: dict):
        plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 1.0]
        resampling = loaded._replace(configuration=PlansManager(plans).get_configuration("tiny"))
        volume = preprocess(find_shown_case(case.prefix, None, resampling), resampling)
        assert volume.data.shape[1] == 14
        assert volume.first_slice == 0
        assert volume.numbering == "along z of the volume as nnU-Net crops and resamples it"

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda case: case.channel(1).write_bytes(case.channel(1).read_bytes()[:2000]),
                "_0001.nii.gz cannot be",
            ),
            (lambda case: case.channel(3).write_bytes(b""), "_0003.nii.gz cannot be read"),
            (lambda case: case.write(case.labels[:-1]), "case_1.nii.gz is on another grid than case_1_0000.nii.gz: "),
            (lambda case: case.write(case.labels, origin=5.0), "case_1.nii.gz is on another grid than case_1_0000.nii"),
            (lambda case: case.write(case.labels + 3), "has the labels 4, 5, 6: the data set has 0, 1, 2, 3."),
        ],
        ids=["cut off", "empty", "shape", "place", "labels"],
    )
    def test_refused(self, case, loaded, spoil: Callable[[Any], Any], message: str):
        spoil(case)
        with pytest.raises(DatasetError) as error:
            preprocess(find_shown_case(case.prefix, None, loaded), loaded)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
