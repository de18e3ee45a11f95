"""JSON of others: read as Python's own module reads it, or refused with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, StrictInt, TypeAdapter

from nnunet_autosam2.errors import DatasetError, WeightsError
from nnunet_autosam2.support.json_files import LARGEST, checked, read_json, shown


@pytest.mark.parametrize("content", [{"a": [1, None, 0.5]}, [], {}, None, "Ödem", 7])
def test_reads_what_json_has_written(tmp_path: Path, content: Any):
    path = tmp_path / "content.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == content


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "cannot be read as JSON: "),
        (b'{"a": 1', "cannot be read as JSON: "),
        (b'{"a": 1} trailing', "cannot be read as JSON: "),
        (b"\xff\xfe", "cannot be read as JSON: "),
        (b"[" * 100_000, "cannot be read as JSON: it is nested too deeply."),
        (b"1" * 5000, "cannot be read as JSON: "),
    ],
    ids=["empty", "cut off", "more than one", "not UTF-8", "nested", "huge number"],
)
def test_what_is_no_json_is_named_in_one_line(tmp_path: Path, written: bytes, message: str):
    path = tmp_path / "damaged.json"
    path.write_bytes(written)
    with pytest.raises(DatasetError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist."),
        (Path.mkdir, "is a folder, where a file has to be."),
        (os.mkfifo, "is a pipe, a socket or a device, where a file has to be."),
        (lambda path: path.symlink_to(path.with_name("gone")), "does not exist."),
    ],
    ids=["nothing", "folder", "pipe", "link to nothing"],
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, make, message: str):
    path = tmp_path / "content.json"
    make(path)
    with pytest.raises(DatasetError) as error:
        read_json(path)
    assert str(error.value) == f"{path} {message}"


def test_a_volume_in_the_place_of_json_is_not_loaded(tmp_path: Path):
    path = tmp_path / "dataset.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(DatasetError, match=r"dataset\.json has 67,108,865 bytes: it cannot be what its name says"):
        read_json(path)


class Shape(BaseModel):
    size: Annotated[int, Field(strict=True, ge=1)]
    names: list[str] = []


def test_what_has_the_shape_comes_back_as_it():
    assert checked({"size": 3, "further": 1}, Shape, "a.json") == Shape(size=3)
    assert checked([1, 2], TypeAdapter(list[StrictInt]), "a.json") == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "a.json: size: Field required. Remedy."),
        ({"size": 0}, "a.json: size: Input should be greater than or equal to 1, found 0. Remedy."),
        ({"size": "x" * 500}, "a.json: size: Input should be a valid integer, found xxx"),
        ({"size": 1, "names": ["a", 7]}, "a.json: names.1: Input should be a valid string, found 7. Remedy."),
        ({"size": None, "names": 1}, "a.json: size: Input should be a valid integer, found None (and 1 more). Remedy."),
    ],
)
def test_the_first_entry_that_does_not_fit_is_named_with_what_it_holds(content: Any, message: str):
    with pytest.raises(DatasetError) as error:
        checked(content, Shape, "a.json", "Remedy.")
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 300


def test_the_kind_of_error_is_the_callers():
    with pytest.raises(WeightsError, match=r"^b\.pth: init_args: size: Field required\.$"):
        checked({}, Shape, "b.pth: init_args", error=WeightsError)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("name", "name"),
        ("a\nb", r"a\nb"),
        ([], "[]"),
        ({}, "{}"),
        ([1, 2, 3], "[…] with 3 entries"),
        ({"a": 1}, "{…} with 1 entries"),
        (10**400, "a huge number"),
        (-(10**400), "a huge number"),
        (10**5, "100000"),
    ],
)
def test_values_in_messages_are_short(value: Any, text: str):
    assert shown(value) == text


def test_of_a_long_value_both_ends_are_shown():
    assert shown("a" + "x" * 1000 + "z", longest=10).startswith("axxxx … (992 characters)")
    assert shown("a" + "x" * 1000 + "z", longest=10).endswith("xxxxz")
