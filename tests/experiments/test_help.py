"""Every program of `experiments/` starts, and is told of in its README."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "experiments").rglob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)
SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").glob("*.sh"))
HELP_OF_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    module = importlib.import_module(f"{name}.__main__" if name == "experiments.speed" else name)
    print("MODULE", name)
    module.main(["--help"], standalone_mode=False)
"""


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """Module → what its `--help` prints. All in one process: most of the time goes into importing torch."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL, *MODULES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(part.split("\n", 1) for part in done.stdout.split("MODULE ")[1:])


@pytest.mark.parametrize("module", MODULES)
def test_help(module: str, told: dict[str, str]):
    assert told[module].startswith("Usage: ")
    assert "--help" in told[module]
    assert f"`python -m {module}" in README


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script(script: str):
    done = subprocess.run([ROOT / script, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: {script} " in done.stdout
    assert f"`{script} " in README


def test_there_are_programs():
    assert "experiments.speed" in MODULES
    assert "experiments.gate" in MODULES
    assert "experiments/real_run.sh" in SCRIPTS
