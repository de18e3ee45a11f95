"""Both tutorials, as they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.docs.pages import Reader
from tests.end_to_end.conftest import Workspace
from tests.fork_server import ForkServer

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    workspace = Workspace(tmp_path_factory.mktemp("reader"))
    workspace.fork_server = ForkServer(workspace.variables)
    yield Reader(workspace)
    workspace.fork_server.close()


@pytest.fixture(scope="module")
def upgrade(reader: Reader) -> str:
    return reader.read("docs/tutorial-upgrade.md")


def test_a_trained_nnunet_is_upgraded(upgrade: str, reader: Reader) -> None:
    assert "tensors of nnU-Net, all in the hybrid: True" in upgrade
    root = reader.workspace.root
    (run,) = json.loads((root / "by_hybrid" / "autosam2_run.json").read_text())["runs"]
    assert run["cases"] == 1
    assert run["autosam2"]["backbone_checkpoint"].endswith("checkpoint_final.pth")
    assert not (root / "by_nnunet" / "autosam2_run.json").exists()


def test_a_prediction_is_looked_into(upgrade: str, reader: Reader) -> None:
    printed = reader.read("docs/tutorial-inside.md")
    pictures = sorted(path.suffix for path in (reader.workspace.root / "pictures").iterdir())
    assert pictures == [".png"] * 3
    (asked,) = re.findall(r"^SAM2 has masks on (\d+) of 24 slices$", printed, re.MULTILINE)
    assert 0 < int(asked) <= 24
    assert len(re.findall(r"^(?:WT|TC|ET): IoU by SAM2's own estimate [01].\d\d, ", printed, re.MULTILINE)) == 3
    assert len(re.findall(r"^(?:WT|TC|ET): SAM2 has changed \d+ of \d+ voxels$", printed, re.MULTILINE)) == 3
