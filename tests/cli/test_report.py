"""What it refuses; the pages themselves are looked at in tests/report/."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from nnunet_autosam2.cli.main import main


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_benchmark_is_one_line(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "benchmark"
    if there:
        folder.mkdir()
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {folder}")
    assert not (folder / "report").exists()


def test_a_negative_number_of_cases(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(tmp_path), "--viewer-cases", "-1"])
    assert result.exit_code == 2
    assert "-1 is not in the range x>=0" in result.stderr
