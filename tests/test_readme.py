"""The documents say what is there: options, commands, files and links are compared with the code."""

from __future__ import annotations

import json
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import click
import pytest

from nnunet_autosam2 import AutoSAM2, trainers
from nnunet_autosam2.cli.main import COMMANDS, main
from nnunet_autosam2.config import AutoSAM2Config, Tuning
from tests.fork_server import run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "RELEASING", "SECURITY")),
    *PAGES,
]
MOST_WORDS = 700


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < MOST_WORDS


def table(page: str) -> dict[str, str]:
    """First cell → second cell of the first table of a page, without the backticks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip("`"): row[1].strip("`") for row in rows[2:]}


def heading_anchors(document: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_parameter_is_in_the_table_with_its_default() -> None:
    written = {}
    for key, text in table("parameters.md").items():
        try:
            written[key] = json.loads(text)
        except json.JSONDecodeError:
            written[key] = text
    assert written == AutoSAM2Config().to_dict()


def test_every_trainer_is_in_the_table() -> None:
    named = re.findall(r"`(nnUNetTrainerAutoSAM2\w*)`", " ".join(f"`{cell}`" for cell in table("trainers.md")))
    assert sorted(named) == sorted(trainers.__all__)


def shown_code() -> list[str]:
    """Lines of the fenced blocks, continued lines joined, and the code within sentences, but for what has changed."""
    found = []
    for text in (path.read_text(encoding="utf-8") for path in (README, *PAGES)):
        fenced = re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found += "".join(fenced).replace("\\\n", " ").splitlines() + re.findall(r"`([^`\n]+)`", prose)
    return [line for line in found if line.startswith("autosam2 ") and line.split()[1][0].islower()]


def test_every_command_is_shown_and_every_shown_one_exists() -> None:
    assert {line.split()[1] for line in shown_code()} == set(COMMANDS)


def test_shown_options_exist() -> None:
    shown, context = set(), click.Context(main)
    for line in shown_code():
        name, options = line.split()[1], re.findall(r" (--?[a-z][a-z-]*)", re.split("#|&&", line)[0])
        command = main.get_command(context, name)
        if isinstance(command, click.Group):
            command = command.get_command(context, line.split()[2])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help"}
        assert set(options) <= known, line
        shown |= set(options)
    assert {"-d", "--base", "--name", "-m"} <= shown


def test_files_in_the_picture_exist() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    named = set(re.findall(r">(\w+\.py)<", picture))
    there = {path.name for path in (ROOT / "nnunet_autosam2").rglob("*.py")}
    assert "unet.py" in named
    assert named <= there


NO_BOX = {"__init__.py", "autosam2.py", "modes.py", "parts.py"}
"""What the picture is of, and how it is put together"""


def test_every_file_of_the_network_is_in_the_picture() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "nnunet_autosam2" / "architectures").glob("*.py")}
    assert {name for name in files if f">{name}<" not in picture} == NO_BOX


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in heading_anchors(target), f"{document.name} links to {link}"


def test_every_dependency_has_its_line() -> None:
    project, document = (ROOT / name for name in ("pyproject.toml", "docs/dependencies.md"))
    _, metadata = project.read_text(encoding="utf-8").split("\ndependencies = [", 1)
    required = re.findall(r'"([\w-]+[<>]=[^"]*)"', metadata)
    rows = re.findall(r"^\| `([^`]+)` \|", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == required


def test_one_version_is_everywhere() -> None:
    project, citation, changes = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    )
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]
    (date,) = re.findall(r'^date-released: "(.+)"$', citation, re.MULTILINE)
    assert f"\n## [{version}] - {date}\n" in changes


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.py").write_text(example + "\nassert logits.shape == (1, 4, 16, 64, 64), logits.shape\n")
    done = run(tmp_path / "example.py", variables={**os.environ, "HF_HUB_OFFLINE": "1"}, folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr


def test_standalone_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    check = """
assert logits.shape == (1, 4, 16, 64, 64), logits.shape
assert restored.sam2_has_weights
trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
still = [name for name, p in trainable.items() if p not in optimizer.state or not optimizer.state[p]["exp_avg"].any()]
# A softmax does not notice what is added to all keys: the true gradient of their bias is 0.
assert all(name.endswith("k_proj.bias") for name in still), still
"""
    (tmp_path / "example.py").write_text(example + check)
    done = run(tmp_path / "example.py", variables={**os.environ, "HF_HUB_OFFLINE": "1"}, folder=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr


def tuning_table() -> dict[str, dict[str, int]]:
    """Names → `sam2_tuning` → number of trainable parameters, as docs/sam2.md has them."""
    section = (ROOT / "docs" / "sam2.md").read_text(encoding="utf-8").split("# What trains\n", 1)[1].split("\n#", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    tunings = [cell.strip("`") for cell in rows[0][2:]]
    return {
        row[1]: dict(zip(tunings, (int(cell.replace(",", "")) for cell in row[2:]), strict=True)) for row in rows[2:]
    }


@pytest.mark.parametrize("tuning", get_args(Tuning))
def test_table_of_what_trains(tuning: str) -> None:
    *rows, (_, everything) = (
        (re.findall(r"`(.+?)`", names), counts[tuning]) for names, counts in tuning_table().items()
    )
    found = [0] * len(rows)
    for name, parameter in AutoSAM2(4, sam2_tuning=tuning, mask_prompt=True).named_parameters():
        row = next(i for i, (patterns, _) in enumerate(rows) if any(fnmatchcase(name, pattern) for pattern in patterns))
        found[row] += parameter.numel() if parameter.requires_grad else 0
    assert found == [count for _, count in rows]
    without = AutoSAM2(4, sam2_tuning=tuning).parameters()
    assert sum(parameter.numel() for parameter in without if parameter.requires_grad) == everything
