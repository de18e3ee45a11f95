from pathlib import Path

import pytest

from nnunet_autosam2.errors import DatasetError
from nnunet_autosam2.postprocessing.rules import Rule
from nnunet_autosam2.postprocessing.settings import Settings, read_settings, write_settings

SETTINGS = Settings(
    labels={"WT": (1, 2), "TC": (2,)},
    outside=(0, 4),
    rules={"TC": Rule(smallest_component=50, smallest_share=0.05)},
    found_by={"metric": "Dice", "cases": 3},
)


def test_what_is_written_is_read(tmp_path: Path):
    write_settings(SETTINGS, tmp_path / "settings.json")
    assert read_settings(tmp_path / "settings.json") == SETTINGS
    assert SETTINGS.numbering.labels == (0, 4, 1, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"settings\.json: labels: Field required"),
        (
            '{"labels": {"a": [1]}, "outside": [0], "rules": {"a": {"least": 1}}, "found_by": {}}',
            r"rules\.a\.least",
        ),
        (
            '{"labels": {"a": [1]}, "outside": [0], "rules": {"a": {"smallest_total": -1}}, "found_by": {}}',
            "greater than or equal to 0, found -1",
        ),
        ("[", "cannot be read as JSON"),
    ],
)
def test_another_file(tmp_path: Path, content: str, message: str):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_settings(tmp_path / "settings.json")
