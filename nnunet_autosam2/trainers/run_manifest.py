"""`autosam2_run.json` beside a training and beside predictions: what made them, with what, where and when."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_autosam2.errors import AutoSAM2Error, DatasetError
from nnunet_autosam2.support.environment import environment
from nnunet_autosam2.support.json_files import checked, read_json
from nnunet_autosam2.support.staging import locked, replace_file, set_aside
from nnunet_autosam2.trainers.patching import autosam2_of, put_around

FILE = "autosam2_run.json"
PREDICTIONS = ("predict_from_files", "predict_from_files_sequential")
"""Functions of nnUNetPredictor that write files"""
OUTPUT = "output_folder_or_list_of_truncated_output_files"
"""Their argument"""
PREDICT_CASE = "predict_logits_from_preprocessed_data"


class RunManifest:
    """One run in the list of a folder, which a training that goes on or another part of a prediction adds to.

    Args:
        folder: of a fold, or of predictions.
        task: "training" or "prediction".
        facts: about the run, in values that JSON keeps.
    """

    def __init__(self, folder: Path, task: str, device: torch.device, facts: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self.begun = time.monotonic()
        self.run = {
            "id": uuid.uuid4().hex,
            "task": task,
            "started": _now(),
            "ended": None,
            "seconds": None,
            **facts,
            **environment(device),
        }

    def end(self, facts: Mapping[str, Any]) -> None:
        """Writes the run with its end, and with what is known by then."""
        self.run |= {"ended": _now(), "seconds": round(time.monotonic() - self.begun, 1), **facts}
        self.write()

    def write(self) -> None:
        """Adds the run to the list, or brings it up to date there.

        A file that cannot be written is a line and no error: what the run is for is worth more.
        """
        try:
            with locked(self.path):
                others = [run for run in _runs_of(self.path) if run.get("id") != self.run["id"]]
                replace_file(self.path, json.dumps({"runs": [*others, self.run]}, indent=4) + "\n")
        except AutoSAM2Error as error:
            print(f"WARNING: {error}", file=sys.stderr)


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and values of a state dict, in hexadecimal digits.

    It is that of a network and of every checkpoint of it, whatever else is in the file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_facts(trainer: Any) -> dict[str, Any]:
    """About a training of nnUNetTrainerAutoSAM2 as it starts."""
    return {
        "dataset": trainer.plans_manager.dataset_name,
        "trainer": type(trainer).__name__,
        "plans": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "processes": torch.distributed.get_world_size() if trainer.is_ddp else 1,
        "epochs_before": trainer.current_epoch,
        "started_from": trainer.started_from,
        "autosam2": trainer.config.to_dict(),
    }


def keep_predictions() -> None:
    """Makes nnU-Net's predictors write a manifest beside what an AutoSAM2 network predicts into a folder."""
    for name in PREDICTIONS:
        put_around(nnUNetPredictor, name, _with_manifest, "predictions by it have no run manifest")


def _with_manifest(predict: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(predict)

    def predict_and_tell(self: nnUNetPredictor, *arguments: Any, **named: Any) -> Any:
        folder = _folder_of(signature.bind(self, *arguments, **named).arguments.get(OUTPUT))
        if folder is None or autosam2_of(self.network) is None:
            return predict(self, *arguments, **named)
        manifest = RunManifest(folder, "prediction", self.device, _prediction_facts(self))
        with _timed_cases(self) as seconds:
            predicted = predict(self, *arguments, **named)
        manifest.end({"cases": len(seconds), "seconds_in_network": round(sum(seconds), 1)})
        return predicted

    return predict_and_tell


@contextmanager
def _timed_cases(predictor: Any) -> Iterator[list[float]]:
    """Seconds of each case that is predicted within, without reading, preprocessing and writing it."""
    seconds: list[float] = []
    predict_case = getattr(predictor, PREDICT_CASE)

    def predict_and_time(data: Tensor) -> Tensor:
        begun = time.monotonic()
        logits = predict_case(data)
        seconds.append(time.monotonic() - begun)
        return logits

    setattr(predictor, PREDICT_CASE, predict_and_time)
    try:
        yield seconds
    finally:
        delattr(predictor, PREDICT_CASE)


def _folder_of(output: Any) -> Path | None:
    if isinstance(output, list):
        output = Path(output[0]).parent if output else None
    return None if output is None else Path(output)


def _prediction_facts(predictor: Any) -> dict[str, Any]:
    network, plans = autosam2_of(predictor.network), predictor.plans_manager
    assert network is not None
    used = predictor.configuration_manager.configuration
    names = (name for name in plans.available_configurations if plans.get_configuration(name).configuration == used)
    return {
        "dataset": plans.dataset_name,
        "trainer": predictor.trainer_name,
        "plans": plans.plans_name,
        "configuration": next(names, None),
        "weights_sha256": [weights_checksum(weights) for weights in predictor.list_of_parameters],
        "mirroring": predictor.allowed_mirroring_axes if predictor.use_mirroring else None,
        "tile_step_size": predictor.tile_step_size,
        "autosam2": network.config.to_dict(),
    }


def _runs_of(path: Path) -> list[dict[str, Any]]:
    """Those of a file that is there; one of another kind is set aside."""
    if not path.exists():
        return []
    try:
        return checked(read_json(path), dict[str, list[dict[str, Any]]], path).get("runs", [])
    except DatasetError as error:
        with suppress(OSError):
            set_aside(path, f"is not what its name says ({error})")
        return []


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
