"""Every table of figures says when, with which version and how it was made."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
DATED = re.compile(r"Measured on \d{1,2} \w+ \d{4}, (?:with|before) version \d+\.\d+\.\d+\.")
COMMAND = re.compile(r"```bash|experiments\.\w+|experiments/\w+|make bench|nnUNetv2_\w+|FlopCounterMode")


def measured_sections() -> Iterator[tuple[str, str]]:
    """Page and section, by its second heading, of all that has a table."""
    for name in ("performance.md", "experiments.md", "real-run.md"):
        for section in re.split(r"^(?=## )", (DOCS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if "| --- |" in section:
                yield name, section


@pytest.mark.parametrize(("page", "section"), [*measured_sections()], ids=lambda text: text.splitlines()[0][:60])
def test_a_table_has_its_date_version_and_command(page: str, section: str) -> None:
    assert DATED.search(section), f"{page}: {section[:200]}"
    assert COMMAND.search(section), f"{page}: {section[:200]}"
