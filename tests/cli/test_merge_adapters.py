"""What it refuses before it reads a weight; merged models predict in tests/end_to_end/test_adapters.py."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from nnunet_autosam2.cli.main import main


def refused(*arguments: Path | str) -> str:
    result = CliRunner().invoke(main, ["merge-adapters", *map(str, arguments)])
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line.removeprefix("Error: ")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    fold = tmp_path / "results" / "fold_0"
    fold.mkdir(parents=True)
    torch.save({"network_weights": {}}, fold / "checkpoint_final.pth")
    return fold.parent


def test_a_folder_without_such_a_checkpoint(results: Path, tmp_path: Path) -> None:
    assert refused(tmp_path, tmp_path / "merged").startswith(f"{tmp_path} has no fold with checkpoint_final.pth:")
    line = refused(results, tmp_path / "merged", "--checkpoint", "checkpoint_best.pth")
    assert line.startswith(f"{results} has no fold with checkpoint_best.pth:")


def test_a_folder_that_exists_is_left_alone(results: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    assert refused(results, tmp_path / "merged") == f"{tmp_path / 'merged'} exists already: choose another folder."
    assert not list((tmp_path / "merged").iterdir())


def test_a_place_that_is_not_there(results: Path, tmp_path: Path) -> None:
    assert refused(results, tmp_path / "gone" / "merged") == f"{tmp_path / 'gone'} is not a folder: make it first."


def test_a_results_folder_without_plans_leaves_nothing_behind(results: Path, tmp_path: Path) -> None:
    assert "plans.json" in refused(results, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
