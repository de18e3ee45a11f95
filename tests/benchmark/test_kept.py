import json
import os
from itertools import product
from pathlib import Path

import pytest

from nnunet_autosam2.benchmark.kept import KeptScores, PredictionCost, TrainingCost, read_kept

PREDICTION = {"seconds": {"a": 1.5}, "peak_memory_bytes": 7, "parameters": {"all": 3, "trainable": 2}}
SCORES = {"a": {"WT": {"Dice": 0.5, "HD95": None}}}
DAMAGED = ["", "{", "[]", "null", "{}", "1", '{"peak_memory_bytes": "much"}', '{"a": {"WT": 1}}', "\0", "[" * 100_000]


def test_what_was_kept_is_read(tmp_path: Path):
    path = tmp_path / "a.json"
    assert read_kept(path, TrainingCost) is None
    for kind, content in ((TrainingCost, {"peak_memory_bytes": 5}), (PredictionCost, PREDICTION), (KeptScores, SCORES)):
        path.write_text(json.dumps(content))
        read = read_kept(path, kind)
        assert (read if kind is KeptScores else read.model_dump()) == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (kind, content)
        for kind, content in product((TrainingCost, PredictionCost, KeptScores), DAMAGED)
        if (kind, content) != (KeptScores, "{}")  # scores of no cases, which is nothing wrong
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_damaged_is_named_and_set_aside(
    tmp_path: Path, content: str, kind: type, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "a.json"
    for number in ("", "2"):
        path.write_text(content)
        assert read_kept(path, kind) is None
        assert not path.exists()
        assert (tmp_path / f"a.json.damaged{number}").read_text() == content
    assert f"{path} is damaged" in caplog.text
    assert f"It is now a.json.damaged{number}, and is made again." in caplog.text
    assert all(len(record.message) < 1000 and record.message.isprintable() for record in caplog.records)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_set_aside_too(tmp_path: Path, make, caplog: pytest.LogCaptureFixture):
    make(tmp_path / "a.json")
    assert read_kept(tmp_path / "a.json", TrainingCost) is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.json.damaged"]
    assert "a.json is a p" in caplog.text or "a.json is a folder" in caplog.text
