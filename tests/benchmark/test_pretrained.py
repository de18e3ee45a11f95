"""What `--pretrained` compares: the planned network from an encoder, with SAM2 and without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.models import ComparedModel, titles
from nnunet_autosam2.benchmark.pretrained import TRAINER, find_pretrained
from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.errors import ConfigurationError
from nnunet_autosam2.support.plans import read_plans


@pytest.fixture
def path(planned: Path) -> Path:
    """Plans of a data set."""
    return planned / "nnUNetPlans.json"


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae.pth").touch()
    return tmp_path / "mae.pth"


def find(*named: str) -> list[ComparedModel]:
    return find_pretrained("900", named, "nnUNetPlans", "tiny")


def test_each_encoder_is_there_with_sam2_and_without_it(path: Path, encoder: Path):
    models = find("mae=mae.pth", f"MG-2={encoder}")
    assert [model.configuration for model in models] == ["tiny_mae-alone", "tiny_mae", "tiny_MG-2-alone", "tiny_MG-2"]
    assert {model.trainer for model in models} == {TRAINER}
    assert titles(models)[:2] == ["mae, without SAM2", "mae, with SAM2"]
    assert [model.slice_fraction == 0 for model in models] == [True, False, True, False]
    for model in models:
        block = read_plans(path)["configurations"][model.configuration]["autosam2"]
        config = AutoSAM2Config.from_dict(block)
        assert config.backbone == "plans"
        assert config.encoder_checkpoint == str(encoder)
    content = path.read_bytes()
    assert find("mae=mae.pth", f"MG-2={encoder}") == models
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("mae.pth",), "--pretrained mae.pth is not NAME=FILE"),
        (("a__b=mae.pth",), "--pretrained a__b=mae.pth is not NAME=FILE"),
        (("mae=gone.pth",), "gone.pth is not a file"),
        (("mae=mae.pth", "mae=mae.pth"), "--pretrained"),
    ],
)
def test_what_is_not_possible_changes_no_plans(path: Path, encoder: Path, named: tuple[str, ...], message: str):
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=message):
        find(*named)
    assert path.read_bytes() == before


def test_a_name_with_another_file_than_before_is_refused(path: Path, encoder: Path):
    find("mae=mae.pth")
    encoder.rename(encoder.with_name("other.pth"))
    with pytest.raises(ConfigurationError, match=r"tiny_mae-alone in .* is not what --pretrained mae-alone needs"):
        find("mae=other.pth")
