"""The file that tuning writes and `autosam2 postprocess` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nnunet_autosam2.evaluation.numbering import Numbering
from nnunet_autosam2.postprocessing.rules import Rule
from nnunet_autosam2.support.json_files import checked, read_json
from nnunet_autosam2.support.staging import replace_file

NAME = "autosam2_postprocessing.json"
"""Name, in the folder of the predictions that it was found on"""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    labels: dict[str, tuple[int, ...]]
    """Region → labels, of the predictions that it was found on"""
    outside: tuple[int, ...]
    """Labels that are in none of the regions"""
    rules: dict[str, Rule]
    found_by: dict[str, Any]
    """Metric, challenge, cases, and scores before and after"""

    @property
    def numbering(self) -> Numbering:
        return Numbering(self.labels, self.outside)


def read_settings(file: Path) -> Settings:
    """Read the file of a tuning.

    Raises:
        DatasetError: there is no such file, or something else is in it.
    """
    advice = "Give the file that autosam2 tune-postprocessing has written."
    return checked(read_json(file), Settings, file, advice)


def write_settings(settings: Settings, file: Path) -> None:
    replace_file(file, settings.model_dump_json(indent=2))
