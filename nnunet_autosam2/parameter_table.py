"""The parameters of AutoSAM2 as text, from the fields of AutoSAM2Config.

`python -m nnunet_autosam2.parameter_table docs/parameters.md` writes the table between the two marks of that file anew.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from nnunet_autosam2.config import AutoSAM2Config
from nnunet_autosam2.support.schema_words import in_words

MARKS = ("<!-- parameters -->\n", "<!-- /parameters -->\n")


class Parameter(NamedTuple):
    """A parameter as a user has to know it."""

    key: str
    default: str
    values: str
    meaning: str


def parameters() -> list[Parameter]:
    """All of them, in the order of AutoSAM2Config."""
    return [
        Parameter(key, _as_typed(schema["default"]), in_words(schema), " ".join(schema["description"].split()))
        for key, schema in AutoSAM2Config.model_json_schema()["properties"].items()
    ]


def parameter_table() -> str:
    """The table in Markdown, with a line break at the end."""
    rows = [f"| `{key}` | `{default}` | {values} | {meaning} |\n" for key, default, values, meaning in parameters()]
    return "".join(["| key | default | values | meaning |\n", "| --- | --- | --- | --- |\n", *rows])


def with_table(text: str) -> str:
    """`text` with the table between its marks."""
    before, after = MARKS
    return re.sub(f"(?<={before}).*(?={after})", lambda _: parameter_table(), text, count=1, flags=re.DOTALL)


def _as_typed(default: object) -> str:
    """A value as it stands after the = of `autosam2 configure`."""
    return default if isinstance(default, str) else json.dumps(default)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_table(document.read_text(encoding="utf-8")), encoding="utf-8")
