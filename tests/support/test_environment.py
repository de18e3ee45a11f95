import importlib.metadata
import json
import platform

import pytest
import torch

from nnunet_autosam2.support import environment


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DISTRIBUTIONS", ("torch", "no-such-package"))
    assert environment.versions() == {
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "no-such-package": None,
    }


def test_an_environment_can_be_kept_as_json() -> None:
    described = environment.environment(torch.device("cpu"))
    assert json.loads(json.dumps(described)) == described
    assert described["device"] == "cpu"
    assert platform.node() not in json.dumps(described)
