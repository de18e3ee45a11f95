"""Files that a benchmark keeps of each fold from one start to the next. A damaged one is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nnunet_autosam2.benchmark.results import Parameters
from nnunet_autosam2.support.access import fault_of_file
from nnunet_autosam2.support.staging import set_aside
from nnunet_autosam2.support.text import printable

Kind = TypeVar("Kind")
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TrainingCost(BaseModel):
    """Cost of a training run."""

    peak_memory_bytes: int = Field(ge=0)


class PredictionCost(BaseModel):
    """Cost of predictions: of the cases that were timed."""

    seconds: dict[str, Positive]
    peak_memory_bytes: int = Field(ge=0)
    parameters: Parameters


KeptScores = dict[str, dict[str, dict[str, float | None]]]
"""Case → region → metric → value; None where it is not defined"""


def read_kept(path: Path, kind: type[Kind]) -> Kind | None:
    """Content of `path`; None if it is not there, or not what it has to be: then it is named and set aside."""
    try:
        if path.exists() and (fault := fault_of_file(path)):
            set_aside(path, fault)
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        set_aside(path, f"is damaged ({printable(': '.join([*map(str, first['loc']), first['msg']]))})")
        return None
