"""Words for what a field of a pydantic model may be, from its JSON schema: no bound is written down twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NOUNS = {"integer": "whole number", "number": "number"}


def in_words(schema: Mapping[str, Any]) -> str:
    """The values that `schema` allows.

    `{"type": "integer", "minimum": 1}` → "a whole number of 1 or more"
    `{"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 9}, {"type": "null"}]}` →
    "null, auto or a whole number from 1 to 9"

    Args:
        schema: as pydantic writes it for a field of numbers, texts, truth values, or lists of numbers.
    """
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    *others, last = _alternatives(schema)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(schema: Mapping[str, Any]) -> Iterator[str]:
    for each in sorted(schema.get("anyOf", [schema]), key=lambda option: option.get("type") != "null"):
        if "const" in each or "enum" in each:
            yield from map(str, each.get("enum", [each.get("const")]))
        elif each["type"] == "array":
            yield _list(each)
        elif each["type"] in NOUNS:
            yield f"a {_numbers(each)}"
        elif each["type"] == "string":
            yield "a file" if each.get("format") == "file-path" else "text"
        else:
            yield {"boolean": "true or false", "null": "null"}[each["type"]]


def _numbers(schema: Mapping[str, Any], plural: str = "") -> str:
    """Describe a type, as in "whole number from 0 to 1000", without an article."""
    noun = f"multiple{plural} of {schema['multipleOf']}" if "multipleOf" in schema else NOUNS[schema["type"]] + plural
    return f"{noun}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}"
    if "minimum" not in schema:
        return ""
    least = schema["minimum"]
    return f" from {least:g} to {schema['maximum']:g}" if "maximum" in schema else f" of {least:g} or more"


def _list(schema: Mapping[str, Any]) -> str:
    """All entries are alike in the lists here."""
    alike = schema["prefixItems"] if "prefixItems" in schema else [schema["items"]]
    words = f"{len(alike) if 'prefixItems' in schema else 'a list of'} {_numbers(alike[0], 's')}"
    return f"{words}, one of them{_bounds(schema['contains'])}" if "contains" in schema else words
