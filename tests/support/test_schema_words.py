from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter

from nnunet_autosam2.support.schema_words import in_words

File = Annotated[str, Field(min_length=1, json_schema_extra={"format": "file-path"})]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (bool, "true or false"),
        (int, "a whole number"),
        (str, "text"),
        (Annotated[float, Field(ge=0, le=1)], "a number from 0 to 1"),
        (Annotated[float, Field(gt=0)], "a number above 0"),
        (Annotated[int, Field(ge=1)], "a whole number of 1 or more"),
        (Annotated[int, Field(ge=64, le=128, multiple_of=32)], "a multiple of 32 from 64 to 128"),
        (Literal["a", "b", "c"], "one of a, b, c"),
        (File | Literal["auto", "random"], "a file, auto or random"),
        (File | Literal["auto"] | None, "null, a file or auto"),
        (Annotated[int, Field(ge=1)] | None, "null or a whole number of 1 or more"),
        (tuple[float, ...], "a list of numbers"),
        (tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], "2 whole numbers of 0 or more"),
        (
            Annotated[tuple[float, ...], Field(json_schema_extra={"contains": {"exclusiveMinimum": 0}})],
            "a list of numbers, one of them above 0",
        ),
    ],
)
def test_words(shape: object, words: str) -> None:
    assert in_words(TypeAdapter(shape).json_schema()) == words
