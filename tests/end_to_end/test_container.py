"""What the container runs for a challenge; that it is built is beyond a test."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from nnunet_autosam2.dataset_conversion.regions import REGIONS
from nnunet_autosam2.postprocessing.rules import Rule
from nnunet_autosam2.postprocessing.settings import NAME, Settings, write_settings

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).parents[2]
PREDICT = ROOT / "container" / "predict_brats.sh"
QUICK = ("-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1")


@pytest.fixture
def cases(planned, tmp_path: Path) -> Path:
    """A case folder as a challenge hands it over, without a segmentation."""
    shutil.copytree(planned.root / "phantom" / "phantom_002", tmp_path / "cases" / "phantom_002")
    (tmp_path / "cases" / "phantom_002" / "phantom_002_seg.nii.gz").unlink()
    return tmp_path / "cases"


def test_cases_go_in_and_label_maps_of_the_release_come_out(planned, trained: Path, cases: Path, tmp_path: Path):
    planned.run(PREDICT, cases, tmp_path / "out", trained, *QUICK)
    (label_map,) = (tmp_path / "out").iterdir()
    assert label_map.name == "phantom_002.nii.gz"
    found, image = nibabel.load(label_map), nibabel.load(cases / "phantom_002" / "phantom_002_t1.nii.gz")
    assert found.shape == image.shape
    np.testing.assert_allclose(found.affine, image.affine)
    assert {*np.unique(np.asarray(found.dataobj))} <= {0, 1, 2, 4}


def test_post_processing_beside_the_model_is_applied(planned, trained: Path, cases: Path, tmp_path: Path):
    model = Path(shutil.copytree(trained, tmp_path / "model"))
    brats = {short: region.labels for short, region in REGIONS.items()}
    rules = {"WT": Rule(smallest_component=1e9)}  # mm³, more than there are
    write_settings(Settings(labels=brats, outside=(0,), rules=rules, found_by={}), model / NAME)
    planned.run(PREDICT, cases, tmp_path / "out", model, *QUICK)
    assert not np.asarray(nibabel.load(tmp_path / "out" / "phantom_002.nii.gz").dataobj).any()


def test_a_model_that_is_none_is_one_line(planned, cases: Path, tmp_path: Path) -> None:
    said = planned.run(PREDICT, cases, tmp_path / "out", tmp_path, expected=1)
    (line,) = said.splitlines()
    assert str(tmp_path) in line
    assert "plans.json" in line
    (tmp_path / "plans.json").write_text("{}")
    (line,) = planned.run(PREDICT, cases, tmp_path / "out", tmp_path, expected=1).splitlines()
    assert "checkpoint_final.pth" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "part",
    [
        "python:3.12-slim-bookworm",
        '/opt/venv/bin/pip install --no-cache-dir "uv>=0.8,<1"',
        "install -m 755 /opt/nnunet-autosam2/container/predict_brats.sh /usr/local/bin/predict_brats",
    ],
)
def test_both_recipes_have_the_same_parts(part: str) -> None:
    assert all(part in (ROOT / "container" / name).read_text() for name in ("Dockerfile", "apptainer.def"))
