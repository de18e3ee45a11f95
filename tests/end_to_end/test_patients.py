"""Folds by patient, from a BraTS release through nnU-Net's planning to its trainer."""

from __future__ import annotations

import json
import os

import pytest

pytestmark = pytest.mark.end_to_end
CASES = [f"BraTS-GLI-{patient:05d}-{scan}" for patient in range(5) for scan in (100, 101)]
ASK_TRAINER = """
import json, torch
from pathlib import Path
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder = Path(nnUNet_preprocessed, "Dataset905_Patients")
plans, dataset = (json.loads((folder / f"{name}.json").read_text()) for name in ("nnUNetPlans", "dataset"))
trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 2, dataset, torch.device("cpu"))
print(json.dumps(list(map(list, trainer.do_split()))))
"""


def test_folds_of_the_conversion_are_those_of_the_training(planned) -> None:
    source = planned.root / "patients"
    phantom = planned.root / "phantom" / "phantom_001"
    endings = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg"}
    for case in CASES:
        (source / case).mkdir(parents=True)
        for old, new in endings.items():
            os.link(phantom / f"phantom_001_{old}.nii.gz", source / case / f"{case}-{new}.nii.gz")
    options = ("-d", "905", "-n", "Patients", "--release", "2024-gli", "--modalities", "t1n")
    said = planned.run("autosam2", "convert-brats", source, *options)
    raw = planned.root / "raw" / "Dataset905_Patients" / "splits_final.json"
    assert f"Folds by patient, for 5 patients with 10 training cases: 5, in {raw}." in said
    planned.run("nnUNetv2_plan_and_preprocess", "-d", "905", "-c", "3d_fullres", "-np", "1", "-npfp", "1")
    splits = json.loads(raw.read_text())
    assert json.loads((planned.root / "preprocessed" / "Dataset905_Patients" / raw.name).read_text()) == splits
    train, val = json.loads(planned.run_code(ASK_TRAINER).splitlines()[-1])
    assert {"train": train, "val": val} == splits[2]
    assert [case[:15] for case in val] == [val[0][:15]] * 2
