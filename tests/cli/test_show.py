"""Which options go together; the pictures are looked at in tests/show/ and tests/end_to_end/test_show.py."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nnunet_autosam2.cli.main import main


def show(*arguments: Path | str) -> Result:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


@pytest.mark.parametrize("options", [(), ("-m", "results", "-d", "21")])
def test_a_hybrid_is_trained_or_untrained(options: tuple[str, ...]) -> None:
    result = show("case", *options)
    assert result.exit_code == 2
    assert "Give either -m, for a trained hybrid, or -d, for an untrained one." in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-d", "21", "-f", "1"), "--fold goes with -m, not with -d."),
        (("-d", "21", "--checkpoint", "a.pth"), "--checkpoint goes with -m, not with -d."),
        (("-m", "results", "-c", "2d"), "--configuration goes with -d, not with -m."),
        (("-m", "results", "-p", "Other"), "--plans goes with -d, not with -m."),
        (("-m", "results", "-tr", "Other"), "--trainer goes with -d, not with -m."),
    ],
)
def test_options_of_the_other_kind_are_refused(options: tuple[str, ...], said: str) -> None:
    result = show("case", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_results_folder_that_is_not_there_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    result = show("case", "-m", tmp_path / "gone", "-o", tmp_path / "pictures")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {tmp_path / 'gone'}")
    assert not list(tmp_path.iterdir())
