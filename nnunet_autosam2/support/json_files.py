"""JSON that others may have written: read and checked in its shape, with one line that names the file and the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from nnunet_autosam2.errors import AutoSAM2Error, DatasetError
from nnunet_autosam2.support.access import require_file
from nnunet_autosam2.support.text import printable

LARGEST = 2**26
"""Bytes. A dataset.json that lists ten thousand cases has 3 MB."""
SHOWN = 60
"""Characters of a name or a value in a message"""
Shape = TypeVar("Shape")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: there is no such file, or it is not JSON.
    """
    try:
        require_file(path)
        if (size := path.stat().st_size) > LARGEST:
            raise DatasetError(f"{path} has {size:,} bytes: it cannot be what its name says.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist.") from error
    except RecursionError as error:
        raise DatasetError(f"{path} cannot be read as JSON: it is nested too deeply.") from error
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}.") from error


def checked(
    content: Any,
    shape: type[Shape] | TypeAdapter[Shape],
    source: object,
    advice: str = "",
    error: type[AutoSAM2Error] = DatasetError,
) -> Shape:
    """Check `content` and return it as `shape`, a type that pydantic knows.

    Args:
        source: where it came from, and the start of the message.
        advice: the end of the message.
        error: what is raised.

    Raises:
        DatasetError: or `error`: it has another shape; the first entry that does not fit is named, with what it holds.
    """
    try:
        adapter = shape if isinstance(shape, TypeAdapter) else TypeAdapter(shape)
        return adapter.validate_python(content)
    except ValidationError as found:
        raise error(" ".join(filter(None, [f"{source}: {problem(found)}.", advice]))) from found


def problem(error: ValidationError) -> str:
    """Describe the first error, in one line."""
    first, *more = error.errors(include_url=False, include_context=False)
    where = ".".join(shown(part) for part in first["loc"])
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("missing", "value_error") and not isinstance(first["input"], BaseModel):
        said += f", found {shown(first['input'])}"
    rest = f" (and {len(more)} more)" if more else ""
    return f"{where + ': ' if where else ''}{said}{rest}"


def shown(value: Any, longest: int = SHOWN) -> str:
    """Shorten a value, and make it fit for a message."""
    if isinstance(value, (dict, list, tuple)):
        return f"{'{…}' if isinstance(value, dict) else '[…]'} with {len(value)} entries" if value else str(value)
    if isinstance(value, int) and abs(value) > 10**SHOWN:
        return "a huge number"
    return printable(value, longest)
